-- Waiting, for all of this Lua state: one poller below, and above it whoever waits. Code that has to
-- wait does so on a condition; which loop makes the time pass is decided here and nowhere else.
--
-- Whatever waits (a script, a task, a coroutine of a foreign loop) drives everything: it steps the poller,
-- wakes whom the news concern and runs the tasks that are ready. So changes go on while anything waits.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local foreign = require "lualxd.loop.foreign"
local tasks = require "lualxd.loop.task"
local timers = require "lualxd.loop.timers"
local which = require "lualxd.loop.which"

local loop = {}

local poller -- opened by the first that needs it: `require "lualxd"` does no I/O
local news = {} -- filled by poller:step
-- Request id -> condition. Weak: whoever waits for a request holds it, and when a foreign loop drops a
-- coroutine that waits, its request goes with it.
local watched = setmetatable({}, { __mode = "v" })
local flows = {} -- tasks whose work must be handed over before the script may end -> their owner
local flow_count = 0
local next_handover = nil -- fired when a flow has handed over its work
local shown = false -- a foreign loop waits for the poller's descriptor
local turning = false -- `turn` is under way; it reminds at its end
local alarm -- what the poller was last told by `remind`
local sentinel -- collected first when the Lua state closes, see `arm`

local breathed = 0 -- when somebody last did, by core.now's clock

local BREATH = 0.005 -- seconds for which others may be kept from their turn
local DEFAULT_FLUSH = 30
local FOREVER = math.huge

---@class lualxd.condition something that one can wait for; `set` stays true once fired
---@field set boolean
---@field link { loop: lualxd.adapter? }? of a client that was told which loop it is in
---@field waiters table[]? who is parked on it: tasks, and waiters in foreign loops
---@field abandoned fun(self)? called when the last who waited for it, in a foreign loop, is known to be killed

---@param link { loop: lualxd.adapter? }? the client's that it is about
---@return lualxd.condition
function loop.condition(link)
  return { set = false, link = link }
end

-- Has the poller's descriptor tell a foreign loop also of what isn't the core's: timers, tasks.
function loop.remind()
  if not shown or turning then
    return
  end
  local at
  if tasks.any_ready() or foreign.poked() then
    at = 0
  else
    at = timers.next()
  end
  if at ~= alarm then
    alarm = at
    poller:alarm(at)
  end
end

timers.on_earlier = loop.remind

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
      local waiter = waiters[index]
      if waiter.rouse then
        waiter:rouse()
      else
        tasks.wake(waiter)
      end
    end
    loop.remind()
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

local forbidden -- why whoever runs now must not wait, where it mustn't

local function turn_once(seconds)
  step(seconds)
  timers.expire(core.now())
  tasks.round()
end

---News, timers, one round of the tasks that are ready.
---@param seconds number? to wait for news at most; nil: not at all
local function turn(seconds)
  local outer, why = turning, forbidden
  turning, forbidden = true, nil
  local ok, problem = pcall(turn_once, seconds)
  turning, forbidden = outer, why
  loop.remind()
  if not ok then
    error(problem, 0)
  end
end
loop.turn = turn

---The poller's descriptor, for a foreign loop: readable when `turn` has something to do.
---@return integer
function loop.pollfd()
  local fd = loop.poller():pollfd()
  if not shown then
    shown = true
    loop.remind()
  end
  return fd
end

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

---Raises where the caller mustn't wait: before it is known whether it will have to, lest an answer that is there at
---once let pass what then fails another time.
---@param link { loop: lualxd.adapter? } of the client that is asked
function loop.admit(link)
  if forbidden then
    error(forbidden, 0)
  elseif not tasks.running() then
    which.here(link.loop)
  end
end

---Waits until the condition is set: a task is suspended, a coroutine of a foreign loop waits in that loop,
---anything else drives.
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
  local link = condition.link
  local adapter = which.here(link and link.loop)
  if adapter then
    return foreign.await(loop, adapter, condition, deadline)
  end
  return drive(condition, deadline)
end

---Gives all others a turn: for whoever got an answer without having had to wait for it. Not each time: in some loops
---the shortest wait that lets everybody else run is a millisecond.
---@param link { loop: lualxd.adapter? }
function loop.breathe(link)
  local now = core.now()
  if now - breathed >= BREATH and not forbidden and (tasks.running() or which.here(link.loop)) then
    breathed = now
    loop.await(loop.condition(link), now)
  end
end

---What tells the running task or coroutine of a foreign loop from others; nil in the main program.
---@return any
function loop.identity()
  local task = tasks.running()
  if task then
    return task
  end
  local thread, main = coroutine.running()
  return not main and thread or nil
end

---A new task. It runs until its first wait before this returns (see `tasks.begin`).
---@param f function runs in the task; must not raise
---@param owner any? given for a flow: work that must be handed over before the script may end (or `owner`
---is closed, see `flush`); until `loop.handed_over`
---@return table task
function loop.start(f, owner)
  local task = tasks.new(f)
  if owner then
    task.pid = core.pid()
    flows[task] = owner
    flow_count = flow_count + 1
    loop.arm()
  end
  local why = forbidden -- which is for the caller
  forbidden = nil
  local ok, problem = pcall(tasks.begin, task)
  forbidden = why
  loop.remind()
  if not ok then
    error(problem, 0)
  end
  if owner and flows[task] then
    local adapter = which.flowing()
    if adapter then
      foreign.attend(loop, adapter)
    end
  end
  return task
end

---Runs a script's function beside the caller: in a foreign loop as one of that loop's own coroutines, so that it may
---use that loop; otherwise as a task.
---@param f function must not raise
---@param killed function is called when that loop has killed it before its end
---@param link { loop: lualxd.adapter? }? the client's
function loop.fork(f, killed, link)
  local adapter = not tasks.running() and which.here(link and link.loop)
  if adapter and adapter.thread then
    foreign.fork(adapter, f, killed)
  else
    loop.start(f)
  end
end

---Tells that a flow has handed its work to the server, or has ended.
---@param task table
function loop.handed_over(task)
  if flows[task] then
    flows[task] = nil
    flow_count = flow_count - 1
    if next_handover then
      local condition = next_handover
      next_handover = nil
      loop.fire(condition)
    end
  end
end

---A function of the script's that a flow calls later, maybe when the loop has killed who gave it: its variables went
---with that, in nginx, and it would work with others.
---@param f function
---@param refuse function is called instead of it then
---@return function
function loop.later(f, refuse)
  local adapter = not tasks.running() and which.flowing()
  local thread, now = coroutine.running(), core.now()
  if not adapter or not thread then
    return f
  end
  return function(...)
    if foreign.was_killed(thread, now) then
      return refuse()
    end
    return f(...)
  end
end

---@return boolean whether the caller is a flow that another process began, of which this one is a child
function loop.inherited()
  local task = tasks.running()
  return task ~= nil and task.pid ~= nil and task.pid ~= core.pid()
end

---@return boolean whether some work isn't handed over
function loop.flowing()
  return flow_count > 0
end

local function pending(owner)
  for _, of in pairs(flows) do
    if of == owner then
      return true
    end
  end
  return false
end

---Lets the flows of an owner hand over their work.
---@param owner any
---@param timeout number seconds
---@param finalizing boolean? the caller is a finalizer, which can't be suspended
function loop.flush(owner, timeout, finalizing)
  local deadline = core.now() + timeout
  while pending(owner) and core.now() < deadline do
    next_handover = next_handover or loop.condition(owner)
    if finalizing then
      drive(next_handover, deadline)
    else
      loop.await(next_handover, deadline)
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

-- Lets every client's flows hand over their work, each for as long as its requests may be without progress.
local function flush_all()
  local started, owners = core.now(), {}
  for _, owner in pairs(flows) do
    owners[owner] = owner.timeout or DEFAULT_FLUSH
  end
  local list = {}
  for owner in pairs(owners) do
    list[#list + 1] = owner
  end
  table.sort(list, function(a, b)
    return owners[a] < owners[b]
  end)
  for _, owner in ipairs(list) do
    loop.flush(owner, started + owners[owner] - core.now(), true)
  end
end

local parting = setmetatable({}, { __mode = "k" }) -- what ends when the process is to end -> how

---Has something ended, which otherwise never ends by itself, when the loop that it is waited for in is to end.
---@param what table
---@param f fun(what: table)
function loop.on_leaving(what, f)
  parting[what] = f
end

---The loop is to end as soon as nobody waits in it any more.
function loop.leave()
  local list = {}
  for what in pairs(parting) do
    list[#list + 1] = what
  end
  for _, what in ipairs(list) do
    local f = parting[what]
    parting[what] = nil
    f(what)
  end
end

---When a Lua state closes, finalizers run newest first. A sentinel made after every request of a flow
---therefore runs while all of them are still alive, and sends what the script left unsent.
---LuaJIT (2.1.0-beta3) now and then loops for ever when compiled code runs in a finalizer of lua_close, so lualxd's
---modules aren't compiled; they mostly call C, which isn't either.
function loop.arm()
  local pid = core.pid()
  local this
  this = on_collect(function()
    if this == sentinel and flow_count > 0 and core.pid() == pid then
      pcall(flush_all)
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
