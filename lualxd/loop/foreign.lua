-- Waiting in a loop that isn't ours. One coroutine drives: it waits in that loop for the poller's descriptor and steps.
-- Everybody else is parked, each on something of its own, until what they wait for fires.
--
-- Where the loop can start a coroutine, one that belongs to nobody drives, an attendant: it comes with the first who
-- waits and goes with the last, and whoever is killed takes nothing along but what was its own. Where all that is known
-- of a loop is how to wait in it, one of those who wait drives until it has what it waits for, then another; that
-- a driver was killed is found out by the parked, who look now and then.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local timers = require "lualxd.loop.timers"

local foreign = {}

---@class lualxd.adapter how to wait in one loop
---@field here fun(told: boolean): boolean whether the caller is a coroutine that this loop can suspend; `told`: by
---`connect` that this is the loop. Raises where the caller is in the loop and can't be suspended
---@field wait fun(fd: integer, timeout: number, attendant: table?) suspends the caller until `fd` is readable or the
---time has passed; may return early, and lets others run in any case
---@field call (fun(attendant: table))? ends an attendant's `wait`; where it is missing, the descriptor becomes
---readable, which of several attendants another may see
---@field park (fun(waiter: table, timeout: number))? suspends until `wake`; where it is missing, a descriptor is waited
---for
---@field wake (fun(waiter: table): boolean?)? of a waiter that is parked; true: by the attendant's next `wait`
---@field resumes boolean? `wake` needs `waiter.thread`: nothing else holds a coroutine that is parked
---@field thread (fun(f: function, this: table))? runs a function as a coroutine of the loop; `this` is for `gone`
---@field attend (fun(f: function): boolean)? runs a function that drives as a coroutine that belongs to nobody; false:
---it can't now
---@field which (fun(): any)? of several loops of this kind, the one that the caller is in
---@field gone (fun(this: table): boolean)? whether a parked waiter, or a `thread` that hasn't ended, was killed
---@field leaving (fun(): boolean)? whether the loop is to end, as soon as nobody waits in it any more
---@field flows boolean? work goes on in this loop when whoever began it has ended
---@field watch number? seconds after which the attendant looks up at the latest
---@field linger number? seconds that it stays when there is nothing to do
---@field term number? seconds after which another takes its place: what it has allocated is freed by its end

local FOREVER = math.huge

local poked = false -- the poller's descriptor is to be readable: whoever waits for it is wanted
local roused = false -- some were woken who haven't run yet

---@return boolean
function foreign.poked()
  return poked
end

----------------------------------------------------------------------------------------------------
-- Waiters

-- What the waiter waits for was fired.
local function rouse(waiter)
  waiter.fired = true
  roused = true
  if waiter.driving then
    poked = true
  elseif waiter.parked and waiter.wake(waiter) then
    poked = true
  end
end

-- Parking in a loop that can do no more than wait for a descriptor.
local wakers = {} -- that nobody uses, the longest unused first
local SPARE = 64 -- so many are kept
local SETTLED = 1 -- seconds until the loop has surely forgotten a descriptor: some close their own accounts later
local trimming = false

local function trim()
  local now = core.now()
  while #wakers > SPARE and now - wakers[1].since >= SETTLED do
    table.remove(wakers, 1).waker:close()
  end
  trimming = #wakers > SPARE
  if trimming then
    timers.add(now + SETTLED, trim)
  end
end

local function park_on_descriptor(waiter, timeout)
  local spare = table.remove(wakers)
  local waker = spare and spare.waker or assert(core.waker())
  waiter.waker = waker
  waker:set(timeout)
  waiter.adapter.wait(waker:fd(), timeout)
  waiter.waker = nil
  waker:set()
  wakers[#wakers + 1] = { waker = waker, since = core.now() }
  if #wakers > SPARE and not trimming then
    trim()
  end
end

local function wake_by_descriptor(waiter)
  if waiter.waker then
    waiter.waker:set(0)
  end
end

-- Of each waiter. Weak: a loop that drops a coroutine lets it be collected, with what it held.
local threads = setmetatable({}, { __mode = "kv" })

local function new_waiter(adapter, condition)
  local thread = coroutine.running()
  local waiter = {
    adapter = adapter,
    condition = condition,
    thread = adapter.resumes and thread,
    rouse = rouse,
    park = adapter.park or park_on_descriptor,
    wake = adapter.wake or wake_by_descriptor,
    since = core.now(),
    fired = false,
    parked = false,
    driving = false,
  }
  threads[waiter] = thread
  local waiters = condition.waiters
  if waiters then
    waiters[#waiters + 1] = waiter
  else
    condition.waiters = { waiter }
  end
  return waiter
end

local function leave(waiter)
  local waiters = waiter.condition.waiters
  for index = 1, waiters and #waiters or 0 do
    if waiters[index] == waiter then
      table.remove(waiters, index)
      return
    end
  end
end

local function left_until(deadline)
  return deadline and math.max(0, deadline - core.now()) or FOREVER
end

----------------------------------------------------------------------------------------------------
-- Coroutines of a loop that kills some

local forked = {} -- those that haven't ended

---Runs a function as a coroutine of the loop.
---@param adapter lualxd.adapter
---@param f function must not raise
---@param killed function is called when the coroutine is known to be killed before its end
function foreign.fork(adapter, f, killed)
  if not adapter.gone then
    adapter.thread(f)
    return
  end
  local this = { adapter = adapter, killed = killed, fired = false }
  forked[this] = true
  adapter.thread(function()
    f()
    forked[this] = nil
  end, this)
end

local function bury_forked()
  for this in pairs(forked) do
    if this.adapter.gone(this) then
      forked[this] = nil
      this.killed()
    end
  end
end

----------------------------------------------------------------------------------------------------
-- With an attendant

-- Seconds without a sign of life after which an attendant that looks up regularly counts as dead.
local SILENCE = 3

-- By the loop they are in. Who waits holds them, and that loop: nobody else does, or LuaJIT would keep a loop that was
-- dropped, and its descriptors.
local attendants = setmetatable({}, { __mode = "kv" })
local NOWHERE = {}

local BURIAL = 1 -- seconds after which the killed are looked for again, where the adapter doesn't say

-- Coroutine -> since when who was killed in it had waited: nginx has one serve several requests, one after another.
local killed = setmetatable({}, { __mode = "k" })

local function is_dead(waiter)
  local thread = threads[waiter]
  return not thread or coroutine.status(thread) == "dead"
end

-- Those who were killed wait no more.
local function bury(this, adapter)
  bury_forked()
  local gone = adapter.gone or is_dead
  for waiter in pairs(this.waiters) do
    -- Also one who was woken and killed before it ran.
    if waiter.parked and gone(waiter) then
      this.waiters[waiter] = nil
      local thread = threads[waiter]
      if thread then
        killed[thread] = waiter.since
      end
      leave(waiter)
      local condition = waiter.condition
      if condition.abandoned and not (condition.waiters and condition.waiters[1]) then
        condition:abandoned()
      end
    end
  end
end

---Whether what ran in a coroutine is known to have been killed since then, while it waited.
---@param thread thread
---@param since number of core.now()'s clock
---@return boolean
function foreign.was_killed(thread, since)
  for _, this in pairs(attendants) do
    for waiter in pairs(this.waiters) do
      if threads[waiter] == thread and waiter.parked and waiter.adapter.gone(waiter) then
        killed[thread] = waiter.since
      end
    end
  end
  return killed[thread] ~= nil and killed[thread] >= since
end

local function is_busy(loop, adapter, this)
  return next(this.waiters) ~= nil or adapter.flows and loop.flowing()
end

local function nothing() end

-- Has the poller's descriptor be readable in so many seconds: nginx logs a wait that ends by its time. The wait's own
-- end comes later, to be sure; much later, for nginx counts from when it last looked at the clock, which in a worker
-- that was kept busy is as long ago as that took.
local function look_up_in(this, seconds)
  local knock, at = this.knock, core.now() + seconds
  if not knock or not knock.call or knock.at > at then
    if knock then
      timers.cancel(knock)
    end
    this.knock = timers.add(at, nothing)
  end
  return seconds + 10
end

local function tend(loop, adapter, this)
  local started, buried, was_idle = core.now(), core.now(), false
  this.began = true
  while true do
    local idle = not is_busy(loop, adapter, this)
    if idle and was_idle or adapter.term and core.now() - started >= adapter.term then
      return
    end
    was_idle = idle
    local limit = idle and (adapter.linger or 0) or adapter.watch or roused and 0 or FOREVER
    roused = false
    if adapter.watch then
      limit = look_up_in(this, limit)
    end
    this.asleep = limit > 0
    adapter.wait(loop.pollfd(), limit, this)
    this.asleep, poked = false, false
    if attendants[this.place] ~= this then
      return
    end
    loop.turn()
    local now = core.now()
    this.seen = now
    if now - buried >= (adapter.watch or BURIAL) then
      buried = now
      bury(this, adapter)
      if adapter.leaving and adapter.leaving() then
        loop.leave()
      end
    end
  end
end

---Sees to it that something drives.
---@param loop table the hub
---@param adapter lualxd.adapter
---@param waiter table? for whom: it may begin at once, and goes where nobody waits
---@return table? attendant nil: there can't be one now
function foreign.attend(loop, adapter, waiter)
  local place = adapter.which and adapter.which() or NOWHERE
  local this, pid = attendants[place], core.pid()
  if this and this.pid == pid and (not adapter.watch or core.now() - this.seen < SILENCE) then
    if waiter then
      this.waiters[waiter] = true
    end
    return this
  end
  this = { place = place, pid = pid, seen = core.now(), waiters = this and this.pid == pid and this.waiters or {} }
  attendants[place] = this
  if waiter then
    this.waiters[waiter] = true
  end
  local started = adapter.attend(function()
    local ok, problem = pcall(tend, loop, adapter, this)
    if attendants[place] == this then
      attendants[place] = nil
      if is_busy(loop, adapter, this) then
        local heir = foreign.attend(loop, adapter)
        if heir then
          heir.waiters = this.waiters
        end
      end
    end
    if not ok then
      error(problem, 0)
    end
  end)
  if not started then
    attendants[place] = nil
    return nil
  end
  return this
end

----------------------------------------------------------------------------------------------------
-- With none

-- Seconds: a parked waiter looks this often, less often the more there are (all together some 40 times a second); a
-- driver looks up after this long at the latest.
local LOOK, SHARE, LOOK_SELDOM, SLICE = 0.25, 0.025, 2, 2

local turns = setmetatable({}, { __mode = "v" }) -- `driver`: the waiter that drives; weak, as `parked`
local parked = setmetatable({}, { __mode = "k" }) -- weak: a killed one may be collected
local count = 0 -- of `parked`, those included that were killed

local function drive(loop, waiter, timeout)
  turns.driver = waiter
  waiter.driving = true
  local ok, problem = pcall(waiter.adapter.wait, loop.pollfd(), math.min(timeout, SLICE))
  waiter.driving = false
  poked = false
  if ok then
    loop.turn()
  end
  return ok, problem
end

local function park(loop, waiter, timeout)
  local look = math.min(math.max(LOOK, count * SHARE), LOOK_SELDOM)
  parked[waiter] = true
  count = count + 1
  waiter.parked = true
  local ok, problem = pcall(waiter.park, waiter, math.min(timeout, look))
  waiter.parked = false
  count = count - 1
  parked[waiter] = nil
  if ok and not waiter.fired and turns.driver and loop.poller():wait(0) then
    -- News that the driver would long have taken, or is about to: to drive twice does no harm.
    turns.driver = waiter
    loop.turn()
  end
  return ok, problem
end

-- Has one of the parked drive.
local function hand_over()
  for waiter in pairs(parked) do
    if not is_dead(waiter) then
      waiter.wake(waiter)
      return
    end
  end
end

local function wait_by_turns(loop, waiter, deadline)
  local ok, problem
  repeat
    bury_forked()
    local left = left_until(deadline)
    if not turns.driver or turns.driver == waiter or is_dead(turns.driver) then
      ok, problem = drive(loop, waiter, left)
    else
      ok, problem = park(loop, waiter, left)
    end
  until not ok or waiter.fired or deadline and deadline <= core.now()
  if turns.driver == waiter then
    turns.driver = nil
  end
  if not turns.driver then
    hand_over()
  end
  return ok, problem
end

---Waits in the loop until the condition is set; the loop gets its turn in any case.
---@param loop table the hub
---@param adapter lualxd.adapter
---@param condition lualxd.condition
---@param deadline number?
---@return boolean set
function foreign.await(loop, adapter, condition, deadline)
  local waiter = new_waiter(adapter, condition)
  local ok, problem, unattended
  repeat
    local this = not unattended and adapter.attend and foreign.attend(loop, adapter, waiter)
    if not this then
      ok, problem = wait_by_turns(loop, waiter, deadline)
      break
    end
    waiter.parked = true
    loop.remind()
    -- It raises where Lua can't suspend the caller: in a function of string.gsub or table.sort, say.
    ok, problem = pcall(adapter.park, waiter, math.min(left_until(deadline), adapter.watch and SILENCE or FOREVER))
    waiter.parked = false
    this.waiters[waiter] = nil
    -- The loop may have no place for an attendant: nginx, when all timers that it allows run, maybe waiting as well.
    unattended = not this.began
    if this.asleep and next(this.waiters) == nil then -- it is to go
      if adapter.call then
        adapter.call(this)
      else
        poked = true
        loop.remind()
      end
    end
  until not ok or waiter.fired or deadline and deadline <= core.now()
  if not waiter.fired then
    leave(waiter)
  end
  if not ok then
    error(problem, 0)
  end
  return waiter.fired
end

return foreign
