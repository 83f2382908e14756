-- What the field types share: reporting a mistake, and walking tables that scripts made.
local options = require "lualxd.options"
local values = require "lualxd.reconcile.values"
local words = require "lualxd.words"

local check = {}

---@class lualxd.reconcile.checking one entry being checked
---@field fail fun(path: string, message: string) the path starts at the entry
---@field entry table what is being filled
---@field kind lualxd.reconcile.kind

---What a wrong value is, for people.
---@param value any
---@return string
function check.say(value)
  local name = words.name(value)
  return name and "lxd." .. name or type(value)
end

---@param this lualxd.reconcile.checking
---@param path string
---@param value any
---@param kind string Lua's type
---@param described string? what was expected, in words
---@return boolean
function check.expect(this, path, value, kind, described)
  if type(value) == kind and not words.name(value) then
    return true
  end
  this.fail(path, "expected " .. (described or "a " .. kind) .. ", got " .. check.say(value))
  return false
end

---Tells of a field that isn't known.
---@param this lualxd.reconcile.checking
---@param path string
---@param known table<string, any>
---@param key string
function check.unknown(this, path, known, key)
  local meant = options.close_name(key, known)
  this.fail(path, "unknown field" .. (meant and "; did you mean " .. meant .. "?" or ""))
end

---The string keys of a map, sorted; others are told.
---@param this lualxd.reconcile.checking
---@param path string
---@param map table
---@return string[]
function check.names_of(this, path, map)
  local names = {}
  for key in pairs(map) do
    local message
    if type(key) ~= "string" then
      message = "a key must be a string, got " .. type(key)
    elseif key == "" then
      message = "an empty key"
    else
      message = values.problem(key)
    end
    if message then
      this.fail(path .. (type(key) == "number" and "[" .. values.text(key) .. "]" or ""), message)
    else
      names[#names + 1] = key
    end
  end
  table.sort(names)
  return names
end

---The items of a list, in order; holes and other keys are told.
---@param this lualxd.reconcile.checking
---@param path string
---@param list table
---@return any[]
function check.items_of(this, path, list)
  local count = 0
  for key in pairs(list) do
    count = count + 1
    if type(key) ~= "number" or key % 1 ~= 0 or key < 1 then
      this.fail(path, "expected a list, but it has the key "
        .. (type(key) == "string" and string.format("%q", key) or tostring(key)))
      return {}
    end
  end
  if count ~= #list then
    this.fail(path, "expected a list, but it has holes")
    return {}
  end
  return list
end

return check
