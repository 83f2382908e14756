-- What became of a change whose operation vanished before anyone looked: LXD forgets an operation 5 s
-- after its end (lxd/operations/operations.go) and all of them when it restarts. Each proof looks at
-- the object that the change was about. A naive look lies: a creation that failed because
-- the object existed leaves an object as well, so creations are told by their time.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"
local http = require "lualxd.http"

local outcome = {}

---@alias lualxd.proof fun(first: table): boolean?, lualxd.error? true: it was done; nil, err: it
---wasn't, or can't be told

local function days_from_civil(year, month, day)
  -- The usual count of days since 1970-01-01 in the proleptic Gregorian calendar.
  if month <= 2 then
    year = year - 1
  end
  local era = math.floor(year / 400)
  local year_of_era = year - era * 400
  local day_of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1
  local day_of_era = year_of_era * 365 + math.floor(year_of_era / 4)
    - math.floor(year_of_era / 100) + day_of_year
  return era * 146097 + day_of_era - 719468
end

---A time as LXD writes it (RFC 3339, 0 to 9 digits of a fraction, any zone).
---@param text any
---@return number? seconds since 1970, whole
---@return number fraction of a second
---@return boolean precise there was a fraction
function outcome.time(text)
  if type(text) ~= "string" then
    return nil, 0, false
  end
  local year, month, day, hour, minute, second, fraction, zone =
    text:match("^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)(%.?%d*)(.*)$")
  if not year then
    return nil, 0, false
  end
  local seconds = days_from_civil(tonumber(year), tonumber(month), tonumber(day)) * 86400
    + tonumber(hour) * 3600 + tonumber(minute) * 60 + tonumber(second)
  local sign, hours, minutes = zone:match("^([+-])(%d%d):(%d%d)$")
  if sign then
    local offset = tonumber(hours) * 3600 + tonumber(minutes) * 60
    seconds = seconds - (sign == "+" and offset or -offset)
  elseif zone ~= "Z" then
    return nil, 0, false
  end
  return seconds, tonumber("0" .. fraction) or 0, #fraction > 1
end

-- Whether one time is not before another, as far as both were written.
local function not_before(time, other)
  local seconds, fraction, precise = outcome.time(time)
  local other_seconds, other_fraction, other_precise = outcome.time(other)
  if not seconds or not other_seconds then
    return nil
  end
  if seconds ~= other_seconds then
    return seconds > other_seconds
  end
  return not precise or not other_precise or fraction >= other_fraction
end

local function unknown(tried, why)
  return nil, errors.new("unknown_outcome", {
    tried = tried,
    message = "the operation ended and vanished from the server before anyone looked; " .. why,
  })
end

local function failed(tried, kind, why)
  return nil, errors.new(kind, {
    tried = tried,
    message = "the operation ended and vanished from the server before anyone looked; " .. why,
  })
end

-- The object's data; nil where it isn't there; nil, err where that can't be found out.
local function look(scope, path)
  local answer, err = http.ask(scope, "GET", path)
  if answer then
    return type(answer.data) == "table" and answer.data or {}
  elseif err.kind == "not_found" then
    return nil
  end
  return nil, err
end

---The object at `path` was made by this operation.
function outcome.created(scope, path, tried)
  return function(first)
    local object, err = look(scope, path)
    if err then
      return nil, err
    elseif not object then
      return failed(tried, "failed", "what it was to create isn't there")
    end
    local fresh = not_before(object.created_at, first.created_at)
    if fresh then
      return true
    elseif fresh == nil then
      return unknown(tried, "and nothing tells when the object was made")
    end
    return failed(tried, "exists", "and the object is older than it, so it existed already")
  end
end

---The object at `path` is gone (or another one has taken its place since).
function outcome.gone(scope, path, tried)
  return function(first)
    local object, err = look(scope, path)
    if err then
      return nil, err
    elseif not object or not_before(object.created_at, first.created_at) then
      return true
    end
    return failed(tried, "failed", "and the object is still there")
  end
end

---The instance at `path` has one of these statuses now.
---@param wanted table<string, boolean> status -> true; `Gone` where its absence counts
function outcome.status(scope, path, tried, wanted)
  return function()
    local object, err = look(scope, path)
    if err then
      return nil, err
    elseif not object then
      if wanted.Gone then
        return true
      end
      return failed(tried, "not_found", "and the instance is gone")
    elseif wanted[object.status] then
      return true
    end
    return failed(tried, "failed", "and the instance is " .. tostring(object.status))
  end
end

---The object has moved from one path to the other.
function outcome.moved(scope, from, to, tried)
  return function()
    local target, err = look(scope, to)
    if err then
      return nil, err
    end
    local source, source_err = look(scope, from)
    if source_err then
      return nil, source_err
    elseif target and not source then
      return true
    end
    return failed(tried, "failed", "and the object still has its old name")
  end
end

---There is an object at `path`, whose name says what is in it (an image's fingerprint).
function outcome.exists(scope, path, tried)
  return function()
    local object, err = look(scope, path)
    if err then
      return nil, err
    elseif object then
      return true
    end
    return failed(tried, "failed", "and the object isn't there")
  end
end

---Nothing about the object tells.
function outcome.unknown(tried)
  return function()
    return unknown(tried, "and the object can't tell what became of it")
  end
end

return outcome
