-- How an operation ends: by the events of all operations once several are waited for, else by `/wait` in slices, and
-- by the object itself where the operation has vanished.
-- Two things are never taken for the end: a wait that ran out of time, and a server that can't be reached.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local http = require "lualxd.http"
local loop = require "lualxd.loop"

local follow = {}

-- Seconds that one `/wait` lasts at most. While others stand in line for a connection, turns are short, so that
-- an operation is looked at within the 5 s for which LXD remembers its end.
local SLICE, SLICE_IN_LINE = 5, 1

-- While progress is wanted, the operation is read this often (seconds).
local PROGRESS_PERIOD = 0.25

-- What an error may tell of an operation. The metadata of one with WebSockets holds their secrets (and the environment
-- of a command), that of a token the token's.
local function without_secrets(operation)
  if operation.class ~= "websocket" and operation.class ~= "token" then
    return operation
  end
  local copy = {}
  for key, value in pairs(operation) do
    copy[key] = value
  end
  local metadata = operation.metadata
  copy.metadata = { ["return"] = type(metadata) == "table" and metadata["return"] or nil }
  return copy
end

---The error of an operation that has failed; nil of one that hasn't.
---@param operation table its final data
---@param settings { tried: string?, request: string? }
---@return lualxd.error?
function follow.failure(operation, settings)
  if operation.status_code == 200 then
    return nil
  end
  return errors.answer(operation.status_code, type(operation.err) == "string" and operation.err or nil, {
    tried = settings.tried,
    request = settings.request,
    operation = without_secrets(operation),
  })
end

-- Whether an error says nothing but that the server couldn't be asked: the next wait asks again.
local UNASKED = { connect = true, unavailable = true, timeout = true, cancelled = true }

local function vanished(first, proof)
  local done, err = proof(first)
  if not done then
    return nil, err
  end
  local data = {}
  for key, value in pairs(first) do
    data[key] = value
  end
  data.status, data.status_code = "Success", 200
  return data
end

-- Reads the operation again and again while somebody else waits for its end.
local function watch_progress(scope, path, settings)
  loop.start(function()
    while settings.wanted() do
      if not feed.since(scope.link) then
        local answer = http.ask(scope, "GET", path)
        if not answer then
          return
        end
        settings.latest(answer.data)
      end
      loop.sleep(PROGRESS_PERIOD)
    end
  end)
end

-- One `/wait`. Nothing: somebody else has opened the events meanwhile.
local function wait_by_request(link, path, tried)
  local function needless()
    return feed.since(link) ~= nil
  end
  if not link.waits:take(needless) then
    return nil
  end
  local slice = (link.waits:awaited() or link.connections == 1) and SLICE_IN_LINE or SLICE
  -- Operations have no project of their own; the scope's would only be in the way.
  local answer, err = http.ask({ link = link }, "GET", path .. "/wait", {
    query = { timeout = slice },
    timeout = slice + link.timeout,
    tried = tried,
  })
  link.waits:give()
  return answer, err
end

-- The next news: an answer, an error, or nothing (the time is over, or the connection is lost).
local function wait_for_news(link, path, rider)
  if rider.gone then
    return nil, rider.gone
  elseif not feed.since(link) then
    return wait_by_request(link, path, rider.tried)
  elseif not feed.hears(link, rider) or core.now() > rider.from + feed.LOOK then
    return feed.look(link, rider)
  end
  rider.set, rider.data = false, nil
  if loop.await(rider, core.now() + SLICE) and rider.data then
    return { data = rider.data }
  end
end

---@class lualxd.follow_settings
---@field tried string?
---@field request string? method and path of what began the operation
---@field proof lualxd.proof what tells the outcome when the operation has vanished
---@field wanted fun(): boolean whether anybody still waits
---@field latest fun(operation: table) is given what the server last said
---@field progress boolean whether progress between start and end is wanted
---@field rider lualxd.rider? what is heard of it; only one that had already ended has none

---Waits for the end of an operation.
---@param scope lualxd.scope
---@param first table the operation as the change's answer had it
---@param settings lualxd.follow_settings
---@return table? data the operation's final object
---@return lualxd.error? err
---@return boolean final nothing will change this answer any more
function follow.operation(scope, first, settings)
  local link = scope.link
  if feed.ended(first) then
    return first, follow.failure(first, settings), true
  end
  local path = feed.path(first.id)
  local rider = settings.rider
  if settings.progress then
    watch_progress({ link = link }, path, settings)
  end
  local silent_since
  rider.asked = true
  local function over(data, err, final)
    rider.asked = false
    if final then
      feed.leave(link, rider)
    else
      feed.attend(link, rider.id)
    end
    return data, err, final
  end
  repeat
    local answer, err
    if not rider.over then
      answer, err = wait_for_news(link, path, rider)
    end
    if rider.over then -- or heard of while it was asked for in vain
      answer, err = { data = rider.over }, nil
    end
    local operation
    if answer then
      silent_since = nil
      operation = answer.data
    elseif not err then
      operation = nil
    elseif err.kind == "not_found" then
      local data, problem = vanished(first, settings.proof)
      return over(data, problem, not (problem and UNASKED[problem.kind]))
    elseif err.kind == "connect" or err.kind == "unavailable" or err.kind == "timeout" then
      -- A restart of the server: it may be back in a moment.
      silent_since = silent_since or core.now()
      if not link.engine or core.now() - silent_since > link.timeout then
        return over(nil, err, false)
      end
      loop.sleep(0.2)
    elseif err.code then
      -- From 5.15 on a failed operation, or a wait that ran out of time, is an error of `/wait`
      -- itself (lxd#12214, #18715): what the operation says counts.
      local look, problem = http.ask({ link = link }, "GET", path)
      if not look then
        return over(nil, err, not UNASKED[problem.kind])
      end
      operation = look.data
    else
      return over(nil, err, false)
    end
    if type(operation) == "table" then
      settings.latest(operation)
      if feed.ended(operation) then
        return over(operation, follow.failure(operation, settings), true)
      end
    elseif answer then
      return over(nil, errors.new("protocol", {
        tried = settings.tried,
        message = "the answer to a wait is not an operation",
      }), false)
    end
  until not settings.wanted()
  return over(nil, nil, false)
end

return follow
