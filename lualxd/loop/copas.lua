-- Waiting in copas. It knows sockets only: the attendant waits for the poller's descriptor as for one, and resumes
-- those whose time has come.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local copas = require "copas"
local core = require "lualxd.core"
local timers = require "lualxd.loop.timers"

local adapter = { resumes = true }

local ready = {} -- threads to be resumed

-- Copas 4 tells whether it runs. Before, a coroutine of a script that uses copas is taken for one of its threads.
function adapter.here(told)
  local thread, main = coroutine.running()
  return thread ~= nil and not main and (told or copas.running ~= false)
end

-- Before copas 4 there is no pause, but a coroutine may name the queue it goes to: this is none.
local nowhere = { insert = function() end, push = function() end }
local pause = copas.pauseforever or function()
  coroutine.yield({}, nowhere)
end
local resume = copas.wakeup or copas.addthread

local function resume_ready()
  local threads = ready
  ready = {}
  for index = 1, #threads do
    resume(threads[index])
  end
  return #threads > 0
end

-- What `socket.select` and `copas.receive` ask of a socket.
local function as_socket(fd)
  local asked = false
  return {
    getfd = function()
      return fd
    end,
    dirty = function()
      return false
    end,
    settimeout = function() end,
    close = function() end,
    receive = function()
      if asked then
        return ""
      end
      asked = true
      return nil, "timeout"
    end,
  }
end

-- For the attendant alone, which waits for ever or not at all.
function adapter.wait(fd, timeout)
  if not resume_ready() and timeout > 0 then
    copas.receive(as_socket(fd))
  end
end

function adapter.wake(waiter)
  if not waiter.woken then
    waiter.woken = true
    ready[#ready + 1] = waiter.thread
  end
  return true
end

function adapter.park(waiter, timeout)
  local timer = timeout < math.huge and timers.add(core.now() + timeout, adapter.wake, waiter)
  waiter.woken = false
  local ok, problem = pcall(pause)
  if timer then
    timers.cancel(timer)
  end
  if not ok then
    error(problem, 0)
  end
end

function adapter.thread(f)
  copas.addthread(f)
end

function adapter.attend(f)
  copas.addthread(f)
  return true
end

return adapter
