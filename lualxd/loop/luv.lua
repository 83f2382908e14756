-- Waiting in luv: a coroutine yields and a callback of libuv resumes it. Which coroutines do so can't be told but by
-- `uv.run` being under way, or by the script (`loop = "luv"`).
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
if not package.loaded.luv and coroutine.running() and not select(2, coroutine.running()) then
  error("loop luv: require \"luv\" in the main program first: it calls back in the coroutine that loads it", 0)
end
local uv = require "luv"

local adapter = { resumes = true }

local LONGEST = 2 ^ 31 -- milliseconds
local TICK = 0.001 -- seconds: the next turn of the loop

local function milliseconds(timeout)
  return math.floor(math.min(timeout * 1000 + 0.999, LONGEST))
end

local depth, DEEPEST = 0, 32 -- of coroutines that were resumed inside of others: Lua bounds them by its C stack

-- An error that nobody catches goes where luv's own do. A coroutine that was killed meanwhile waits no more.
local function resume(thread, ...)
  if coroutine.status(thread) == "dead" then
    return
  end
  depth = depth + 1
  local ok, problem = coroutine.resume(thread, ...)
  depth = depth - 1
  if not ok then
    error(debug.traceback(thread, tostring(problem)), 0)
  end
end

function adapter.here(told)
  local thread, main = coroutine.running()
  return thread ~= nil and not main and (told or uv.loop_mode() ~= nil)
end

function adapter.wait(fd, timeout)
  local thread, over = coroutine.running(), false
  local poll, timer = assert(uv.new_poll(fd)), uv.new_timer()
  local function back()
    if not over then
      over = true
      poll:close()
      timer:close()
      resume(thread)
    end
  end
  poll:start("r", back)
  if timeout < math.huge then
    timer:start(milliseconds(timeout), 0, back)
  end
  coroutine.yield()
end

local function start(waiter, timeout)
  local timer, thread = waiter.timer, waiter.thread
  timer:stop()
  timer:start(milliseconds(timeout), 0, function()
    timer:stop()
    resume(thread)
  end)
end

function adapter.park(waiter, timeout)
  waiter.timer = uv.new_timer()
  if timeout < math.huge then
    -- A timer that is due at once is called in the same turn of the loop, and one that this starts as well: who sleeps
    -- for no time again and again would keep the loop from everything else.
    start(waiter, math.max(timeout, TICK))
  end
  local ok, problem = pcall(coroutine.yield)
  waiter.timer:close()
  if not ok then
    error(problem, 0)
  end
end

function adapter.wake(waiter)
  start(waiter, 0)
end

function adapter.thread(f)
  if depth < DEEPEST then
    resume(coroutine.create(f))
    return
  end
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    resume(coroutine.create(f))
  end)
end

function adapter.attend(f)
  resume(coroutine.create(f))
  return true
end

return adapter
