-- The loop of a plain script: the process sleeps until something happens.
local poll = {}

---@param poller lualxd.core.poller
---@param timeout number? seconds; nil: as long as it takes
function poll.wait(poller, timeout)
  poller:wait(timeout)
end

return poll
