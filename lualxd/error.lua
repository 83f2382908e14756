-- Errors of the world: tables that `nil, err` carries. `kind` is for programs, `tostring` for people.
-- LXD 5.0 answers many client mistakes with 500 and all background failures with a bare text, so a
-- kind comes from the text first and from the HTTP status where the text says nothing.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = {}

---@alias lualxd.error_kind
---| "not_found"
---| "exists"
---| "conflict" # it changed since the ETag was read
---| "in_use"
---| "busy" # try again in a moment
---| "state" # the object isn't in the state that this needs
---| "invalid"
---| "untrusted" # the server doesn't trust this client
---| "forbidden"
---| "unsupported" # the server lacks `extension`
---| "unavailable"
---| "timeout"
---| "cancelled"
---| "connect"
---| "tls"
---| "protocol" # the server talks nonsense
---| "failed" # anything else
---| "unknown_outcome" # it can't be known whether the change was made
---| "many" # of `wait_all`, `map`, `apply`

---@class lualxd.error
---@field kind lualxd.error_kind
---@field message string the server's, the system's or lualxd's words
---@field code integer? HTTP status (of an operation that failed in the background: the status in it)
---@field request string? method and path, without secrets
---@field tried string? what was tried, in words: `create container web`
---@field hint string? what to do about it
---@field extension string? of `unsupported`: the API extension that the server lacks
---@field certificate string? of `tls`: the certificate of a server that was refused, as PEM text
---@field fingerprint string? of `tls`: its SHA-256
---@field errors table? of `many`: indexed as the input, of `apply` by a step's id; of an `invalid` declaration: each
---with `path` and `message`
---@field results table? of `many`: what did succeed, indexed as the input
---@field report lualxd.reconcile.report? of `apply`
---@field result table? of a command: what there was of its result
---@field operation table? of a failed operation: its last data
---@field cause any? of `failed`: what a function of the script raised
local meta = { __name = "lualxd.error" }

-- Each text as LXD 5.0.2 answered it (or as its source has it), the first that matches decides.
local TEXTS = {
  -- A device that fails to start names what it misses; the instance itself is there.
  { "^Failed to start device", "failed" },
  { "^Failed starting device", "failed" },
  { "ETag doesn't match", "conflict" },
  { "already exists", "exists" },
  { "exists already", "exists" },
  { "^sftp: .*file exists", "exists" },
  { "already in trust store", "exists" },
  { "^Client is already trusted", "exists" },
  { "[Nn]ame .- already in use", "exists" },
  { "busy running", "busy" },
  { "non%-reusable operation", "busy" },
  { "database is locked", "busy" },
  -- A snapshot of the instance is being made or deleted by somebody else.
  { "snapshot record count doesn't match", "busy" },
  { "in use", "in_use" },
  { "^Only empty projects", "in_use" },
  { "already running", "state" },
  { "already stopped", "state" },
  { "already frozen", "state" },
  { "isn't running", "state" },
  -- LXD's helper for the files of an instance ends when nobody used it for a while, and for a moment nobody can
  -- (5.0.2, tried): nothing was done.
  { "forkfile%.sock: connect: ", "unavailable" },
  { "is not running", "state" },
  { "is running", "state" },
  { "is frozen", "state" },
  { "not frozen", "state" },
  { "[Rr]enaming of running", "state" },
  { "export a running instance", "state" },
  { "has no existing state", "state" },
  { "^Only running operations", "state" },
  { "Invalid config", "invalid" },
  { "Unknown configuration key", "invalid" },
  { "^Unsupported compression", "invalid" },
  { "isn't a supported event type", "invalid" },
  { "^Invalid ", "invalid" },
  { ": Invalid ", "invalid" },
  { "^Name is required", "invalid" },
  { "^Name must be ", "invalid" },
  { "^Name can", "invalid" },
  { "name cannot contain ", "invalid" },
  { "names may not contain ", "invalid" },
  { "^Unknown driver", "invalid" },
  { "^sftp: .*is a directory", "invalid" },
  { "^sftp: .*not a directory", "invalid" },
  { "^sftp: .*file name too long", "invalid" },
  { "not found", "not_found" },
  { "^Query affected 0 rows", "not_found" },
  { "doesn't exist", "not_found" },
  { "does not exist", "not_found" },
  { "Image not provided for instance creation", "not_found" },
  { "[Nn]o such object", "not_found" },
  { "not authori[sz]ed", "forbidden" },
  { "LXD is shutting down", "unavailable" },
  { "missing the required", "unsupported" },
}

local CODES = {
  [400] = "invalid",
  [401] = "cancelled", -- an operation's status_code; LXD never answers HTTP 401
  [403] = "forbidden",
  [404] = "not_found",
  [409] = "exists",
  [412] = "conflict",
  [423] = "busy",
  [501] = "unsupported",
  [502] = "unavailable",
  [503] = "unavailable",
  [504] = "unavailable",
}

-- What to do, where a person can do something. Texts beat kinds.
local HINTS_BY_TEXT = {
  { "^Instance is running", "stop it first, or delete it with { force = true }" },
  { "[Rr]enaming of running", "stop it first" },
  { "export a running instance", "stop it first" },
  { "^Instance is not running", "start it first" },
  { "^Failed shutting down instance", "it was asked to, and goes on; { force = true } doesn't ask" },
  { "No root device could be found", "it, or one of its profiles, needs a disk whose path is /" },
  { "isn't listening on network", "its core.https_address says where it listens, as in :8443" },
  { "^Image alias not found", "see client.images.aliases:names()" },
  { "^Image not provided", "no image with this fingerprint is on the server" },
}

local HINTS = {
  conflict = "somebody changed it meanwhile; read it again and repeat the change",
  busy = "try again in a moment",
  unknown_outcome = "look at the object before you try again",
  untrusted = "the server doesn't trust this client yet; join it with a token"
    .. " (lxc config trust add) or a password",
}

local KINDS = {}
for kind in ([[not_found exists conflict in_use busy state invalid untrusted forbidden unsupported
    unavailable timeout cancelled connect tls protocol failed unknown_outcome many]]):gmatch("%S+") do
  KINDS[kind] = true
end

-- A name of 10,000 bytes is one, but nobody reads it.
local function shortened(text, limit)
  if #text <= limit then
    return text
  end
  return text:sub(1, limit - 30) .. " ... " .. text:sub(-25)
end

function meta.__tostring(err)
  local text = err.message or err.kind
  if not err.errors then -- a list of mistakes stays whole
    text = shortened(text, 1000)
  end
  if err.tried then
    text = shortened(err.tried, 100) .. ": " .. text
  end
  local where = err.request and shortened(err.request, 100)
  if err.code then
    where = (where and where .. ", " or "") .. string.format("%.0f", err.code)
  end
  if where then
    text = text .. " (" .. where .. ")"
  end
  if err.hint then
    text = text .. "; " .. err.hint
  end
  -- One line, and nothing in it that a terminal would obey.
  return (text:gsub("%s*[\r\n]+%s*", " "):gsub("%c", "?"))
end

function meta.__concat(left, right)
  return tostring(left) .. tostring(right)
end

---@param kind string
---@param fields table? becomes the error
---@return lualxd.error
function errors.new(kind, fields)
  assert(KINDS[kind], kind)
  local err = setmetatable(fields or {}, meta)
  err.kind = kind
  err.message = err.message or kind
  err.hint = err.hint or HINTS[kind]
  return err
end

---Whether a value is an error of lualxd.
---@param value any
---@return boolean
function errors.is(value)
  return getmetatable(value) == meta
end

local function first_match(list, text)
  for _, row in ipairs(list) do
    if text:find(row[1]) then
      return row[2]
    end
  end
end

---The error of an answer of the server, sync or of an operation that failed in the background.
---@param code integer? HTTP status, or the operation's status_code
---@param message string? the server's words
---@param fields table? request, tried, trusted = false where the server doesn't trust us
---@return lualxd.error
function errors.answer(code, message, fields)
  fields = fields or {}
  message = message or ""
  local kind
  if code == 412 or code == 401 then
    kind = CODES[code]
  elseif code == 403 then
    kind = fields.trusted == false and "untrusted" or "forbidden"
  elseif code == 503 then
    kind = "unavailable"
  else
    kind = first_match(TEXTS, message)
    -- An operation fails with 400 whatever the reason was: that says nothing more than "failed".
    if not kind then
      kind = fields.operation and "failed" or CODES[code]
        or (code and code >= 500 and "failed") or "invalid"
    end
  end
  fields.trusted = nil
  fields.code = code
  fields.message = message ~= "" and message or string.format("the server answered %.0f", code or 0)
  fields.hint = first_match(HINTS_BY_TEXT, fields.message)
  return errors.new(kind, fields)
end

---The error of several things of which some failed.
---@param failed table<integer, any> errors, indexed as the input
---@param results table<integer, any> results, indexed as the input
---@param total integer
---@return lualxd.error
function errors.many(failed, results, total)
  local count, first = 0, nil
  for index in pairs(failed) do
    count = count + 1
    first = first and math.min(first, index) or index
  end
  return errors.new("many", {
    message = string.format("%d of %d failed; first: %s", count, total, tostring(failed[first])),
    errors = failed,
    results = results,
  })
end

return errors
