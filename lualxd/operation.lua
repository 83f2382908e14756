-- The promise of a change, as a script has it. `wait` is the one place where one waits for what it does.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local changes = require "lualxd.change"
local core = require "lualxd.core"
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local tasks = require "lualxd.loop.task"

local operation = {}

---Is called instead of a line on standard error when a change failed, nobody waited for it and its operation
---is collected. Set as `lxd.on_unwaited`.
---@type fun(err: lualxd.error)?
operation.on_unwaited = nil

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
  local this = changes.new(scope, tried)
  loop.start(function()
    local task = tasks.running()
    this:run(flow)
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

local function timed_out(this)
  return nil, errors.new("timeout", {
    tried = this.tried,
    message = "not done in time",
    hint = "it goes on; one may wait for it again",
  })
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
    this:settle(this.first)
  end
  if not this.done then
    local token = {}
    this:count_in(token)
    local ended = this.ended -- of now: a follower that fails at once replaces it
    this:see_to()
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
        op._change:see_to()
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
    op._change:count_in(token)
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
