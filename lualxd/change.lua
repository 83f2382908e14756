-- A change under way: a flow (a task of the built-in scheduler) that sends what there is to send, starting at once, and
-- what finds out how that ends in the background.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local follow = require "lualxd.follow"
local http = require "lualxd.http"
local loop = require "lualxd.loop"

---@class lualxd.change what a flow works on
---@field scope lualxd.scope
---@field tried string what the change is, in words
---@field first table? the background operation, as the server first sent it
---@field latest table? and as it last did
---@field request string? method and path of what began it
---@field rider lualxd.rider? what is heard of it
---@field proof lualxd.proof? what tells its outcome should it vanish
local change = {}
change.__index = change

-- What a flow returns whose background operation is still under way.
local PENDING = {}

---@param scope lualxd.scope
---@param tried string
---@return lualxd.change
function change.new(scope, tried)
  return setmetatable({
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
  }, change)
end

-- Who waits for the end. Weak: one that was killed waits no more.
local WAITING = { __mode = "k" }

---@param token table of who waits for the end, until it is taken out of `waiting`
function change:count_in(token)
  self.waiting = self.waiting or setmetatable({}, WAITING)
  self.waiting[token] = true
end

---Tells how it ended.
---@param data any
---@param err lualxd.error?
function change:settle(data, err)
  self.data, self.err = data, err
  self.done = true
  loop.fire(self.accepted)
  loop.fire(self.ended)
end

---Runs the flow, in a task of its own. What goes on in the background then is known by its end.
---@param flow fun(change: lualxd.change): any, lualxd.error?
function change:run(flow)
  local ok, data, err = pcall(flow, self)
  if not ok then
    self:settle(nil, errors.is(data) and data or errors.new("failed", {
      tried = self.tried,
      message = tostring(data),
      cause = data,
    }))
  elseif data ~= PENDING then
    self:settle(data, err)
  end
  loop.fire(self.accepted)
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
      this:settle(not err and data or nil, err)
    elseif err then
      -- No end, but no way to learn of it now: those who wait are told, and may wait again.
      this.trouble = err
      local ended = this.ended
      this.ended = loop.condition(this.scope.link)
      loop.fire(ended)
    end
  end)
end

---News by events, which nobody had to ask for; nil: from now on they must be asked for.
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
    self:settle(not err and latest or nil, err)
  end
end

---Has the end found out, since somebody waits for it.
function change:see_to()
  local rider = self.rider
  if not rider or rider.owner ~= self or self.watchers or not feed.hears(self.scope.link, rider) then
    ensure_follower(self)
  end
end

return change
