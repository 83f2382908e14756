-- The field types of a declaration whose values LXD keeps: what each may be, and what it
-- becomes. Every value becomes a leaf, one path with one wanted value, so that everything after
-- this (comparing, marking, planning, showing) is the same for a memory limit and for a
-- device's pool.
local check = require "lualxd.reconcile.check"
local effects = require "lualxd.reconcile.effects"
local guest = require "lualxd.reconcile.guest"
local kinds = require "lualxd.reconcile.kinds"
local values = require "lualxd.reconcile.values"
local words = require "lualxd.words"

local fields = {}

---@class lualxd.reconcile.leaf one declared path
---@field path string as in a step's changes: `config.limits.memory`
---@field id string the path in the mark, where a device's name with dots in it must not be mistaken
---@field field string
---@field key string? of config, or of a device
---@field device string?
---@field word string? auto, unset, ignore
---@field text string? the wanted value as LXD keeps it
---@field list string[]? of `profiles`
---@field secret boolean?
---@field value string? how texts compare, see values.canonical

-- One declared value into its leaf: words opened, numbers and booleans made text.
local function read(this, leaf, value)
  local name = words.name(value)
  if name == "ignore" then
    leaf.word = "ignore"
    value = words.reveal(value)
    if value == nil then
      return leaf
    end
    name = words.name(value)
  end
  if name == "secret" then
    leaf.secret = true
    local message
    value, message = words.reveal(value)
    if message then
      this.fail(leaf.path, message)
      return
    end
  elseif name == "auto" or name == "unset" then
    leaf.word = name
    return leaf
  elseif name then
    this.fail(leaf.path, "lxd." .. name .. " doesn't work here")
    return
  end
  local message = values.problem(value)
  if message then
    this.fail(leaf.path, message)
    return
  end
  leaf.text = values.text(value)
  if leaf.text == "" and not leaf.word then
    -- The server doesn't store empty values (lxd/db/cluster/config.mapper.go): they are absent.
    leaf.word, leaf.text = "unset", nil
  end
  return leaf
end

---How the mark calls a device: its name may have dots, which a path can't tell from its own.
---@param name string
---@return string
function fields.device_id(name)
  return "devices." .. name:gsub("[%%.]", function(char)
    return string.format("%%%02X", char:byte())
  end)
end

local function put(this, leaf)
  if leaf.device then
    leaf.id = fields.device_id(leaf.device) .. (leaf.key and "." .. leaf.key or "")
  else
    leaf.id = leaf.path
  end
  this.entry.leaves[#this.entry.leaves + 1] = leaf
end

local function add(this, leaf, value)
  leaf = read(this, leaf, value)
  if leaf then
    put(this, leaf)
  end
end

local type_of = {}

function type_of.config(this, path, map)
  if not check.expect(this, path, map, "table") then
    return
  end
  for _, key in ipairs(check.names_of(this, path, map)) do
    local leaf = { path = path .. "." .. key, field = "config", key = key,
      value = effects.config_value(key) }
    if key:find("^user%.lualxd%.") then
      this.fail(leaf.path, "user.lualxd.* is where lualxd keeps its marks")
    elseif key:find("^image%.") then
      this.fail(leaf.path, "the server copies image.* from the image")
    else
      add(this, leaf, map[key])
    end
  end
end

-- One key of a device. `seeds`: the whole device counts at creation only.
local function add_device_key(this, leaf, device, seeds)
  local given = device[leaf.key]
  local word = words.name(given)
  if leaf.key == "type" and type(given) ~= "string" then
    this.fail(leaf.path, "expected a string, got " .. check.say(given))
  elseif leaf.key == "type" and given == "" then
    this.fail(leaf.path, "is empty")
  elseif not seeds then
    add(this, leaf, given)
  elseif not word or word == "secret" then
    add(this, leaf, words.ignore(given))
  end
end

function type_of.devices(this, path, devices)
  if not check.expect(this, path, devices, "table") then
    return
  end
  for _, name in ipairs(check.names_of(this, path, devices)) do
    local device, here = devices[name], path .. "." .. name
    local word = words.name(device)
    local seeds = word == "ignore"
    if seeds then
      device = words.reveal(device)
    end
    if word == "unset" or seeds then
      put(this, { path = here, field = "devices", device = name, word = word })
    end
    if word ~= "unset" and not (seeds and device == nil) and check.expect(this, here, device, "table") then
      local typed = type(device.type) == "string" and device or nil
      for _, key in ipairs(check.names_of(this, here, device)) do
        add_device_key(this, { path = here .. "." .. key, field = "devices", device = name, key = key,
          value = effects.device_value(typed, key) }, device, seeds)
      end
    end
  end
end

function type_of.text(this, path, value)
  local name = words.name(value)
  local held = name == "ignore" and words.reveal(value) or value
  if type(held) ~= "string" and not words.name(held) then
    this.fail(path, "expected a string, got " .. check.say(held))
  else
    add(this, { path = path, field = path:match("[^.]+$"), value = path == "architecture" and path or nil }, value)
  end
end

function type_of.flag(this, path, value)
  local name = words.name(value)
  local held = value
  if name == "ignore" then
    held = words.reveal(value)
  end
  if name == "auto" or name == "ignore" and held == nil or type(held) == "boolean" then
    add(this, { path = path, field = path:match("[^.]+$"), value = "bool" }, value)
  else
    this.fail(path, "expected true or false, got " .. check.say(held))
  end
end

function type_of.name(this, path, value)
  if not check.expect(this, path, value, "string") then
    return
  elseif value == "" or value == "." or value == ".." or value:find("[/%c]") then
    this.fail(path, "is not a name")
  else
    this.entry[path:match("[^.]+$")] = value
  end
end

function type_of.switch(this, path, value)
  if type(value) == "boolean" then
    this.entry[path:match("[^.]+$")] = value
  else
    this.fail(path, "expected true or false, got " .. check.say(value))
  end
end

function type_of.type(this, path, value)
  if value == "virtual-machine" then
    this.fail(path, "virtual machines are not supported yet")
  elseif value ~= "container" then
    this.fail(path, "expected \"container\", got "
      .. (type(value) == "string" and string.format("%q", value) or check.say(value)))
  end
end

function type_of.names(this, path, list)
  local word = words.name(list)
  if word == "ignore" then
    list = words.reveal(list)
  end
  if word == "auto" or word == "ignore" and list == nil then
    put(this, { path = path, field = path, word = word })
    return
  elseif not check.expect(this, path, list, "table", "a list of names") then
    return
  end
  local seen, names = {}, {}
  for index, name in ipairs(check.items_of(this, path, list)) do
    local here = path .. "[" .. index .. "]"
    if check.expect(this, here, name, "string") then
      if seen[name] then
        this.fail(here, string.format("%q is there twice", name))
      elseif name == "" or name:find("[/%c]") then
        this.fail(here, "is not a name")
      end
      seen[name] = true
      names[#names + 1] = name
    end
  end
  put(this, { path = path, field = path, list = names, word = word })
end

function type_of.after(this, path, list)
  if type(list) == "string" then
    list = { list }
  elseif not check.expect(this, path, list, "table", "a list of names") then
    return
  end
  local after = {}
  for index, name in ipairs(check.items_of(this, path, list)) do
    local here = path .. (#list > 1 and "[" .. index .. "]" or "")
    if check.expect(this, here, name, "string") then
      local section, rest = name:match("^([^.]+)%.(.+)$")
      if not kinds.by_section[section or ""] then
        section, rest = this.kind.section, name
      end
      after[#after + 1] = { path = here, section = section, name = rest }
    end
  end
  this.entry.after = after
end

---Checks one field and puts what it becomes into `this.entry`.
---@param this lualxd.reconcile.checking
---@param type_name string of kinds
---@param path string the field's name
---@param value any
function fields.read(this, type_name, path, value)
  local read_field = type_of[type_name] or guest[type_name]
  read_field(this, path, value)
end

return fields
