-- Waiting in cqueues. A controller's own coroutines yield to it; one that the script made inside of those
-- blocks its caller, as everywhere.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local cqueues = require "cqueues"
local condition = require "cqueues.condition"

local adapter = {}

local function finite(timeout)
  return timeout < math.huge and timeout or nil
end

function adapter.here()
  local controller, own = cqueues.running()
  return controller ~= nil and own == true
end

function adapter.which()
  return (cqueues.running())
end

function adapter.wait(fd, timeout, attendant)
  local readable = { pollfd = fd, events = "r" }
  if not attendant then
    cqueues.poll(readable, finite(timeout))
    return
  end
  attendant.bell = attendant.bell or condition.new()
  cqueues.poll(readable, attendant.bell, finite(timeout))
end

function adapter.call(attendant)
  attendant.bell:signal()
end

function adapter.park(waiter, timeout)
  waiter.bell = waiter.bell or condition.new()
  waiter.bell:wait(finite(timeout))
end

function adapter.wake(waiter)
  waiter.bell:signal()
end

function adapter.thread(f)
  cqueues.running():wrap(f)
end

function adapter.attend(f)
  cqueues.running():wrap(f)
  return true
end

return adapter
