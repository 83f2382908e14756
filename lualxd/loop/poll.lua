-- The loop of a plain script: the process sleeps until something happens.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local poll = {}

---@param poller lualxd.core.poller
---@param timeout number? seconds; nil: as long as it takes
function poll.wait(poller, timeout)
  poller:wait(timeout)
end

return poll
