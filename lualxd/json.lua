-- lua-cjson made lossless for LXD: what a GET gave can be PUT back unchanged. The two families of
-- lua-cjson differ (2.1.0, Debian's, forgets which tables were arrays and prints 14 digits; the newer
-- one doesn't), so neither is asked: the core looks for empty arrays, long integers and nulls in the text and puts the
-- decoded tree right, and texts are written here, with keys sorted so that equal data is equal text.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local cjson = require "cjson"
local core = require "lualxd.core"
local options = require "lualxd.options"
local words = require "lualxd.words"

local json = {}

local codec = cjson.new()
local decode = codec.decode
codec.decode_invalid_numbers(false)
codec.encode_invalid_numbers(false)
-- The newer family can be configured, process-wide in nginx, to give arrays their own metatable; a private
-- instance has the defaults whatever others configured.

---The metatable of arrays: an empty table with it is written as `[]`.
json.array_meta = { __name = "lualxd.array" }

---Makes a table an array for good, also when it is empty.
---@param list table? a sequence
---@return table list the same table
function json.array(list)
  if list ~= nil and type(list) ~= "table" then
    error("lxd.array: list must be a table, got " .. type(list), 2)
  end
  return setmetatable(list or {}, json.array_meta)
end

---@param text string
---@return any value nil where the text is JSON's `null`
---@return string? message where it isn't JSON
function json.decode(text)
  local ok, tree = pcall(decode, text)
  if not ok then
    return nil, (tostring(tree):gsub("^.-:%d+: ", ""))
  end
  return core.restore_json(tree, text, json.array_meta, cjson.null, decode)
end

-- Fields that are arrays of LXD's (doc/rest-api.yaml), whose empty value a script may write as `{}`.
-- They count outside of maps of free names (MAPS).
local ARRAYS = {}
for name in ([[profiles command aliases projects groups roles ports entries ingress egress
    member_config]]):gmatch("%S+") do
  ARRAYS[name] = true
end

-- Maps whose keys are anybody's: nothing below them is known by name.
local MAPS = { config = true, devices = true, environment = true, properties = true }

---The text of a number as LXD wants it in `config` and the like: no fraction where it is integral. Raises (without a
---position) for what is no finite number.
---@param value number
---@return string
function json.number_text(value)
  if math.type and math.type(value) == "integer" then
    return string.format("%d", value)
  elseif value ~= value or value == math.huge or value == -math.huge then
    error("a number that JSON can't write: " .. tostring(value), 0)
  elseif value % 1 == 0 then
    return string.format("%.0f", value + 0.0) -- which makes 0 of -0
  end
  return (string.format("%.14g", value):gsub(",", "."))
end

local function number(value)
  local text = json.number_text(value)
  if value % 1 == 0 and value >= -2 ^ 63 and value < 2 ^ 63 then
    return text
  end
  return (string.format("%.17g", value):gsub(",", "."))
end

-- The length of a sequence; nil for anything else, an empty table too.
local function sequence(value)
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count > 0 and count == #value and count or nil
end

-- What isn't UTF-8 Go would take for other characters, and say nothing.
local function text(value)
  if not options.is_utf8(value) then
    error("a text that is not UTF-8 can't be written as JSON", 0)
  end
  return codec.encode(value)
end

local function check_depth(depth)
  if depth > 200 then
    error("data too deep for JSON, or in a cycle", 0)
  end
end

local write

local function write_array(list, length, out, depth, free)
  out[#out + 1] = "["
  for index = 1, length do
    if index > 1 then
      out[#out + 1] = ","
    end
    write(list[index], out, depth + 1, nil, free)
  end
  out[#out + 1] = "]"
end

local function write_map(map, out, depth, free)
  local names, original = {}, {}
  for key in pairs(map) do
    local name = key
    if type(key) == "number" then
      name = json.number_text(key)
    elseif type(key) ~= "string" then
      error("a key of type " .. type(key) .. " can't be written as JSON", 0)
    end
    names[#names + 1] = name
    original[name] = key
  end
  table.sort(names)
  out[#out + 1] = "{"
  for index, name in ipairs(names) do
    out[#out + 1] = (index > 1 and "," or "") .. text(name) .. ":"
    write(map[original[name]], out, depth + 1, not free and name or nil, free or MAPS[name])
  end
  out[#out + 1] = "}"
end

function write(value, out, depth, name, free)
  local kind = type(value)
  if kind == "string" then
    out[#out + 1] = text(value)
  elseif kind == "number" then
    out[#out + 1] = number(value)
  elseif kind == "boolean" then
    out[#out + 1] = value and "true" or "false"
  elseif kind == "nil" or value == cjson.null or value == words.unset then
    out[#out + 1] = "null"
  elseif words.name(value) then
    error(tostring(value) .. " has a meaning in declarations only; it can't be written as JSON", 0)
  elseif kind == "table" then
    check_depth(depth)
    local length = sequence(value)
    if length or getmetatable(value) == json.array_meta then
      if not length and next(value) ~= nil then
        error("an array that has a hole or a name in it can't be written as JSON", 0)
      end
      write_array(value, length or 0, out, depth, free)
    elseif next(value) == nil and (ARRAYS[name] or getmetatable(value) == cjson.array_mt
      and cjson.array_mt) then
      out[#out + 1] = "[]"
    else
      write_map(value, out, depth, free)
    end
  else
    error("a " .. kind .. " can't be written as JSON", 0)
  end
end

---Raises (without a position) for what JSON can't hold: functions, cycles, NaN. `lxd.unset` is `null`.
---@param value any
---@return string
function json.encode(value)
  local out = {}
  write(value, out, 0)
  return table.concat(out)
end

local function stringify(value, depth)
  if type(value) == "number" then
    return json.number_text(value)
  elseif type(value) == "boolean" then
    return tostring(value)
  elseif type(value) == "table" and value ~= cjson.null and not words.name(value) then
    check_depth(depth)
    local copy = setmetatable({}, getmetatable(value))
    for key, inner in pairs(value) do
      copy[key] = stringify(inner, depth + 1)
    end
    return copy
  end
  return value
end

---A shallow copy of an object's data in which numbers and booleans of `config`, `devices`, `environment` and
---`properties` are the strings that LXD wants there. What isn't a table is returned as it is.
---@param data any
---@return any
function json.as_strings(data)
  if type(data) ~= "table" then
    return data
  end
  local copy = setmetatable({}, getmetatable(data))
  for key, value in pairs(data) do
    copy[key] = MAPS[key] and stringify(value, 0) or value
  end
  return copy
end

return json
