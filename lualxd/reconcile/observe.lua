-- What is on the server, as far as the declaration needs it: reads only. Whole lists are asked
-- for, so the number of requests depends on how many kinds, projects and pools there are, never
-- on how many objects.
local core = require "lualxd.core"
local errors = require "lualxd.error"
local options = require "lualxd.options"
local task = require "lualxd.task"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"

local observe = {}

---@class lualxd.reconcile.observed
---@field home string the client's project
---@field projects table<string, table>? name -> its config; nil: a server without projects
---@field scope table<string, boolean> projects that this declaration is about
---@field objects table section -> project -> name -> data
---@field images table project -> { aliases: name -> fingerprint, fingerprints: set }
---@field pools table<string, boolean>?
---@field networks table? project -> name -> data
---@field snapshots table project -> instance -> name -> true
---@field files table project -> instance -> path -> what is there
---@field busy table project -> instance -> true: an operation on what isn't made yet is under way

---The client for a project. The project that the client has already isn't named again: a server
---without projects knows no such parameter.
---@param client lualxd.client
---@param home string
---@param project string
---@return lualxd.client
function observe.scoped(client, home, project)
  return project == home and client or client:project(project)
end

---Where objects of a kind are that are declared in a project: one without the feature has them
---in `default`.
---@param observed lualxd.reconcile.observed
---@param feature string?
---@param project string
---@return string
function observe.effective(observed, feature, project)
  local config = observed.projects and observed.projects[project]
  if feature and config and project ~= "default" and config[feature] ~= "true" then
    return "default"
  end
  return project
end

-- What the declaration refers to, beside its objects.
local function references(declared)
  local needs = {}
  for _, entry in ipairs(declared.entries) do
    local source = entry.image and entry.image.source
    if entry.image and not (source and (source.server or source.type == "none")) then
      needs.images = true
    end
    for _, leaf in ipairs(entry.leaves) do
      if leaf.device and leaf.text then
        needs.pools = needs.pools or leaf.key == "pool"
        needs.networks = needs.networks or leaf.key == "network" or leaf.key == "parent"
      end
    end
  end
  return needs
end

-- Runs several readers at once; the first error in their order is the error.
local function all(readers)
  local _, err = task.map(readers, function(reader)
    local ok, problem = reader()
    return ok and true or nil, problem
  end)
  if not err then
    return true
  end
  for index = 1, #readers do
    if err.errors[index] ~= nil then
      return nil, err.errors[index]
    end
  end
end

local function read_projects(client, observed)
  local list, err = client.projects:list()
  if not list then
    return nil, err
  end
  observed.projects = {}
  for _, project in ipairs(list) do
    observed.projects[project.name] = project.config or {}
    observed.used_by[project.name] = project.used_by or {}
  end
  return true
end

-- Whether a project has objects of a kind that could be ours.
local function has_objects(used_by, kind)
  for _, url in ipairs(used_by or {}) do
    local section, name = url:match("^/1%.0/([^/]+)/([^/?]+)")
    if kind.runs and (section == "instances" or section == "containers")
      or section == kind.section and not (kind.fixed and kind.fixed[name]) then
      return true
    end
  end
  return false
end

-- The projects whose objects of a kind are to be looked at: those that the declaration is
-- about, and, for a client that isn't scoped to one, any other that has some, because a stack
-- may have left objects there.
local function projects_of(observed, kind, everywhere)
  local set = {}
  for project in pairs(observed.scope) do
    if not observed.projects or observed.projects[project] then
      set[observe.effective(observed, kind.feature, project)] = true
    end
  end
  if everywhere then
    for project in pairs(observed.projects or {}) do
      if not set[project] and observe.effective(observed, kind.feature, project) == project
        and has_objects(observed.used_by[project], kind) then
        set[project] = true
      end
    end
  end
  local list = {}
  for project in pairs(set) do
    list[#list + 1] = project
  end
  table.sort(list)
  return list
end

local function keep_objects(observed, kind, list, project)
  local by_project = observed.objects[kind.section]
  for _, data in ipairs(list) do
    local where = project or data.project or "default"
    by_project[where] = by_project[where] or {}
    by_project[where][data.name] = data
  end
end

local function object_readers(client, observed, everywhere, readers)
  for _, kind in ipairs(kinds.list) do
    local projects = projects_of(observed, kind, everywhere)
    observed.objects[kind.section] = {}
    for _, project in ipairs(projects) do
      observed.objects[kind.section][project] = {}
    end
    local together = kind.runs and #projects > 1 and client:has("instance_all_projects")
    for _, project in ipairs(together and {} or projects) do
      readers[#readers + 1] = function()
        local scoped = observe.scoped(client, observed.home, project)
        local list, err = scoped[kind.section]:list()
        if list then
          keep_objects(observed, kind, list, project)
        end
        return list, err
      end
    end
    if together then
      readers[#readers + 1] = function()
        local list, err = client[kind.section]:list { all_projects = true }
        if list then
          keep_objects(observed, kind, list)
        end
        return list, err
      end
    end
  end
end

local function read_images(client, observed, project)
  local list, err = observe.scoped(client, observed.home, project).images:list()
  if not list then
    return nil, err
  end
  local images = { aliases = {}, fingerprints = {} }
  for _, image in ipairs(list) do
    images.fingerprints[image.fingerprint] = true
    for _, alias in ipairs(image.aliases or {}) do
      images.aliases[alias.name] = image.fingerprint
    end
  end
  observed.images[project] = images
  return true
end

local function read_networks(client, observed, project)
  local list, err = observe.scoped(client, observed.home, project).networks:list()
  if not list then
    return nil, err
  end
  observed.networks[project] = {}
  for _, network in ipairs(list) do
    observed.networks[project][network.name] = network
  end
  return true
end

local function read_pools(client, observed)
  local names, err = client.storage_pools:names()
  if not names then
    return nil, err
  end
  observed.pools = {}
  for _, name in ipairs(names) do
    observed.pools[name] = true
  end
  return true
end

local function scope_of(observed, feature)
  local set, list = {}, {}
  for project in pairs(observed.scope) do
    local effective = observe.effective(observed, feature, project)
    if not set[effective] and (not observed.projects or observed.projects[effective]) then
      set[effective] = true
      list[#list + 1] = effective
    end
  end
  table.sort(list)
  return list
end

local function reference_readers(client, observed, needs, readers)
  if needs.images then
    for _, project in ipairs(scope_of(observed, "features.images")) do
      readers[#readers + 1] = function()
        return read_images(client, observed, project)
      end
    end
  end
  if needs.pools and client:has("storage") then
    readers[#readers + 1] = function()
      return read_pools(client, observed)
    end
  end
  if needs.networks and client:has("network") then
    observed.networks = {}
    for _, project in ipairs(scope_of(observed, "features.networks")) do
      readers[#readers + 1] = function()
        return read_networks(client, observed, project)
      end
    end
  end
end

---The object that an entry is about, as the server has it.
---@param observed lualxd.reconcile.observed
---@param entry lualxd.reconcile.entry
---@return table? data
---@return string project where it is or would be
function observe.find(observed, entry)
  local project = observe.effective(observed, entry.kind.feature, entry.project or observed.home)
  local objects = observed.objects[entry.kind.section][project]
  return objects and objects[entry.name], project
end

local function root_pool(data)
  for _, device in pairs(data.expanded_devices or {}) do
    if device.type == "disk" and device.path == "/" then
      return device.pool
    end
  end
end

local function note_snapshot(observed, project, instance, name)
  local by_name = observed.snapshots[project] or {}
  observed.snapshots[project] = by_name
  by_name[instance] = by_name[instance] or {}
  by_name[instance][name] = true
end

-- The names of all snapshots of a pool's containers come in one answer, as URLs. LXD 5.0 escapes
-- them twice there (as `%25C3%25BC`), a server that does it once leaves nothing for the second look.
local function read_volumes(client, observed, project, pool)
  local path = "/1.0/storage-pools/" .. options.escape(pool) .. "/volumes"
  local answer, err = observe.scoped(client, observed.home, project):request("GET", path)
  if not answer then
    return nil, err
  end
  for _, url in ipairs(answer.json and answer.json.metadata or {}) do
    local instance, name = url:match("/volumes/container/([^/?]+)/snapshots/([^/?]+)")
    if instance then
      name = options.unescape(name)
      note_snapshot(observed, project, options.unescape(instance), name)
      note_snapshot(observed, project, options.unescape(instance), options.unescape(name))
    end
  end
  return true
end

local function read_snapshots(client, observed, section, project, instance)
  local scoped = observe.scoped(client, observed.home, project)
  local names, err = scoped[section](instance).snapshots:names()
  for _, name in ipairs(names or {}) do
    note_snapshot(observed, project, instance, name)
  end
  return names, err
end

local function snapshot_readers(client, declared, observed, readers)
  local asked = {}
  for _, entry in ipairs(declared.entries) do
    local data, project = observe.find(observed, entry)
    if data and entry.snapshots and #entry.snapshots > 0 then
      local pool = client:has("storage") and root_pool(data)
      local key = pool and project .. "/" .. pool
      if not pool then
        readers[#readers + 1] = function()
          return read_snapshots(client, observed, entry.kind.section, project, entry.name)
        end
      elseif not asked[key] then
        asked[key] = true
        readers[#readers + 1] = function()
          return read_volumes(client, observed, project, pool)
        end
      end
    end
  end
end

local function read_file(client, observed, section, project, instance, name)
  local node = observe.scoped(client, observed.home, project)[section](instance)
  local bytes, info = node.files:read(name)
  local there
  if bytes then
    there = { sha256 = core.sha256(bytes), uid = info.uid, gid = info.gid, mode = info.mode }
  elseif info.kind == "not_found" or info.kind == "invalid" then
    there = { missing = true } -- or something that isn't a file
  else
    return nil, info
  end
  local by_name = observed.files[project] or {}
  observed.files[project] = by_name
  by_name[instance] = by_name[instance] or {}
  by_name[instance][name] = there
  return true
end

local function file_readers(client, declared, observed, readers)
  for _, entry in ipairs(declared.entries) do
    local data, project = observe.find(observed, entry)
    local mark = data and marker.read(data.config, declared.stack, entry.kind.noun, project,
      entry.name)
    if mark and mark.whose == "ours" then
      for _, file in ipairs(entry.files or {}) do
        readers[#readers + 1] = function()
          return read_file(client, observed, entry.kind.section, project, entry.name, file.name)
        end
      end
    end
  end
end

---Whether an operation is under way and about an object.
---@param operation table
---@param entry lualxd.reconcile.entry
---@return boolean
function observe.is_about(operation, entry)
  if type(operation.status_code) ~= "number" or operation.status_code >= 200 then
    return false
  end
  for _, urls in pairs(operation.resources or {}) do
    for _, url in ipairs(type(urls) == "table" and urls or {}) do
      local section, name = url:match("^/1%.0/([^/]+)/([^/?]+)")
      if name == entry.name and (section == "instances" or section == entry.kind.section) then
        return true
      end
    end
  end
  return false
end

local function read_busy(client, observed, project, entries)
  local list, err = observe.scoped(client, observed.home, project).operations:list()
  if not list then
    return nil, err
  end
  observed.busy[project] = {}
  for _, operation in ipairs(list) do
    for _, entry in ipairs(entries) do
      if observe.is_about(operation, entry) then
        observed.busy[project][entry.name] = true
      end
    end
  end
  return true
end

-- Whether creations that aren't over are under way: asked only if there are some.
local function busy_readers(client, declared, observed, readers)
  local unfinished = {}
  for _, entry in ipairs(declared.entries) do
    local data, project = observe.find(observed, entry)
    if data and entry.kind.runs and kinds.half_made(data) then
      if not unfinished[project] then
        unfinished[project] = {}
        readers[#readers + 1] = function()
          return read_busy(client, observed, project, unfinished[project])
        end
      end
      table.insert(unfinished[project], entry)
    end
  end
end

---@param client lualxd.client
---@param declared lualxd.reconcile.declared
---@param policy table
---@return lualxd.reconcile.observed?
---@return lualxd.error? err
function observe.read(client, declared, policy)
  local scoped_to = client._scope.project
  local observed = {
    home = scoped_to or "default",
    projects = nil,
    used_by = {},
    scope = {},
    objects = {},
    images = {},
    pools = nil,
    networks = nil,
    snapshots = {},
    files = {},
    busy = {},
  }
  observed.scope[observed.home] = true
  for _, entry in ipairs(declared.entries) do
    observed.scope[entry.project or observed.home] = true
    if entry.project and entry.project ~= "default" and not client:has("projects") then
      return nil, errors.new("unsupported", { extension = "projects",
        message = entry.path .. ".project: the server lacks the API extension projects" })
    end
  end
  local ok, err = true, nil
  if client:has("projects") then
    ok, err = read_projects(client, observed)
  end
  if not ok then
    return nil, err
  end
  local readers = {}
  object_readers(client, observed, scoped_to == nil, readers)
  reference_readers(client, observed, references(declared), readers)
  ok, err = all(readers)
  if not ok then
    return nil, err
  end
  readers = {}
  snapshot_readers(client, declared, observed, readers)
  busy_readers(client, declared, observed, readers)
  if policy.verify == "files" then
    file_readers(client, declared, observed, readers)
  end
  ok, err = all(readers)
  if not ok then
    return nil, err
  end
  return observed
end

return observe
