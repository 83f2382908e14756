-- The kinds of objects that a declaration can have: data. A further kind is a further row; what
-- a row can't say is a field type (fields.lua, guest.lua).
local kinds = {}

---@class lualxd.reconcile.kind
---@field section string in the declaration and in the client's tree
---@field noun string for people, and in the mark of ownership: never changes
---@field feature string? a project without this feature has its objects of this kind in `default`
---@field fields table<string, string> name -> field type
---@field body string[] what a PUT of it replaces
---@field unset table<string, any> what a released field becomes; others stay as they are
---@field fixed table<string, string>? names that the server won't delete -> why, in words
---@field runs boolean? it has a state, an image, files, snapshots
---@field uses string[] sections that it refers to; a user goes before what it uses
---@field used_by boolean? its data tell who uses it, and the server deletes only what nobody uses

-- Fields that every kind has.
local function with_common(fields)
  fields.project = "name"
  fields.adopt = "switch"
  fields.keep = "switch"
  return fields
end

---@type lualxd.reconcile.kind[] what others use comes first
kinds.list = {
  {
    section = "profiles",
    noun = "profile",
    feature = "features.profiles",
    fields = with_common { config = "config", devices = "devices", description = "text" },
    body = { "config", "devices", "description" },
    unset = { description = "" },
    fixed = { default = "LXD doesn't delete the profile named default" },
    uses = {},
    used_by = true,
  },
  {
    section = "containers",
    noun = "container",
    fields = with_common {
      image = "image", profiles = "names", config = "config", devices = "devices",
      description = "text", ephemeral = "flag", architecture = "text", type = "type",
      state = "state", files = "files", snapshots = "snapshots", ready = "ready",
      target = "name", after = "after",
    },
    body = { "architecture", "config", "description", "devices", "ephemeral", "profiles",
      "stateful" },
    unset = { description = "" },
    runs = true,
    uses = { "profiles" },
  },
}

---By section, and by noun.
---@type table<string, lualxd.reconcile.kind>
kinds.by_section, kinds.by_noun = {}, {}
for rank, row in ipairs(kinds.list) do
  row.rank = rank
  kinds.by_section[row.section] = row
  kinds.by_noun[row.noun] = row
end

---Sections of the client's tree that can't be declared yet: refused by name rather than as typos.
---@type table<string, boolean>
kinds.later = {}
for section in ([[instances virtual_machines images networks network_acls network_zones
    storage_pools volumes projects certificates cluster server]]):gmatch("%S+") do
  kinds.later[section] = true
end

---The states that one can declare, and what the server calls them. `Ready` is what a guest says of
---itself while it runs.
kinds.states = { running = true, stopped = true, frozen = true }
kinds.live_states = { Running = "running", Ready = "running", Stopped = "stopped",
  Frozen = "frozen" }

---Whether an instance was never started, as LXD notes each start.
---@param data table
---@return boolean
function kinds.never_started(data)
  local last = data.last_used_at
  return not last or last:find("^1970") ~= nil or last:find("^0001") ~= nil
end

---Whether the creation of an instance isn't over: it is under way, or was cut short by the end of
---the daemon, which leaves the record and a root filesystem that isn't whole. The last thing that
---a creation does is to ask for the image's templates to be applied at the first start
---(lxd/storage/backend_lxd.go, CreateInstanceFromImage); snapshots, restoring, renaming and a
---backup keep that (tried with 5.0.2).
---@param data table
---@return boolean
function kinds.half_made(data)
  local config = data.config or {}
  return data.last_used_at ~= nil and kinds.never_started(data) and data.status == "Stopped"
    and config["volatile.base_image"] ~= nil and not config["volatile.apply_template"]
    and not config["volatile.last_state.power"]
end

return kinds
