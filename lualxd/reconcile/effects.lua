-- What a change of a key does to a running container, and which texts of a key mean the same
-- value: data. Read in LXD 5.0.2: lxd/instance/drivers/driver_lxc.go (Update: what is applied
-- live; the rest is stored and waits for the next start), lxd/device/*.go (UpdatableFields,
-- CanHotPlug), shared/instance.go (the validators), shared/units/units.go. What a table doesn't
-- name counts as `next_start`: saying that a restart is needed where it isn't costs a question;
-- the reverse is a change that never comes.
local values = require "lualxd.reconcile.values"

local effects = {}

-- key, or prefix with a `*` -> effect, kind of value. The longest prefix wins.
local CONFIG = {
  -- Nothing in the running container depends on these.
  ["user.*"] = { "none" },
  ["user.user-data"] = { "next_start" }, -- cloud-init reads these at boot (needsNewInstanceID)
  ["user.vendor-data"] = { "next_start" },
  ["user.network-config"] = { "next_start" },
  ["image.*"] = { "none" },
  ["snapshots.*"] = { "none" },
  ["snapshots.schedule.stopped"] = { "none", "bool" },
  ["boot.autostart"] = { "none", "bool" },
  ["boot.autostart.*"] = { "none" },
  ["boot.stop.priority"] = { "none" },
  ["boot.host_shutdown_timeout"] = { "none" },
  ["cluster.evacuate"] = { "none" },
  ["migration.*"] = { "none" },
  ["migration.incremental.memory"] = { "none", "bool" },
  ["security.protection.delete"] = { "none", "bool" },
  ["security.protection.shift"] = { "none", "bool" },
  ["volatile.*"] = { "next_start" },

  -- Applied while it runs.
  ["limits.cpu"] = { "live" },
  ["limits.cpu.allowance"] = { "live" },
  ["limits.cpu.priority"] = { "live" },
  ["limits.disk.priority"] = { "live" },
  ["limits.network.priority"] = { "live" },
  ["limits.memory"] = { "live", "bytes" },
  ["limits.memory.*"] = { "live" },
  ["limits.memory.swap"] = { "live", "bool" },
  ["limits.processes"] = { "live" },
  ["limits.hugepages.*"] = { "live", "bytes" },
  ["linux.kernel_modules"] = { "live" },
  ["raw.apparmor"] = { "live" },
  ["security.devlxd"] = { "live", "bool" },
  ["security.devlxd.images"] = { "live", "bool" }, -- read at each request (lxd/devlxd.go)
  ["security.nesting"] = { "live", "bool" },

  -- Named because their values are booleans.
  ["nvidia.runtime"] = { "next_start", "bool" },
  ["security.idmap.isolated"] = { "next_start", "bool" },
  ["security.privileged"] = { "next_start", "bool" },
  ["security.syscalls.deny_default"] = { "next_start", "bool" },
  ["security.syscalls.deny_compat"] = { "next_start", "bool" },
  ["security.syscalls.intercept.bpf"] = { "next_start", "bool" },
  ["security.syscalls.intercept.bpf.devices"] = { "next_start", "bool" },
  ["security.syscalls.intercept.mknod"] = { "next_start", "bool" },
  ["security.syscalls.intercept.mount"] = { "next_start", "bool" },
  ["security.syscalls.intercept.mount.shift"] = { "next_start", "bool" },
  ["security.syscalls.intercept.sched_setscheduler"] = { "next_start", "bool" },
  ["security.syscalls.intercept.setxattr"] = { "next_start", "bool" },
}

local function set(names)
  local known = {}
  for name in names:gmatch("%S+") do
    known[name] = true
  end
  return known
end

-- Device type (a NIC's: `nic` and its nictype) -> the fields that are changed without taking it
-- out.
local UPDATABLE = {
  disk = set "limits.max limits.read limits.write size size.state",
  ["nic bridged"] = set [[limits.ingress limits.egress limits.max ipv4.routes ipv6.routes
    ipv4.routes.external ipv6.routes.external ipv4.address ipv6.address security.mac_filtering
    security.ipv4_filtering security.ipv6_filtering]],
  ["nic ovn"] = set "security.acls",
  ["nic p2p"] = set "limits.ingress limits.egress limits.max ipv4.routes ipv6.routes",
  ["nic routed"] = set "limits.ingress limits.egress limits.max",
}

-- Devices that can be neither added to nor taken out of a running container. (The others of
-- deviceCommon can: CanHotPlug is true for containers.)
local COLD = { ["nic ipvlan"] = true, ["gpu mig"] = true }

-- What a NIC's `network` makes of it, where no nictype says so (lxd/device/nic.go, nicLoadByType).
local NICTYPES = { bridge = "bridged", macvlan = "macvlan", sriov = "sriov", ovn = "ovn",
  physical = "physical" }

local DEVICE_VALUES = {
  ["disk size"] = "bytes",
  ["disk size.state"] = "bytes",
  ["disk limits.read"] = "bytes",
  ["disk limits.write"] = "bytes",
  ["disk limits.max"] = "bytes",
  ["disk readonly"] = "bool",
  ["disk required"] = "bool",
  ["disk recursive"] = "bool",
  ["disk shift"] = "bool",
  ["nic limits.ingress"] = "bits",
  ["nic limits.egress"] = "bits",
  ["nic limits.max"] = "bits",
  ["nic security.mac_filtering"] = "bool",
  ["nic security.ipv4_filtering"] = "bool",
  ["nic security.ipv6_filtering"] = "bool",
}

-- effect -> how bad: what a step that has it is worth, in the contract's scale. (A restart that
-- `next_start` asks for is a step of its own.)
effects.danger = { none = 0, live = 1, next_start = 1, replug = 2, stop = 3, replace = 4 }

---What changing a path is worth at least, whatever it does to what runs: what only describes is none.
---@param path string as in a step's changes
---@return integer
function effects.least(path)
  return (path == "description" or path:find("^config%.user%.")) and 0 or 1
end

local function lookup(key)
  local row = CONFIG[key]
  local prefix = key
  while not row and prefix ~= "" do
    prefix = prefix:match("^(.*)%.[^.]*$") or ""
    row = CONFIG[prefix .. ".*"]
  end
  return row
end

---What changing a config key does to a running container.
---@param key string
---@return string effect `none`, `live`, `next_start`
function effects.config(key)
  local row = lookup(key)
  return row and row[1] or "next_start"
end

---@param key string of an instance's or a profile's config
---@return string? kind `bool`, `bytes`, `bits`
function effects.config_value(key)
  local row = lookup(key)
  return row and row[2]
end

---@param device table<string, string>?
---@param key string
---@return string? kind
function effects.device_value(device, key)
  return DEVICE_VALUES[(device and device.type or "") .. " " .. key]
end

local function class(device, networks)
  if device.type == "nic" then
    local network = networks and device.network and networks[device.network]
    return "nic " .. (device.nictype or network and NICTYPES[network.type] or "bridged")
  elseif device.type == "gpu" then
    return "gpu " .. (device.gputype or "physical")
  end
  return device.type
end

---What changing a device does to a running container that sees it (profiles and its own merged).
---@param before table<string, string>? nil: it is added
---@param after table<string, string>? nil: it goes
---@param networks table<string, { type: string }>? the server's managed networks
---@return string effect `none`, `live`, `replug`, `stop`, `next_start`, `replace`
function effects.device(before, after, networks)
  -- Type `none` hides a profile's device: nothing is plugged in.
  before = before and before.type ~= "none" and before or nil
  after = after and after.type ~= "none" and after or nil
  if not before and not after or before and after and not values.differs(before, after) then
    return "none"
  end
  local was, will = before and class(before, networks), after and class(after, networks)
  if COLD[was] or COLD[will] then
    return "stop"
  elseif not before then
    return "live"
  elseif not after then
    return "replug"
  end
  local updatable = was == will and UPDATABLE[was] or {}
  local worst = "live"
  for _, side in ipairs { before, after } do
    for key in pairs(side) do
      if before[key] ~= after[key] and not updatable[key] then
        worst = "replug"
      end
    end
  end
  -- The root filesystem stays mounted whatever is changed about it (tried with 5.0.2), and where it is.
  if worst == "replug" and before.path == "/" and after.path == "/" then
    worst = before.pool == after.pool and "next_start" or "replace"
  end
  return worst
end

return effects
