-- A small LXD in memory, as the reconciler sees one: what it does to objects, without HTTP. It
-- is strict where LXD would be silent (a PUT that drops a volatile key fails), counts every
-- request, and can be told to die at one of them. What it can't show is what LXD really does:
-- that is what the specs against the real one are for.
local errors = require "lualxd.error"

local model = {}

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
model.copy = copy

local function fail(kind, message)
  return nil, errors.new(kind, { message = message })
end

local function op(ok, err)
  return {
    wait = function()
      return ok, err
    end,
    progress = function() end,
  }
end

local Server = {}
Server.__index = Server

---@param settings { images: table<string, string>?, pools: string[]? }?
function model.new(settings)
  settings = settings or {}
  return setmetatable({
    profiles = { default = { config = {}, description = "", devices = {
      root = { type = "disk", path = "/", pool = "default" } } } },
    containers = {},
    images = settings.images or { busybox = ("ab"):rep(32) },
    pools = settings.pools or { "default" },
    clock = 0, -- of starts
    version = 0, -- of everything: an ETag
    log = {}, -- "METHOD what"
    die_at = nil, -- 2n - 1, 2n: the caller dies before, after the n-th change takes effect
    changes = 0, -- requests that change something
    meddle = nil, -- function called before each change
  }, Server)
end

-- Notes a request; raises where the caller is to die.
function Server:request(what, f)
  self.log[#self.log + 1] = what
  if what:find("^GET") then
    return f()
  end
  if self.meddle then
    self.meddle(self, what)
  end
  self.changes = self.changes + 1
  if self.die_at == 2 * self.changes - 1 then
    error("died before " .. what, 0)
  end
  local result, err = f()
  if self.die_at == 2 * self.changes then
    error("died after " .. what, 0)
  end
  return result, err
end

local function cleaned(config)
  local kept = {}
  for key, value in pairs(config or {}) do
    assert(type(value) == "string", key .. " is a " .. type(value))
    kept[key] = value ~= "" and value or nil
  end
  return kept
end

local function cleaned_devices(devices)
  local kept = {}
  for name, device in pairs(devices or {}) do
    assert(device.type, "device " .. name .. " has no type")
    kept[name] = cleaned(device)
  end
  return kept
end

function Server:expanded(container)
  local config, devices = {}, {}
  for _, name in ipairs(container.profiles) do
    for key, value in pairs(self.profiles[name].config) do
      config[key] = value
    end
    for device, value in pairs(self.profiles[name].devices) do
      devices[device] = copy(value)
    end
  end
  for key, value in pairs(container.config) do
    config[key] = value
  end
  for device, value in pairs(container.devices) do
    devices[device] = copy(value)
  end
  return config, devices
end

local function used_by(self, name)
  local urls = {}
  for container, data in pairs(self.containers) do
    for _, profile in ipairs(data.profiles) do
      if profile == name then
        urls[#urls + 1] = "/1.0/instances/" .. container
      end
    end
  end
  return urls
end

function Server:data(section, name)
  local object = self[section][name]
  if not object then
    return nil
  end
  local data = copy(object)
  data.name, data.files, data.snapshots, data.directories = name, nil, nil, nil
  if section == "profiles" then
    data.used_by = used_by(self, name)
  else
    data.expanded_config, data.expanded_devices = self:expanded(object)
    data.project, data.type, data.location = "default", "container", "none"
  end
  return data
end

function Server:list(section)
  return self:request("GET " .. section, function()
    local names, list = {}, {}
    for name in pairs(self[section]) do
      names[#names + 1] = name
    end
    table.sort(names)
    for index, name in ipairs(names) do
      list[index] = self:data(section, name)
    end
    return list
  end)
end

local function check_profiles(self, names)
  for _, name in ipairs(names) do
    if not self.profiles[name] then
      return fail("not_found", "Requested profile '" .. name .. "' doesn't exist")
    end
  end
  return true
end

local function volatile_kept(old, new)
  for key in pairs(old) do
    assert(not key:find("^volatile%.") or new[key], "a PUT dropped " .. key)
  end
end

local Item = {}
Item.__index = Item

function Item:get()
  return self.server:request("GET " .. self.path, function()
    local data = self.server:data(self.section, self.name)
    if not data then
      return fail("not_found", "not found")
    end
    return data, tostring(self.server.version)
  end)
end

function Item:exists()
  return self.server[self.section][self.name] ~= nil
end

function Item:put(body, etag)
  local server = self.server
  return op(server:request("PUT " .. self.path, function()
    local object = server[self.section][self.name]
    if not object then
      return fail("not_found", "not found")
    elseif etag and etag ~= tostring(server.version) then
      return fail("conflict", "ETag doesn't match")
    end
    volatile_kept(object.config, body.config)
    local ok, err = check_profiles(server, body.profiles or {})
    if not ok then
      return nil, err
    end
    object.config, object.devices = cleaned(body.config), cleaned_devices(body.devices)
    object.description = body.description or ""
    if self.section == "containers" then
      object.profiles, object.ephemeral = copy(body.profiles or {}), body.ephemeral or false
    end
    server.version = server.version + 1
    return true
  end))
end

function Item:delete(settings)
  local server = self.server
  return op(server:request("DELETE " .. self.path, function()
    local object = server[self.section][self.name]
    if not object then
      return fail("not_found", "not found")
    elseif self.section == "profiles" and #used_by(server, self.name) > 0 then
      return fail("in_use", "Profile is currently in use")
    elseif object.status and object.status ~= "Stopped" and not (settings or {}).force then
      return fail("state", "Instance is running")
    end
    server[self.section][self.name] = nil
    server.version = server.version + 1
    return true
  end))
end

local function state_change(action, from, to)
  Item[action] = function(self)
    local server = self.server
    return op(server:request("STATE " .. action .. " " .. self.path, function()
      local object = server.containers[self.name]
      if not object then
        return fail("not_found", "not found")
      elseif not from[object.status] then
        return fail("state", "The instance is " .. object.status)
      end
      if action == "start" or action == "restart" then
        server.clock = server.clock + 1
        object.last_used_at = "boot " .. server.clock
        object.config["volatile.last_state.power"] = "RUNNING"
        object.config["volatile.apply_template"] = nil
        -- What is stored now is what it runs with.
        object.runs_with = server:expanded(object)
      end
      object.status = to
      server.version = server.version + 1
      if to == "Stopped" and object.ephemeral then
        server.containers[self.name] = nil
      end
      return true
    end))
  end
end

state_change("start", { Stopped = true }, "Running")
state_change("stop", { Running = true, Frozen = true }, "Stopped")
state_change("restart", { Running = true }, "Running")
state_change("freeze", { Running = true }, "Frozen")
state_change("unfreeze", { Frozen = true }, "Running")

local Files = {}
Files.__index = Files

function Files:write(path, content, settings)
  return op(self.server:request("FILE " .. self.name .. path, function()
    local object = self.server.containers[self.name]
    local parent = path:match("^(.*)/[^/]*$")
    if parent ~= "" and not object.directories[parent] then
      return fail("not_found", "Not Found")
    end
    local old = object.files[path] or { mode = 420, uid = 0, gid = 0 }
    object.files[path] = { content = content, mode = settings.mode or old.mode,
      uid = settings.uid or old.uid, gid = settings.gid or old.gid }
    return true
  end))
end

function Files:mkdir(path)
  return op(self.server:request("MKDIR " .. self.name .. path, function()
    self.server.containers[self.name].directories[path] = true
    return true
  end))
end

function Files:read(path)
  return self.server:request("GET file " .. self.name .. path, function()
    local file = self.server.containers[self.name].files[path]
    if not file then
      return fail("not_found", "Not Found")
    end
    return file.content, { uid = file.uid, gid = file.gid, mode = file.mode, type = "file" }
  end)
end

local Snapshots = {}
Snapshots.__index = Snapshots

function Snapshots:create(data)
  return op(self.server:request("SNAPSHOT " .. self.name .. "/" .. data.name, function()
    local object = self.server.containers[self.name]
    if object.snapshots[data.name] then
      return fail("exists", "already exists")
    end
    object.snapshots[data.name] = { config = copy(object.config), status = object.status }
    return true
  end))
end

function Snapshots:names()
  return self.server:request("GET snapshots " .. self.name, function()
    local names = {}
    for name in pairs(self.server.containers[self.name].snapshots) do
      names[#names + 1] = name
    end
    return names
  end)
end

local function item(server, section, name)
  local node = setmetatable({ server = server, section = section, name = name,
    path = "/1.0/" .. section .. "/" .. name }, Item)
  node.files = setmetatable({ server = server, name = name }, Files)
  node.snapshots = setmetatable({ server = server, name = name }, Snapshots)
  return node
end

local function create(server, section, data)
  return op(server:request("POST " .. section .. "/" .. data.name, function()
    if server[section][data.name] then
      return fail("exists", "already exists")
    end
    local object = { config = cleaned(data.config), devices = cleaned_devices(data.devices),
      description = data.description or "" }
    if section == "containers" then
      local base = data.source.fingerprint or server.images[data.source.alias]
      local ok, err = check_profiles(server, data.profiles or { "default" })
      if not ok then
        return nil, err
      end
      object.profiles = copy(data.profiles or { "default" })
      object.ephemeral = data.ephemeral or false
      object.architecture, object.status = "x86_64", "Stopped"
      object.last_used_at = "1970-01-01T00:00:00Z"
      object.config["volatile.base_image"] = assert(base, "no image")
      object.config["volatile.uuid"] = "uuid"
      object.config["volatile.apply_template"] = "create"
      object.config["image.os"] = "busybox"
      object.files, object.snapshots, object.directories = {}, {}, { ["/etc"] = true }
    end
    server[section][data.name] = object
    server.version = server.version + 1
    return true
  end))
end

local function collection(server, section)
  return setmetatable({
    list = function()
      return server:list(section)
    end,
    create = function(_, data)
      return create(server, section, data)
    end,
  }, {
    __call = function(_, name)
      return item(server, section, name)
    end,
  })
end

local function volumes(server)
  local urls = {}
  for name, object in pairs(server.containers) do
    for snapshot in pairs(object.snapshots) do
      urls[#urls + 1] = "/1.0/storage-pools/default/volumes/container/" .. name .. "/snapshots/"
        .. snapshot
    end
  end
  return { status = 200, json = { metadata = urls } }
end

---What the reconciler takes for a client.
function Server:client()
  local server = self
  local client = { _scope = { project = nil } }
  client.profiles, client.containers = collection(server, "profiles"),
    collection(server, "containers")
  client.images = { list = function()
    return server:request("GET images", function()
      local list = {}
      for alias, fingerprint in pairs(server.images) do
        list[#list + 1] = { fingerprint = fingerprint, aliases = { { name = alias } } }
      end
      return list
    end)
  end }
  client.storage_pools = { names = function()
    return server:request("GET pools", function()
      return copy(server.pools)
    end)
  end }
  client.networks = { list = function()
    return server:request("GET networks", function()
      return { { name = "br0", managed = true, type = "bridge" } }
    end)
  end }
  client.operations = { list = function()
    return server:request("GET operations", function()
      return copy(server.operations or {})
    end)
  end }
  function client:has(extension) -- luacheck: no self
    return extension ~= "projects"
  end
  function client:request(method, path) -- luacheck: no self
    if path:find("/volumes$") then
      return server:request("GET volumes", function()
        return volumes(server)
      end)
    end
    local name = path:match("/containers/([^/]+)/exec$")
    if not name then
      return server:request(method .. " " .. path, function()
        return { status = 200, json = {} }
      end)
    end
    return server:request(method .. " exec " .. name, function()
      local running = server.containers[name].status == "Running"
      return { operation = op(running and { metadata = { ["return"] = 0 } } or nil,
        not running and errors.new("state", {}) or nil) }
    end)
  end
  return client
end

return model
