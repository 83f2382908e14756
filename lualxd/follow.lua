-- How an operation ends: `/wait` in slices, and the object itself where the operation has vanished.
-- Two things are never taken for the end: a wait that ran out of time, and a server that can't be reached.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local options = require "lualxd.options"

local follow = {}

-- Seconds that one `/wait` lasts at most. While others stand in line for a connection, turns are short, so that
-- an operation is looked at within the 5 s for which LXD remembers its end.
local SLICE, SLICE_IN_LINE = 5, 1

-- While progress is wanted, the operation is read this often (seconds).
local PROGRESS_PERIOD = 0.25

-- Waits hold a connection each; one is left free for everything else.
local function take_lane(link)
  while link.waits >= math.max(1, link.connections - 1) do
    local place = loop.condition()
    link.line[#link.line + 1] = place
    loop.await(place)
  end
  link.waits = link.waits + 1
end

local function leave_lane(link)
  link.waits = link.waits - 1
  local place = table.remove(link.line, 1)
  if place then
    loop.fire(place)
  end
end

---@param operation any
---@return boolean
local function ended(operation)
  return type(operation) == "table" and type(operation.status_code) == "number"
    and operation.status_code >= 200
end

---The error of an operation that has failed; nil of one that hasn't.
---@param operation table its final data
---@param settings { tried: string?, request: string? }
---@return lualxd.error?
function follow.failure(operation, settings)
  if operation.status_code == 200 then
    return nil
  end
  return errors.answer(operation.status_code, operation.err, {
    tried = settings.tried,
    request = settings.request,
    operation = operation,
  })
end

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
      local answer = http.ask(scope, "GET", path)
      if not answer then
        return
      end
      settings.latest(answer.data)
      loop.sleep(PROGRESS_PERIOD)
    end
  end)
end

---@class lualxd.follow_settings
---@field tried string?
---@field request string? method and path of what began the operation
---@field proof lualxd.proof what tells the outcome when the operation has vanished
---@field wanted fun(): boolean whether anybody still waits
---@field latest fun(operation: table) is given what the server last said
---@field progress boolean whether progress between start and end is wanted

---Waits for the end of an operation.
---@param scope lualxd.scope
---@param first table the operation as the change's answer had it
---@param settings lualxd.follow_settings
---@return table? data the operation's final object
---@return lualxd.error? err
---@return boolean final nothing will change this answer any more
function follow.operation(scope, first, settings)
  local link = scope.link
  local path = "/1.0/operations/" .. options.escape(first.id)
  if ended(first) then
    return first, follow.failure(first, settings), true
  end
  if settings.progress then
    watch_progress({ link = link }, path, settings)
  end
  local silent_since
  repeat
    take_lane(link)
    local slice = (#link.line > 0 or link.connections == 1) and SLICE_IN_LINE or SLICE
    -- Operations have no project of their own; the scope's would only be in the way.
    local answer, err = http.ask({ link = link }, "GET", path .. "/wait", {
      query = { timeout = slice },
      timeout = slice + link.timeout,
      tried = settings.tried,
    })
    leave_lane(link)
    local operation
    if answer then
      silent_since = nil
      operation = answer.data
    elseif err.kind == "not_found" then
      local data, problem = vanished(first, settings.proof)
      local unreachable = problem and (problem.kind == "connect" or problem.kind == "unavailable")
      return data, problem, not unreachable
    elseif err.kind == "connect" or err.kind == "unavailable" or err.kind == "timeout" then
      -- A restart of the server: it may be back in a moment.
      silent_since = silent_since or core.now()
      if not link.engine or core.now() - silent_since > link.timeout then
        return nil, err, false
      end
      loop.sleep(0.2)
    elseif err.code then
      -- From 5.15 on a failed operation, or a wait that ran out of time, is an error of `/wait`
      -- itself (lxd#12214, #18715): what the operation says counts.
      local look = http.ask({ link = link }, "GET", path)
      if not look then
        return nil, err, true
      end
      operation = look.data
    else
      return nil, err, false
    end
    if type(operation) == "table" then
      settings.latest(operation)
      if ended(operation) then
        return operation, follow.failure(operation, settings), true
      end
    elseif answer then
      return nil, errors.new("protocol", {
        tried = settings.tried,
        message = "the answer to a wait is not an operation",
      }), false
    end
  until not settings.wanted()
  return nil, nil, false
end

return follow
