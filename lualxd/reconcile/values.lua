-- Values as LXD keeps them: strings. How a script's value becomes one, and when two mean the same.
local json = require "lualxd.json"

local values = {}

---@param value string|number|boolean
---@return string
function values.text(value)
  if type(value) == "number" then
    return json.number_text(value)
  end
  return tostring(value)
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

local function is_utf8(text)
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

---Why a script's value can't be kept by LXD. JSON can't carry a text that isn't UTF-8: Go replaces
---what is wrong in it, and the value would differ for ever.
---@param value any
---@return string? message
function values.problem(value)
  local kind = type(value)
  if kind == "string" then
    if value:find("\0", 1, true) then
      return "has a NUL character in it"
    elseif not is_utf8(value) then
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

local POWERS = { "k", "M", "G", "T", "P", "E" }
local UNITS = { bytes = { [""] = 1, B = 1, [" bytes"] = 1 }, bits = { [""] = 1, bit = 1 } }
for power, letter in ipairs(POWERS) do
  local binary = (letter == "k" and "K" or letter) .. "i"
  UNITS.bytes[letter .. "B"] = 1000 ^ power
  UNITS.bytes[binary .. "B"] = 1024 ^ power
  UNITS.bits[letter .. "bit"] = 1000 ^ power
  UNITS.bits[binary .. "bit"] = 1024 ^ power
end

local BOOLEANS = { ["true"] = "true", ["1"] = "true", yes = "true", on = "true",
  ["false"] = "false", ["0"] = "false", no = "false", off = "false" }

---One text for all that mean the same: `1024MiB` and `1GiB`, `yes` and `true`.
---@param kind string? of effects: `bytes`, `bits`, `bool`; nil: only the text itself counts
---@param text string
---@return string
function values.canonical(kind, text)
  if kind == "bool" then
    return BOOLEANS[text:lower()] or text
  elseif kind then
    local digits, unit = text:match("^(%d+)(.*)$")
    local factor = digits and UNITS[kind][unit]
    if factor then
      return string.format("%.0f", tonumber(digits) * factor)
    end
  end
  return text
end

---Whether two texts, or two devices, aren't alike.
---@param one string|table|nil
---@param other string|table|nil
---@return boolean
function values.differs(one, other)
  if type(one) ~= "table" or type(other) ~= "table" then
    return one ~= other
  end
  for key, value in pairs(one) do
    if other[key] ~= value then
      return true
    end
  end
  for key in pairs(other) do
    if one[key] == nil then
      return true
    end
  end
  return false
end

return values
