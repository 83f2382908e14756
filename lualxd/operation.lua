-- The promise of a change. A change is a flow (a task of the built-in scheduler) that sends what there
-- is to send, starting at once; `wait` is the one place where one waits for it.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local follow = require "lualxd.follow"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local tasks = require "lualxd.loop.task"

local operation = {}

---Is called instead of a line on standard error when a change failed, nobody waited for it and its operation
---is collected. Set as `lxd.on_unwaited`.
---@type fun(err: lualxd.error)?
operation.on_unwaited = nil

---@class lualxd.change what a flow works on
---@field scope lualxd.scope
---@field tried string what the change is, in words
---@field first table? the background operation, as the server first sent it
---@field latest table? and as it last did
---@field request string? method and path of what began it
---@field rider lualxd.rider? what is heard of it
---@field proof lualxd.proof? what tells its outcome should it vanish
local change = {}
local change_meta = { __index = change }

-- What a flow returns whose background operation is still under way.
local PENDING = {}

---@class lualxd.operation
---@field id string? nil until the server gave one
local methods = {}
local meta = { __name = "lualxd.operation" }

function meta:__index(name)
  if name == "id" then
    local first = self._change.first
    return first and first.id
  end
  return methods[name]
end

function meta:__tostring()
  return "lualxd.operation: " .. self._change.tried .. " (" .. self:status() .. ")"
end

-- Who waits for the end. Weak: one that was killed waits no more.
local WAITING = { __mode = "k" }

local function count_in(this, token)
  this.waiting = this.waiting or setmetatable({}, WAITING)
  this.waiting[token] = true
end

local function settle(this, data, err)
  this.data, this.err = data, err
  this.done = true
  loop.fire(this.accepted)
  loop.fire(this.ended)
end

local function report(err)
  if operation.on_unwaited then
    local ok, problem = pcall(operation.on_unwaited, err)
    if not ok then
      io.stderr:write("lualxd: lxd.on_unwaited raised an error: ", tostring(problem), "\n")
    end
  elseif ngx and ngx.log then -- luacheck: read globals ngx
    ngx.log(ngx.ERR, "lualxd: nobody waited for a change that failed: ", tostring(err))
  else
    io.stderr:write("lualxd: nobody waited for a change that failed: ", tostring(err), "\n")
  end
end

---Starts a change.
---@param scope lualxd.scope
---@param tried string in words, for errors: `create container web`
---@param flow fun(change: lualxd.change): any, lualxd.error? returns what `wait` gives
---@return lualxd.operation
function operation.start(scope, tried, flow)
  local this = setmetatable({
    scope = scope,
    tried = tried,
    accepted = loop.condition(scope.link), -- the server has answered (or the change has failed)
    ended = loop.condition(scope.link),
    waiting = nil, -- who waits for the end
    waited = false, -- somebody has been told how it ended
    watchers = nil, -- progress functions
    first = nil,
    latest = nil,
    proof = nil,
    done = false,
    data = nil,
    err = nil,
  }, change_meta)
  loop.start(function()
    local task = tasks.running()
    local ok, data, err = pcall(flow, this)
    if not ok then
      settle(this, nil, errors.is(data) and data or errors.new("failed", {
        tried = tried,
        message = tostring(data),
        cause = data,
      }))
    elseif data ~= PENDING then
      settle(this, data, err)
    end
    loop.fire(this.accepted)
    loop.handed_over(task)
  end, scope.link)
  local op, pid = setmetatable({ _change = this }, meta), core.pid()
  op._collected = loop.on_collect(function()
    if this.done and this.err and not this.waited and core.pid() == pid then -- a child knows nothing of it
      pcall(report, this.err)
    end
  end)
  loop.arm() -- so that, when the state closes, what was left unsent is sent before this is collected
  return op
end

---Sends a request of the change and waits for the answer.
---@param method string
---@param path string
---@param settings lualxd.http_options?
---@return lualxd.answer? answer
---@return lualxd.error? err
function change:ask(method, path, settings)
  settings = settings or {}
  settings.tried = settings.tried or self.tried
  return http.ask(self.scope, method, path, settings)
end

---A function of the script's that a change calls; the change fails where it can't be called any more.
---@param tried string the change, in words
---@param f function
---@return function
function operation.later(tried, f)
  return loop.later(f, function()
    error(errors.new("cancelled", {
      tried = tried,
      message = "who gave a function for it was killed before that was called",
    }), 0)
  end)
end

local function keep(this, answer, proof)
  this.first, this.latest = answer.data, answer.data
  this.request = answer.request
  this.proof = proof
  if not feed.ended(answer.data) and answer.data.class ~= "token" then
    this.rider = feed.expect(this.scope.link, answer.data.id, answer.sent, this.tried)
  end
end

---Sends the request that is the change. What the server does in the background is waited for by `wait`, not here.
---@param method string
---@param path string
---@param settings lualxd.http_options?
---@param proof lualxd.proof
---@return any data
---@return lualxd.error? err
function change:send(method, path, settings, proof)
  local answer, err = self:ask(method, path, settings)
  return self:deliver(answer, err, proof)
end

---The last step of a flow whose request was sent otherwise: what its answer means to the change.
---@param answer lualxd.answer?
---@param err lualxd.error?
---@param proof lualxd.proof
---@return any data
---@return lualxd.error? err
function change:deliver(answer, err, proof)
  if not answer then
    return nil, err
  elseif answer.async then
    keep(self, answer, proof)
    local rider = self.rider
    if rider and not rider.owner then
      rider.owner = self
      if rider.over then -- that was told before the answer
        self:heard(rider.over)
      end
    end
    return PENDING
  end
  -- A result that is empty says that it worked, as `true` does.
  local data = answer.data
  if not data or type(data) == "table" and next(data) == nil then
    data = true
  end
  return data
end

---Sends a request and waits for what it does in the background, too: a step of several.
---@param method string
---@param path string
---@param settings lualxd.http_options?
---@param proof lualxd.proof
---@return any data
---@return lualxd.error? err
function change:complete(method, path, settings, proof)
  local answer, err = self:ask(method, path, settings)
  return self:finish(answer, err, proof)
end

---As `complete`, of a request that was sent otherwise.
function change:finish(answer, err, proof)
  if not answer or not answer.async then
    return answer and (answer.data or true), err
  end
  keep(self, answer, proof)
  local data, problem
  repeat
    local final
    data, problem, final = follow.operation(self.scope, answer.data, {
      tried = self.tried,
      request = self.request,
      proof = proof,
      progress = self.watchers ~= nil,
      rider = self.rider,
      wanted = function()
        return not self.done
      end,
      latest = function(latest)
        self:tell(latest)
      end,
    })
  until final or problem
  self:tell(data)
  if problem then
    return nil, problem
  end
  return data
end

local function progress_of(metadata)
  local progress = metadata.progress
  if type(progress) == "table" and type(progress.stage) == "string" then
    return {
      stage = progress.stage,
      percent = tonumber(progress.percent) or 0,
      speed = tonumber(progress.speed),
    }
  end
  -- LXD 2.0 has no `progress`, only `download_progress = "48%"`.
  for key, value in pairs(metadata) do
    local stage = type(key) == "string" and key:match("^(.*)_progress$")
    if stage and type(value) == "string" then
      return { stage = stage, percent = tonumber(value:match("(%d+)%%")) or 0 }
    end
  end
end

---Tells the progress functions.
---@param latest table? an operation's data
function change:tell(latest)
  if type(latest) ~= "table" then
    return
  end
  self.latest = latest
  if self.watchers and type(latest.metadata) == "table" then
    self:tell_progress(progress_of(latest.metadata))
  end
end

---@param progress { stage: string, percent: integer?, speed: integer? }?
function change:tell_progress(progress)
  local signature = progress and progress.stage .. tostring(progress.percent)
  if not progress or signature == self.told then
    return
  end
  self.told = signature
  for _, watcher in ipairs(self.watchers or {}) do
    local ok, problem = pcall(watcher, progress)
    if not ok then
      -- It must not take the change along; it is told of where the change is waited for.
      self.watcher_problem = self.watcher_problem or { problem }
    end
  end
end

-- One follower serves all that wait; it goes on while anybody does.
local function ensure_follower(this)
  if this.following or this.done then
    return
  end
  this.following = true
  this.trouble = nil
  loop.start(function()
    local ok, data, err, final = pcall(follow.operation, this.scope, this.first, {
      tried = this.tried,
      request = this.request,
      proof = this.proof,
      progress = this.watchers ~= nil,
      rider = this.rider,
      wanted = function()
        return not this.done and next(this.waiting) ~= nil
      end,
      latest = function(latest)
        this:tell(latest)
      end,
    })
    this.following = false
    if not ok then
      err = errors.new("failed", { tried = this.tried, message = tostring(data), cause = data })
      data, final = nil, false
    end
    if final then
      this:tell(data)
      settle(this, not err and data or nil, err)
    elseif err then
      -- No end, but no way to learn of it now: those who wait are told, and may wait again.
      this.trouble = err
      local ended = this.ended
      this.ended = loop.condition(this.scope.link)
      loop.fire(ended)
    end
  end)
end

local function timed_out(this)
  return nil, errors.new("timeout", {
    tried = this.tried,
    message = "not done in time",
    hint = "it goes on; one may wait for it again",
  })
end

-- News by events, which nobody had to ask for; nil: from now on they must be asked for.
function change:heard(latest)
  if self.done or self.following then
    return
  end
  self.latest = latest or self.latest
  local waited_for = self.waiting and next(self.waiting) ~= nil
  if waited_for and (self.watchers or not latest) then
    ensure_follower(self) -- functions that are told of progress don't hold up all others' news
  elseif self.rider.over then
    local err = follow.failure(latest, self)
    settle(self, not err and latest or nil, err)
  end
end

-- Has the end found out, since somebody waits for it.
local function see_to(this)
  local rider = this.rider
  if not rider or rider.owner ~= this or this.watchers or not feed.hears(this.scope.link, rider) then
    ensure_follower(this)
  end
end

---Waits for the end of the change.
---@param timeout number? seconds; none: as long as it takes
---@return any data the operation's final object, or the response's metadata, or `true`
---@return lualxd.error? err
function methods:wait(timeout)
  local this = self._change
  if timeout ~= nil then
    options.argument(timeout, "seconds", "operation:wait: timeout")
  end
  local deadline = timeout and core.now() + timeout
  if not loop.await(this.accepted, deadline) then
    return timed_out(this)
  end
  if not this.done and this.first.class == "token" then
    -- It stays until somebody uses the token: there is nothing to wait for.
    settle(this, this.first)
  end
  if not this.done then
    local token = {}
    count_in(this, token)
    local ended = this.ended -- of now: a follower that fails at once replaces it
    see_to(this)
    local came = loop.await(ended, deadline)
    this.waiting[token] = nil
    if not came then
      return timed_out(this)
    elseif not this.done then
      return nil, this.trouble
    end
  end
  this.waited = true
  if this.watcher_problem then
    local problem = this.watcher_problem[1]
    this.watcher_problem = nil
    error(problem, 0)
  end
  if this.err then
    return nil, this.err
  end
  return this.data
end

---Asks the server to give up the operation; waits for its answer.
---@return true?
---@return lualxd.error? err
function methods:cancel()
  local this = self._change
  loop.await(this.accepted)
  if this.done and not this.first then
    return nil, this.err or errors.new("state", {
      tried = "cancel: " .. this.tried,
      message = "it is already done",
    })
  end
  local answer, err = http.ask({ link = this.scope.link }, "DELETE", feed.path(this.first.id), {
    tried = "cancel: " .. this.tried,
  })
  if not answer then
    return nil, err
  end
  return true
end

---What is known of the change, without asking: LXD's words (`Running`, `Success`, `Failure`, …), `Pending` before
---the server has answered.
---@return string
function methods:status()
  local this = self._change
  if this.done then
    return this.err and (this.err.kind == "cancelled" and "Cancelled" or "Failure") or "Success"
  end
  return this.latest and this.latest.status or "Pending"
end

local function nothing() end

---Has a function called with the progress while something waits.
---@param f fun(progress: { stage: string, percent: integer?, speed: integer? })
---@return lualxd.operation self
function methods:progress(f)
  options.argument(f, "callable", "operation:progress: f")
  local this = self._change
  this.watchers = this.watchers or {}
  table.insert(this.watchers, loop.later(f, nothing))
  if this.latest then
    this:tell(this.latest)
  end
  return self
end

---Whether a value is an operation.
---@param value any
---@return boolean
function operation.is(value)
  return getmetatable(value) == meta
end

---An operation that the server has already given.
---@param scope lualxd.scope
---@param tried string
---@param answer lualxd.answer
---@param proof lualxd.proof
---@return lualxd.operation
function operation.given(scope, tried, answer, proof)
  return operation.start(scope, tried, function(this)
    return this:deliver(answer, nil, proof)
  end)
end

-- A function of its own, which has returned when who waits may be killed: in nginx its variables go with it.
local function start_seeing_to(ops)
  loop.start(function()
    for _, op in ipairs(ops) do
      loop.await(op._change.accepted)
      if not op._change.done and op._change.first.class ~= "token" then
        see_to(op._change)
      end
    end
  end)
end

---Waits for several operations, whatever fails.
---@param ops lualxd.operation[]
---@param timeout number? seconds, for all
---@return any[]? results indexed as `ops`
---@return lualxd.error? err of kind `many`, with `errors` and `results` indexed as `ops`
function operation.wait_all(ops, timeout)
  options.argument(ops, "table", "lxd.wait_all: operations")
  for index, op in pairs(ops) do
    -- One that `ipairs` doesn't come by would not be waited for.
    if index ~= "n" -- of table.pack
      and (not operation.is(op) or type(index) ~= "number" or index ~= 1 and ops[index - 1] == nil) then
      error("lxd.wait_all: operations[" .. tostring(index) .. "] is not an operation of a sequence", 2)
    end
  end
  if timeout ~= nil then
    options.argument(timeout, "seconds", "lxd.wait_all: timeout")
  end
  local deadline = timeout and core.now() + timeout
  local results, failed = {}, {}
  -- All are followed from the start, not one after the other.
  local token = {}
  for _, op in ipairs(ops) do
    count_in(op._change, token)
  end
  start_seeing_to(ops)
  for index, op in ipairs(ops) do
    local result, err = op:wait(deadline and math.max(0, deadline - core.now()))
    results[index], failed[index] = result, err
    op._change.waiting[token] = nil
  end
  if next(failed) ~= nil then
    return nil, errors.many(failed, results, #ops)
  end
  return results
end

return operation
