-- The kinds of objects that a server has, as data.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local files = require "lualxd.files"
local images = require "lualxd.images"
local instance = require "lualxd.instance"
local trust = require "lualxd.trust"

-- One row a kind. `path`: below its parent. `one`: a single thing, for errors. `key`: the field that
-- holds its name. `extension`: the API extension without which a server doesn't have it. `reads`: what can
-- be read below an item. `items`, `collections`: more methods. `below`: kinds below an item.
-- `by_status`: the list comes as an object of lists. `free`: names may have characters of which a list of URLs is no
-- help: LXD 5.0.2 escapes some of them twice and some not at all. `bare`: old servers put the instance's name before.
local kinds = {
  containers = { path = "containers", one = "container", instance = true },
  instances = { path = "instances", one = "instance", instance = true, extension = "instances" },
  virtual_machines = {
    path = "virtual-machines", one = "virtual machine", instance = true,
    extension = "virtual-machines",
  },
  snapshots = { path = "snapshots", one = "snapshot", dated = true, free = true, bare = true },
  backups = { path = "backups", one = "backup", dated = true, bare = true, extension = "container_backup" },
  profiles = { path = "profiles", one = "profile", free = true },
  images = {
    path = "images", one = "image", key = "fingerprint", collections = images.collection,
    properties = { aliases = "aliases" },
  },
  aliases = { path = "aliases", one = "image alias", free = true },
  networks = {
    path = "networks", one = "network", extension = "network",
    reads = { leases = "network_leases", state = "network_state" },
  },
  network_acls = { path = "network-acls", one = "network ACL", extension = "network_acl" },
  storage_pools = {
    path = "storage-pools", one = "storage pool", extension = "storage",
    reads = { resources = "resources" },
  },
  projects = {
    path = "projects", one = "project", extension = "projects", free = true,
    reads = { state = "project_usage" },
  },
  certificates = {
    path = "certificates", one = "certificate", key = "fingerprint",
    collections = { token = trust.token },
  },
  operations = { path = "operations", one = "operation", key = "id", by_status = true },
  warnings = { path = "warnings", one = "warning", key = "uuid", extension = "warnings" },
}

for _, kind in pairs(kinds) do
  kind.key = kind.key or "name"
  if kind.instance then
    kind.dated = true
    kind.reads = { state = false }
    kind.items = instance.item
    kind.below = { snapshots = true, backups = true }
    kind.views = { files = files.new }
  end
end

return kinds
