-- Checks of arguments: a wrong one is a mistake in the script, so it raises, names the argument and
-- points at the caller. What the world refuses is never raised (lualxd.error).
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local options = {}

local function bad(level, what, ...)
  error(string.format(what, ...), level + 1)
end

local function close_name(name, known)
  -- The nearest known name by edit distance, if it is near enough to have been meant.
  local best, best_distance
  for candidate in pairs(known) do
    local row = {}
    for j = 0, #candidate do
      row[j] = j
    end
    for i = 1, #name do
      local diagonal = row[0]
      row[0] = i
      for j = 1, #candidate do
        local cost = name:byte(i) == candidate:byte(j) and 0 or 1
        local value = math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
        diagonal, row[j] = row[j], value
      end
    end
    local distance = row[#candidate]
    if distance <= math.max(1, math.floor(#name / 3))
      and (not best or distance < best_distance
        or distance == best_distance and candidate < best) then
      best, best_distance = candidate, distance
    end
  end
  return best
end

---The known name that a mistyped one was probably meant to be.
---@param name string
---@param known table<string, any> its keys are the names
---@return string?
options.close_name = close_name

local function is_a(value, kinds)
  for kind in kinds:gmatch("[%a]+") do
    if kind == type(value) then
      return true
    elseif kind == "callable" then
      local meta = type(value) == "table" and getmetatable(value)
      if type(value) == "function" or type(meta) == "table" and meta.__call then
        return true
      end
    elseif kind == "integer" and type(value) == "number" and value % 1 == 0 then
      return true
    elseif kind == "seconds" and type(value) == "number" and value >= 0 then
      return true
    end
  end
  return false
end

-- A number where some number is welcome is wrong for its value.
local function got(value, kinds)
  local number = type(value) == "number" and (kinds:find("integer", 1, true) or kinds:find("seconds", 1, true))
  return number and string.format("%.14g", value) or type(value)
end

---Checks a table of options: an unknown one and one of a wrong type raise.
---@param given table? nil counts as empty
---@param known table<string, string> name -> types by `|`: Lua's, and `integer`, `seconds`, `callable`
---@param who string the function, as the caller writes it
---@param level integer? as of `error`: 1 is the caller of `check`, 2 (unless told) its caller
---@return table given
function options.check(given, known, who, level)
  level = (level or 2) + 1
  if given == nil then
    return {}
  end
  if type(given) ~= "table" then
    bad(level, "%s: options must be a table, got %s", who, type(given))
  end
  local names = {}
  for name in pairs(given) do
    names[#names + 1] = tostring(name)
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local kinds, value = known[name], given[name]
    if not kinds then
      local meant = close_name(name, known)
      bad(level, "%s: unknown option '%s'%s", who, name,
        meant and "; did you mean '" .. meant .. "'?" or "")
    elseif not is_a(value, kinds) then
      bad(level, "%s: option '%s' must be %s, got %s", who, name,
        kinds:gsub("|", " or "), got(value, kinds))
    end
  end
  return given
end

---Checks one argument by its types.
---@param value any
---@param kinds string as in `check`; with `nil` where it may be left out
---@param who string the function and the argument, as in `client:get: path`
---@param level integer?
---@return any value
function options.argument(value, kinds, who, level)
  if not is_a(value, kinds) then
    bad((level or 2) + 1, "%s must be %s, got %s", who, kinds:gsub("|", " or "), got(value, kinds))
  end
  return value
end

-- The well-formed sequences of RFC 3629; Lua's patterns know no alternatives.
local SEQUENCES = {
  "^[\194-\223][\128-\191]",
  "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]",
  "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}

---@param text string
---@return boolean
function options.is_utf8(text)
  local at = text:find("[\128-\255]")
  while at do
    local _, stop
    for index = 1, #SEQUENCES do
      _, stop = text:find(SEQUENCES[index], at)
      if stop then
        break
      end
    end
    if not stop then
      return false
    end
    at = text:find("[\128-\255]", stop + 1)
  end
  return true
end

---Why a script's value can't be sent to LXD as it is. JSON can't carry a text that isn't UTF-8: Go replaces
---what is wrong in it, and the value would differ for ever.
---@param value any
---@return string? message
function options.problem(value)
  local kind = type(value)
  if kind == "string" then
    if value:find("\0", 1, true) then
      return "has a NUL character in it"
    elseif not options.is_utf8(value) then
      return "is not UTF-8"
    end
  elseif kind == "number" then
    if value ~= value or value == math.huge or value == -math.huge then
      return "is not a finite number"
    end
  elseif kind ~= "boolean" then
    return "must be a string, number or boolean, got " .. kind
  end
end

local function escape_byte(byte)
  return string.format("%%%02X", byte:byte())
end

---Percent-encodes everything but RFC 3986's unreserved characters.
---@param text string
---@return string
function options.escape(text)
  return (text:gsub("[^%w%-%._~]", escape_byte))
end

---Undoes percent-encoding (a `+` stays a plus: these are paths, not forms).
---@param text string
---@return string
function options.unescape(text)
  return (text:gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

---A name on its way into a URL. LXD splits the encoded path and unescapes each segment
---(lxd/api.go, UseEncodedPath), so any name can be sent but those that a URL can't hold.
---@param name string
---@param who string
---@param level integer?
---@return string segment
function options.segment(name, who, level)
  level = (level or 2) + 1
  if type(name) ~= "string" then
    bad(level, "%s: a name must be a string, got %s", who, type(name))
  elseif name == "" or name == "." or name == ".." then
    bad(level, "%s: '%s' is not a name", who, name)
  end
  return options.escape(name)
end

return options
