-- What changes do to what runs. An instance sees its profiles and its own config merged, so a
-- change counts only where it changes what the instance sees: a key that moves from a container
-- to its profile changes nothing, a profile's key that every user overrides neither.
local effects = require "lualxd.reconcile.effects"
local kinds = require "lualxd.reconcile.kinds"
local values = require "lualxd.reconcile.values"

local impact = {}

local RANK = { none = 0, live = 1, next_start = 2, replug = 3, stop = 4, replace = 5 }

local function worse(one, other)
  return (RANK[other] or 0) > (RANK[one] or 0) and other or one
end
impact.worse = worse

---@class lualxd.reconcile.impact
---@field running boolean
---@field config table<string, string> key -> effect; what isn't there has none
---@field devices table<string, string> name -> effect
---@field other string effect of the rest (architecture)
---@field restart boolean something waits for the next start
---@field stop boolean something can be changed only while it is stopped

---@class lualxd.reconcile.profile_change a profile before and after this plan
---@field before table data; nil: it is made
---@field after table data; nil: it goes
---@field config table<string, boolean> keys that differ
---@field devices table<string, boolean> names that differ

local function differing(before, after, out)
  before, after = before or {}, after or {}
  for key, value in pairs(before) do
    if values.differs(value, after[key]) then
      out[key] = true
    end
  end
  for key in pairs(after) do
    if before[key] == nil then
      out[key] = true
    end
  end
end

---@param before table?
---@param after table?
---@return lualxd.reconcile.profile_change
function impact.profile_change(before, after)
  local change = { before = before, after = after, config = {}, devices = {} }
  differing(before and before.config, after and after.config, change.config)
  differing(before and before.devices, after and after.devices, change.devices)
  return change
end

-- What an instance will see at a key: its own value, else that of its last profile that has one
-- (lxd/db/cluster, ExpandInstanceConfig and ExpandInstanceDevices; a device counts as a whole).
local function resolve(part, body, profiles, key)
  local own = body[part] and body[part][key]
  if own ~= nil then
    return own
  end
  for index = #profiles, 1, -1 do
    local found = profiles[index][part] and profiles[index][part][key]
    if found ~= nil then
      return found
    end
  end
end

local function same_names(one, other)
  return table.concat(one or {}, "\n") == table.concat(other or {}, "\n")
end

-- The keys of a part that may look different afterwards.
local function candidates(part, data, body, names, look)
  local keys = {}
  differing(data[part], body[part], keys)
  local lists_differ = not same_names(data.profiles, names)
  for _, list in ipairs { data.profiles or {}, names } do
    for _, name in ipairs(list) do
      local change = look(name)
      for key in pairs(change and change[part] or {}) do
        keys[key] = true
      end
      if lists_differ and change then
        for _, side in ipairs { change.before or {}, change.after or {} } do
          for key in pairs(side[part] or {}) do
            keys[key] = true
          end
        end
      end
    end
  end
  return keys
end

---@param data table the instance as it is
---@param body table what of it will be: config, devices, profiles, architecture
---@param look fun(name: string): lualxd.reconcile.profile_change? what it can inherit
---@param networks table<string, table>?
---@return lualxd.reconcile.impact
function impact.of(data, body, look, networks)
  local state = kinds.live_states[data.status]
  local result = { running = state == "running" or state == "frozen", config = {}, devices = {},
    other = "none", restart = false, stop = false }
  if not result.running then
    return result
  end
  local names = body.profiles or data.profiles or {}
  local profiles = {}
  for index, name in ipairs(names) do
    local change = look(name)
    profiles[index] = change and change.after or {}
  end
  local function note(effect)
    result.restart = result.restart or effect == "next_start"
    result.stop = result.stop or effect == "stop"
    return effect
  end
  for key in pairs(candidates("config", data, body, names, look)) do
    local before = (data.expanded_config or {})[key]
    if before ~= resolve("config", body, profiles, key) and not key:find("^user%.lualxd%.") then
      result.config[key] = note(effects.config(key))
    end
  end
  for name in pairs(candidates("devices", data, body, names, look)) do
    local before = (data.expanded_devices or {})[name]
    local effect = effects.device(before, resolve("devices", body, profiles, name), networks)
    if effect ~= "none" then
      result.devices[name] = note(effect)
    end
  end
  if body.architecture ~= nil and body.architecture ~= data.architecture then
    result.other = note("next_start")
  end
  return result
end

---The worst of all that an instance will notice.
---@param result lualxd.reconcile.impact
---@return string effect
function impact.worst(result)
  local worst = result.other
  for _, effect in pairs(result.config) do
    worst = worse(worst, effect)
  end
  for _, effect in pairs(result.devices) do
    worst = worse(worst, effect)
  end
  return worst
end

---The effect of one change of an object's, as an instance will notice it.
---@param result lualxd.reconcile.impact
---@param leaf { field: string, key: string?, device: string? }
---@return string
function impact.at(result, leaf)
  if leaf.field == "config" then
    return result.config[leaf.key] or "none"
  elseif leaf.device then
    return result.devices[leaf.device] or "none"
  elseif leaf.field == "architecture" then
    return result.other
  elseif leaf.field == "profiles" then
    return impact.worst(result)
  end
  return "none"
end

return impact
