-- No loop: whatever waits blocks the process, and drives everything meanwhile. The adapter for whoever wants
-- that inside a loop.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local poll = {}

function poll.here()
  return false
end

return poll
