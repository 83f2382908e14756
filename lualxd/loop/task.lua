-- Tasks of the built-in scheduler: coroutines that are suspended while they wait.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local timers = require "lualxd.loop.timers"

local tasks = {}

-- Inside nginx `coroutine` is the request's own; tasks belong to no request (see loop/nginx.lua).
local create, yield = coroutine._create or coroutine.create, coroutine._yield or coroutine.yield
local resume, status = coroutine._resume or coroutine.resume, coroutine._status or coroutine.status

local ready, first, last = {}, 1, 0
local alive = {} -- luacheck: ignore 241 -- holds the tasks that haven't ended: what they wait for needn't
local current -- the task whose coroutine runs now, if one does
local depth = 0 -- of coroutines of tasks that were resumed inside of others

local DEEPEST = 32 -- each takes of the C stack, which Lua bounds by 200 calls

---@param f function must not raise
---@return table task
function tasks.new(f)
  local task = { thread = create(tasks.detached and tasks.detached(f) or f) }
  alive[task] = true
  return task
end

---The task that is running, unless a coroutine that it made itself is.
---@return table?
function tasks.running()
  if current and coroutine.running() == current.thread then
    return current
  end
end

---Runs a task until it waits again or ends.
---@param task table
---@param value any what its wait returns
function tasks.resume(task, value)
  local outer = current
  current, depth = task, depth + 1
  local ok, message = resume(task.thread, value)
  current, depth = outer, depth - 1
  local over = status(task.thread) == "dead"
  if over then
    alive[task] = nil
  end
  if not ok then
    error(debug.traceback(task.thread, tostring(message)), 0)
  end
  -- A task that yields by itself, not by waiting, lets the others have a turn.
  if not over and not task.waiting then
    tasks.make_ready(task)
  end
end

---@param task table
---@param value any what its wait returns
function tasks.make_ready(task, value)
  last = last + 1
  ready[last] = task
  task.value = value
end

---Runs a new task until its first wait; where tasks have begun one another too deep for that, in its turn.
---@param task table
function tasks.begin(task)
  if depth < DEEPEST then
    tasks.resume(task)
  else
    tasks.make_ready(task)
  end
end

local function remove(list, task)
  for index = 1, list and #list or 0 do
    if list[index] == task then
      table.remove(list, index)
      return
    end
  end
end

local function expired(task)
  remove(task.waiting.waiters, task)
  task.waiting, task.timer = nil, nil
  tasks.make_ready(task, false)
end

-- Where Lua can't suspend the task (a function of string.gsub or table.sort, say) that raises in it, and it waits for
-- nothing: nobody may wake it later, when it is somewhere else or dead.
local function parked(task, ok, result)
  if not ok then
    remove(task.waiting.waiters, task)
    if task.timer then
      timers.cancel(task.timer)
    end
    task.waiting, task.timer = nil, nil
    error(result, 0)
  end
  return result
end

---Suspends the running task until the condition is set.
---@param task table
---@param condition lualxd.condition
---@param deadline number?
---@return boolean set
function tasks.park(task, condition, deadline)
  local waiters = condition.waiters
  if waiters then
    waiters[#waiters + 1] = task
  else
    condition.waiters = { task }
  end
  task.waiting = condition
  if deadline then
    task.timer = timers.add(deadline, expired, task)
  end
  return parked(task, pcall(yield))
end

---A condition was set that the task waits for.
---@param task table
function tasks.wake(task)
  task.waiting = nil
  if task.timer then
    timers.cancel(task.timer)
    task.timer = nil
  end
  tasks.make_ready(task, true)
end

function tasks.any_ready()
  return first <= last
end

---Runs each task that is ready now once; those that become ready meanwhile have the next round.
function tasks.round()
  local stop = last
  -- A coroutine that blocks inside a task runs rounds of its own, so `first` may have moved.
  while first <= stop and first <= last do
    local task = ready[first]
    ready[first] = nil
    first = first + 1
    tasks.resume(task, task.value)
  end
  if first > last then
    first, last = 1, 0
  end
end

return tasks
