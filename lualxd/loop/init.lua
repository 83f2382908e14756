-- Waiting, for all of this Lua state: one poller below, and above it whoever waits. Code that has to
-- wait does so on a condition; which loop makes the time pass is decided here and nowhere else.
--
-- Whatever waits (a script, a task, later a foreign loop) drives everything: it steps the poller,
-- wakes whom the news concern and runs the tasks that are ready. So changes go on while anything waits.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local poll = require "lualxd.loop.poll"
local tasks = require "lualxd.loop.task"
local timers = require "lualxd.loop.timers"

local loop = {}

local poller -- opened by the first that needs it: `require "lualxd"` does no I/O
local news = {} -- filled by poller:step
local watched = {} -- request id -> condition
local flows = {} -- tasks whose work must be handed over before the script may end -> their owner
local flow_count = 0
local sentinel -- collected first when the Lua state closes, see `arm`

local DEFAULT_FLUSH = 30
local FOREVER = math.huge

---@class lualxd.condition something that one can wait for; `set` stays true once fired
---@field set boolean
---@field waiters table[]? tasks parked on it

---@return lualxd.condition
function loop.condition()
  return { set = false }
end

---The poller of this Lua state.
---@return lualxd.core.poller
function loop.poller()
  if not poller then
    poller = assert(core.poller())
  end
  return poller
end

---Wakes all who wait for the condition.
---@param condition lualxd.condition
function loop.fire(condition)
  condition.set = true
  local waiters = condition.waiters
  if waiters then
    condition.waiters = nil
    for index = 1, #waiters do
      tasks.wake(waiters[index], condition)
    end
  end
end

---News of a request fire this condition, until `unwatch`.
---@param id integer
---@param condition lualxd.condition
function loop.watch(id, condition)
  watched[id] = condition
  if flow_count > 0 then
    loop.arm()
  end
end

---@param id integer
function loop.unwatch(id)
  watched[id] = nil
end

-- Tells whom the news concern; waits for some, where `seconds` are given, as long at most.
local function step(seconds)
  local count = poller and poller:step(news, seconds) or 0
  for index = 1, count do
    local condition = watched[news[index]]
    news[index] = nil
    if condition then
      loop.fire(condition)
    end
  end
end

---News, timers, one round of the tasks that are ready.
---@param seconds number? to wait for news at most; nil: not at all
local function turn(seconds)
  step(seconds)
  timers.expire(core.now())
  tasks.round()
end
loop.turn = turn

---Seconds until `turn` has something to do even without news; nil: none will be due.
---@return number?
function loop.next_timeout()
  if tasks.any_ready() then
    return 0
  end
  local due = timers.next()
  return due and math.max(0, due - core.now())
end

-- Lets time pass until the condition is set, in a context that can't be suspended: the main program,
-- or a coroutine that the script made itself (whose caller then waits as well).
local function drive(condition, deadline)
  loop.poller()
  while not condition.set do
    local limit = 0
    if not tasks.any_ready() then
      local due = timers.next()
      due = due and deadline and math.min(due, deadline) or due or deadline
      limit = due and math.max(0, due - core.now()) or FOREVER
    end
    turn(limit)
    if not condition.set and deadline and deadline <= core.now() then
      return false
    end
  end
  return true
end

local forbidden -- why nothing may wait now, while something must not

---Calls a function that must not wait: if it does, that raises `why`.
---@param why string
---@param f function
---@param ... any
---@return any ...
function loop.without_waiting(why, f, ...)
  local outer = forbidden
  forbidden = why
  local function restore(ok, ...)
    forbidden = outer
    if not ok then
      error((...), 0)
    end
    return ...
  end
  return restore(pcall(f, ...))
end

---Waits until the condition is set: a task is suspended, anything else drives.
---@param condition lualxd.condition
---@param deadline number? of core.now()'s clock
---@return boolean set false when the deadline came first
function loop.await(condition, deadline)
  if forbidden then
    error(forbidden, 0)
  elseif condition.set then
    return true
  end
  local task = tasks.running()
  if task then
    return tasks.park(task, condition, deadline)
  end
  return drive(condition, deadline)
end

---A new task. It runs until its first wait before this returns.
---@param f function runs in the task; must not raise
---@param owner any? given for a flow: work that must be handed over before the script may end (or `owner`
---is closed, see `flush`); until `loop.handed_over`
---@return table task
function loop.start(f, owner)
  local task = tasks.new(f)
  if owner then
    flows[task] = owner
    flow_count = flow_count + 1
    loop.arm()
  end
  tasks.resume(task)
  return task
end

---Tells that a flow has handed its work to the server, or has ended.
---@param task table
function loop.handed_over(task)
  if flows[task] then
    flows[task] = nil
    flow_count = flow_count - 1
  end
end

local function pending(owner)
  for _, of in pairs(flows) do
    if owner == nil or of == owner then
      return true
    end
  end
  return false
end

---Lets the flows of an owner (all, if nil) hand over their work.
---@param owner any?
---@param timeout number seconds
function loop.flush(owner, timeout)
  local deadline = core.now() + timeout
  while pending(owner) do
    local now = core.now()
    if now >= deadline then
      return
    end
    -- No flow tells when it is done, so wake up with every piece of news.
    turn()
    if pending(owner) and not tasks.any_ready() then
      local due = timers.next() or deadline
      poll.wait(loop.poller(), math.max(0, math.min(due, deadline) - now))
    end
  end
end

-- A userdata (LuaJIT and 5.1 finalize nothing else) or a table whose collection calls `f`.
local function on_collect(f)
  if newproxy then
    local proxy = newproxy(true)
    getmetatable(proxy).__gc = f
    return proxy
  end
  return setmetatable({}, { __gc = f })
end
loop.on_collect = on_collect

---When a Lua state closes, finalizers run newest first. A sentinel made after every request of a flow
---therefore runs while all of them are still alive, and sends what the script left unsent.
---LuaJIT (2.1.0-beta3) now and then loops for ever when compiled code runs in a finalizer of lua_close, so lualxd's
---modules aren't compiled; they mostly call C, which isn't either.
function loop.arm()
  local pid = core.pid()
  local this
  this = on_collect(function()
    if this == sentinel and flow_count > 0 and core.pid() == pid then
      pcall(loop.flush, nil, loop.flush_timeout or DEFAULT_FLUSH)
    end
  end)
  sentinel = this
end

---Suspends the caller for some seconds; everything else goes on.
---@param seconds number
function loop.sleep(seconds)
  loop.await(loop.condition(), core.now() + seconds)
end

return loop
