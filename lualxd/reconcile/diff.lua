-- One object, three ways: what is declared, what is there, and what was last applied (the
-- mark). Nothing here asks the server; the same function says what a plan shows and, given the
-- object as it is by then, what is sent.
local effects = require "lualxd.reconcile.effects"
local fields = require "lualxd.reconcile.fields"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"
local values = require "lualxd.reconcile.values"

local diff = {}

diff.SECRET = "(secret)"
-- One that takes the place of another value: what differs must not look alike.
diff.CHANGED = "(secret, changed)"

---@class lualxd.reconcile.change
---@field path string
---@field from any what is there; nil: nothing
---@field to any what will be
---@field why "declared"|"drift"|"released"|"finish"
---@field effect string
---@field leaf table? where it is, for who applies it; not shown

---@class lualxd.reconcile.difference
---@field changes lualxd.reconcile.change[] by path; `from` equal to `to`: only the mark changes
---@field edits table[] field, key, device; text or list; neither: to unset
---@field last table<string, string> what `last` becomes
---@field differing string[] ids of declared paths whose live value isn't the declared one

-- No mark: nothing was applied by us. Its nonce matches no hash.
local UNMARKED = { nonce = "", last = {}, todo = {}, keep = false }

local function live_value(data, leaf)
  if leaf.field == "config" then
    return (data.config or {})[leaf.key]
  elseif leaf.device then
    local device = (data.devices or {})[leaf.device]
    if leaf.key then
      return device and device[leaf.key]
    end
    return device
  elseif leaf.list then
    return data[leaf.field] or {}
  end
  local value = data[leaf.field]
  if value == nil or value == "" then
    return nil
  end
  return tostring(value)
end

-- A list as one text, for hashing and comparing: names have no line breaks.
local function joined(list)
  return table.concat(list, "\n")
end

local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local made = {}
  for key, inner in pairs(value) do
    made[key] = copy(inner)
  end
  return made
end
diff.copy = copy

local function same(leaf, live)
  if leaf.list then
    return live ~= nil and joined(leaf.list) == joined(live)
  elseif leaf.word == "unset" then
    return live == nil
  end
  return live ~= nil and (live == leaf.text
    or values.canonical(leaf.value, live) == values.canonical(leaf.value, leaf.text))
end

local function hash_of(mark, leaf)
  if leaf.list then
    return marker.hash(mark, leaf.id, joined(leaf.list))
  end
  return marker.hash(mark, leaf.id, leaf.text, leaf.value, leaf.secret)
end

-- What a device looks like to the reader of a plan: its secret fields aren't.
local function shown_device(mark, name, device)
  local shown = copy(device)
  for key in pairs(shown) do
    if marker.was_secret(mark, fields.device_id(name) .. "." .. key) then
      shown[key] = diff.SECRET
    end
  end
  return shown
end

-- A path that the mark has and the declaration no longer does: unset if the value is still the
-- one that we gave it, otherwise somebody else's by now.
local function release_config(this, id, key)
  local live = (this.data.config or {})[key]
  local secret = marker.was_secret(this.mark, id)
  local shown = secret and live and diff.SECRET or live
  if live ~= nil and marker.matches(this.mark, id, live, effects.config_value(key)) then
    this.edit({ field = "config", key = key },
      { path = id, from = shown, why = "released" })
  else
    this.keep { path = id, from = shown, to = shown, why = "released" }
  end
end

local function release_device_key(this, id, name, key)
  local device = (this.data.devices or {})[name]
  local live = device and device[key]
  local path = "devices." .. name .. "." .. key
  local shown = live and marker.was_secret(this.mark, id) and diff.SECRET or live
  if live ~= nil and marker.matches(this.mark, id, live, effects.device_value(device, key)) then
    this.edit({ field = "devices", device = name, key = key },
      { path = path, from = shown, why = "released" })
  else
    this.keep { path = path, from = shown, to = shown, why = "released" }
  end
end

-- A device goes as a whole, and only if it is ours as a whole: somebody's change in it makes it
-- theirs.
local function release_device(this, name, keys)
  local device = (this.data.devices or {})[name]
  local ours = device ~= nil
  for key, live in pairs(device or {}) do
    local id = fields.device_id(name) .. "." .. key
    ours = ours and keys[key]
      and marker.matches(this.mark, id, live, effects.device_value(device, key))
  end
  for key in pairs(keys) do
    ours = ours and device[key] ~= nil
  end
  local path = "devices." .. name
  local shown = device and shown_device(this.mark, name, device)
  if ours then
    this.edit({ field = "devices", device = name }, { path = path, from = shown, why = "released" })
  else
    this.keep { path = path, from = shown, to = shown, why = "released" }
  end
end

local function release_field(this, id)
  local default = this.kind.unset[id]
  local live = live_value(this.data, { field = id, list = type(this.data[id]) == "table" or nil })
  local text = type(live) == "table" and joined(live) or live
  if default ~= nil and live ~= nil and marker.matches(this.mark, id, text) then
    this.edit({ field = id, text = default }, { path = id, from = live, why = "released" })
  else
    this.keep { path = id, from = copy(live), to = copy(live), why = "released" }
  end
end

local function unescape(text)
  return (text:gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

local function release(this, covered, whole)
  local devices = {}
  local function release_path(id)
    local field, rest = id:match("^([^.]+)%.?(.*)$")
    if field == "files" then
      this.keep { path = id, why = "released" }
    elseif field == "config" then
      release_config(this, id, rest)
    elseif field == "devices" then
      local name, key = rest:match("^([^.]*)%.?(.*)$")
      local device = unescape(name)
      if key ~= "" and not whole[device] then
        devices[device] = devices[device] or {}
        devices[device][key] = id
      end
    elseif field == "state" then
      this.keep { path = id, why = "released" } -- no state means "none"
    else
      release_field(this, id)
    end
  end
  for id in pairs(this.mark.last) do
    if not covered[id] then
      release_path(id)
    end
  end
  for name, keys in pairs(devices) do
    if this.declared_devices[name] then
      for key, id in pairs(keys) do
        release_device_key(this, id, name, key)
      end
    else
      release_device(this, name, keys)
    end
  end
end

local function by_path(a, b)
  return a.path < b.path
end

---@param entry table what is declared; for an object that no longer is: `{ kind, leaves = {} }`
---@param data table the object as the server has it
---@param mark lualxd.reconcile.mark? nil: it has none of ours
---@return lualxd.reconcile.difference
function diff.compare(entry, data, mark)
  mark = mark or UNMARKED
  local changes, edits, last, differing = {}, {}, {}, {}
  local this = {
    data = data, mark = mark, kind = entry.kind, declared_devices = {},
  }
  function this.edit(edit, change)
    change.leaf = edit
    edits[#edits + 1] = edit
    changes[#changes + 1] = change
  end
  function this.keep(change)
    changes[#changes + 1] = change
  end
  local covered, whole, retyped = {}, {}, {}
  for _, leaf in ipairs(entry.leaves) do
    covered[leaf.id] = true
    if leaf.device and leaf.key == "type" then
      local device = (data.devices or {})[leaf.device]
      retyped[leaf.device] = device ~= nil and leaf.text ~= nil and device.type ~= leaf.text
    end
  end
  for _, leaf in ipairs(entry.leaves) do
    if leaf.device then
      if leaf.key then
        this.declared_devices[leaf.device] = true
      else
        whole[leaf.device] = true
      end
    end
    if leaf.word ~= "auto" and leaf.word ~= "ignore" then
      local live = live_value(data, leaf)
      local hash = hash_of(mark, leaf)
      last[leaf.id] = hash
      local hidden = leaf.secret or marker.was_secret(mark, leaf.id)
      local known = mark.last[leaf.id] == hash
      if not same(leaf, live) then
        differing[#differing + 1] = leaf.id
        local from, to = copy(live), copy(leaf.list or leaf.text)
        if hidden then
          from, to = from and diff.SECRET, to and (from and diff.CHANGED or diff.SECRET)
        elseif type(from) == "table" and not leaf.list then
          from = shown_device(mark, leaf.device, from)
        end
        this.edit({ field = leaf.field, key = leaf.key, device = leaf.device, text = leaf.text,
          list = leaf.list, flag = leaf.value == "bool" and leaf.key == nil }, {
          path = leaf.path, from = from, to = to, why = known and "drift" or "declared",
        })
      elseif retyped[leaf.device] then
        edits[#edits + 1] = { field = "devices", key = leaf.key, device = leaf.device,
          text = leaf.text }
      elseif not known then
        local shown = hidden and live and diff.SECRET or copy(live)
        this.keep { path = leaf.path, from = shown, to = shown, why = "declared" }
      end
    end
  end
  if entry.state and entry.state.word ~= "ignore" then
    covered.state = true
    last.state = marker.hash(mark, "state", entry.state.text)
    local live = kinds.live_states[data.status]
    if live == entry.state.text and last.state ~= mark.last.state then
      this.keep { path = "state", from = live, to = live, why = "declared" }
    end
  end
  for _, file in ipairs(entry.files or {}) do
    local id = "files." .. file.name
    covered[id] = true
    last[id] = mark.last[id]
  end
  release(this, covered, whole)
  table.sort(changes, by_path)
  local keep = entry.keep or false
  if keep ~= mark.keep then
    changes[#changes + 1] = { path = "keep", from = tostring(mark.keep), to = tostring(keep),
      why = "declared" }
  end
  for _, change in ipairs(changes) do
    change.effect = "none"
  end
  return { changes = changes, edits = edits, last = last, keep = keep, differing = differing }
end

---The edits that make a new object.
---@param entry lualxd.reconcile.entry
---@return table[]
function diff.initial(entry)
  local edits = {}
  for _, leaf in ipairs(entry.leaves) do
    if leaf.text or leaf.list then
      edits[#edits + 1] = { field = leaf.field, key = leaf.key, device = leaf.device,
        text = leaf.text, list = leaf.list, flag = leaf.value == "bool" and leaf.key == nil }
    end
  end
  return edits
end

---What a PUT has to carry: the object as it is, with the edits, and the mark.
---@param kind lualxd.reconcile.kind
---@param data table the object as the server has it
---@param edits table[]
---@param marks table<string, string>? of marker.keys; an empty text takes a key away
---@return table
function diff.body(kind, data, edits, marks)
  local body = {}
  for _, field in ipairs(kind.body) do
    body[field] = data[field]
  end
  body.config, body.devices = copy(data.config or {}), copy(data.devices or {})
  local declared_type = {}
  for _, edit in ipairs(edits) do
    if edit.device and edit.key == "type" and edit.text then
      declared_type[edit.device] = edit.text
    end
  end
  for name, new in pairs(declared_type) do
    local device = body.devices[name]
    if device and device.type ~= new then
      -- Another type knows other fields: nothing of the old device can stay.
      body.devices[name] = {}
    end
  end
  for _, edit in ipairs(edits) do
    if edit.field == "config" then
      body.config[edit.key] = edit.text
    elseif edit.device and not edit.key then
      body.devices[edit.device] = nil
    elseif edit.device then
      body.devices[edit.device] = body.devices[edit.device] or {}
      body.devices[edit.device][edit.key] = edit.text
    elseif edit.flag then
      body[edit.field] = edit.text == "true"
    else
      body[edit.field] = edit.list or edit.text or kind.unset[edit.field]
    end
  end
  for key, text in pairs(marks or {}) do
    body.config[key] = text ~= "" and text or nil
  end
  return body
end

return diff
