-- Values as LXD keeps them: strings. How a script's value becomes one, and when two mean the same.
local json = require "lualxd.json"
local options = require "lualxd.options"

local values = {}

---@param value string|number|boolean
---@return string
function values.text(value)
  if type(value) == "number" then
    return json.number_text(value)
  end
  return tostring(value)
end

---Why a script's value can't be kept by LXD.
---@param value any
---@return string? message
values.problem = options.problem

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

-- What the server takes for an architecture, and never says itself (tried with 5.0.2).
local ARCHITECTURES = { amd64 = "x86_64", generic_64 = "x86_64", i386 = "i686", i586 = "i686", ["386"] = "i686",
  x86 = "i686", generic_32 = "i686", arm = "armv6l", armel = "armv6l", armhf = "armv7l", armhfp = "armv7l",
  armv7 = "armv7l", armv7a_hardfp = "armv7l", armv7a_vfpv3_hardfp = "armv7l", arm64 = "aarch64",
  arm64_generic = "aarch64", armv8 = "armv8l", powerpc = "ppc", powerpc64 = "ppc64", ppc64el = "ppc64le",
  mipsel = "mips", mips64el = "mips64", riscv = "riscv64" }

---One text for all that mean the same: `1024MiB` and `1GiB`, `yes` and `true`, `amd64` and `x86_64`.
---@param kind string? of effects: `bytes`, `bits`, `bool`; `architecture`; nil: only the text itself counts
---@param text string
---@return string
function values.canonical(kind, text)
  if kind == "bool" then
    return BOOLEANS[text:lower()] or text
  elseif kind == "architecture" then
    return ARCHITECTURES[text] or text
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
