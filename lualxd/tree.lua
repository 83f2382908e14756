-- Collections and items of all kinds: LXD's URL `/1.0/containers/web/snapshots/s0` is
-- `client.containers "web".snapshots "s0"`. Nothing here does I/O before a method is called.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local editing = require "lualxd.editing"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local kinds = require "lualxd.kinds"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"

local tree = {}

---@class lualxd.node a collection or an item
---@field scope lualxd.scope
---@field kind table a row of kinds.lua
---@field path string
---@field name string? of an item

-- Whether the server lacks what this kind needs.
local function lacking(node, extension)
  if not extension or node.scope.link.has(extension) then
    return nil
  end
  return errors.new("unsupported", {
    extension = extension,
    tried = "use of " .. (node.kind.one or "server") .. "s",
    message = "the server lacks the API extension " .. extension,
  })
end

local function ask(node, method, path, settings)
  local err = lacking(node, node.kind.extension)
  if err then
    return nil, err
  end
  return http.ask(node.scope, method, path, settings)
end

-- Starts a change of a node; what the server lacks is told before anything is sent.
local function start(node, tried, flow)
  return operation.start(node.scope, tried, function(change)
    local err = lacking(node, node.kind.extension)
    if err then
      return nil, err
    end
    return flow(change)
  end)
end

-- The text to send; raises where JSON can't hold the data.
local function encode(node, data)
  return json.encode(node.kind.verbatim and node.kind.verbatim(data) or json.as_strings(data))
end

-- The text of what a script gave to send.
local function encoded(node, data, who)
  options.argument(data, "table", who .. ": data", 3)
  local ok, text = pcall(encode, node, data)
  if not ok then
    error(who .. ": " .. text, 3)
  end
  return text
end

local function tried(verb, node)
  return verb .. " " .. node.kind.one .. (node.name and " " .. node.name or "")
end

----------------------------------------------------------------------------------------------------
-- Items

---@class lualxd.item : lualxd.node an object of the server
local item = {}

local DELETE = { force = "boolean" }

---@return table? data
---@return string|lualxd.error? etag_or_err
function item:get()
  local answer, err = ask(self, "GET", self.path, { tried = tried("get", self), object = true })
  if not answer then
    return nil, err
  end
  return answer.data, answers.etag(self.scope.link, answer.head)
end

---@return boolean? exists
---@return lualxd.error? err where that couldn't be found out
function item:exists()
  local data, err = self:get()
  if data then
    return true
  elseif err.kind == "not_found" then
    return false
  end
  return nil, err
end

---Replaces the object's data. What LXD allows to be written and `data` doesn't have is unset.
---@param data table
---@param etag string? of the `get` that `data` came from: refused as `conflict` if it changed since
---@return lualxd.operation
function item:put(data, etag)
  local what = tried("update", self)
  local body = encoded(self, data, "put")
  if etag ~= nil then
    options.argument(etag, "string", "put: etag")
  end
  return start(self, what, function(change)
    return change:send("PUT", self.path, { json = body, etag = etag }, outcome.unknown(what))
  end)
end

-- A change that edits the object, one after the other.
local function edit(node, what, f)
  return start(node, what, function(change)
    return editing.edit(change, node, f, encode)
  end)
end

---Reads the object, lets `f` edit its data in place and puts it, again when it changed meanwhile; sends nothing when
---nothing differs.
---@param f fun(data: table) must not wait; an error that it raises fails the operation
---@return lualxd.operation
function item:update(f)
  options.argument(f, "callable", "update: f")
  local what = tried("update", self)
  return edit(self, what, operation.later(what, f))
end

---Merges into the object, on every server version: what isn't named stays, a key set to `lxd.unset` goes. LXD's own
---PATCH clears the description of most kinds, drops a project's config (lxd#13632) and can't remove a key.
---@param data table
---@return lualxd.operation
function item:patch(data)
  encoded(self, data, "patch")
  return edit(self, tried("update", self), editing.merger(data))
end

---@param name string
---@return lualxd.operation
function item:rename(name)
  local what = tried("rename", self)
  local path = self.parent .. "/" .. options.segment(name, "rename: name")
  local body = json.encode { name = name }
  return start(self, what, function(change)
    return change:send("POST", self.path, { json = body },
      outcome.moved(self.scope, self.path, path, what))
  end)
end

---@param settings { force: boolean? }? `force` stops an instance first; nothing else runs
---@return lualxd.operation
function item:delete(settings)
  options.check(settings, DELETE, "delete")
  local what = tried("delete", self)
  return start(self, what, function(change)
    return change:send("DELETE", self.path, nil, outcome.gone(self.scope, self.path, what))
  end)
end

----------------------------------------------------------------------------------------------------
-- Collections

---@class lualxd.collection : lualxd.node called with a name it gives the item of that name, without asking
---@operator call(string): lualxd.item
local collection = {}

local LIST = { recursion = "integer", filter = "string", all_projects = "boolean" }

-- `{ running = { … }, success = { … } }` as one list; nil where it isn't so.
local function flatten(lists)
  local flat, states = {}, {}
  for state, list in pairs(type(lists) == "table" and lists or { false }) do
    if type(list) ~= "table" then
      return nil
    end
    states[#states + 1] = state
  end
  table.sort(states)
  for _, state in ipairs(states) do
    for _, entry in ipairs(lists[state]) do
      flat[#flat + 1] = entry
    end
  end
  return flat
end

local function name_of(kind, entry)
  if type(entry) == "string" then -- a URL
    return options.unescape(entry:gsub("[?#].*", ""):match("([^/]*)$"))
  end
  local name = entry[kind.key]
  return kind.bare and type(name) == "string" and name:match("([^/]*)$") or name
end

-- Whether it is one of objects that have a name (`of` is "table") or of URLs ("string").
local function is_list(list, of, kind)
  if type(list) ~= "table" then
    return false
  end
  local count = 0
  for _, entry in pairs(list) do
    count = count + 1
    if type(entry) ~= of or type(name_of(kind, entry)) ~= "string" then
      return false
    end
  end
  return count == #list
end

-- The API extension without which the list would be another than was asked for: LXD goes past what it doesn't know.
local function list_needs(kind, settings, recursion)
  if settings.filter then
    return (kind.instance or kind == kinds.images) and "api_filtering" or "api_filtering_extended"
  elseif settings.all_projects and kind.instance then
    return "instance_all_projects"
  end
  return kind.instance and (recursion or 0) > 1 and "container_full" or nil
end

local function listing(node, settings, recursion)
  local query = {
    recursion = recursion,
    filter = settings.filter,
    ["all-projects"] = settings.all_projects and "true" or nil,
  }
  local answer, err = ask(node, "GET", node.path, {
    query = query,
    tried = "list " .. node.kind.one .. "s",
    needs = list_needs(node.kind, settings, recursion),
  })
  if not answer then
    return nil, err
  end
  local list = answer.data
  if list == nil then
    list = {} -- `null` is Go's empty list, too
  elseif node.kind.by_status then
    list = flatten(list)
  end
  -- Whatever else came must not look like an empty list: "nothing there" is what deletes things.
  if not is_list(list, recursion and "table" or "string", node.kind) then
    return nil, errors.new("protocol", {
      tried = "list " .. node.kind.one .. "s",
      request = "GET " .. node.path,
      message = "the answer is not a list of " .. node.kind.one .. "s",
    })
  end
  return list
end

---@param settings { recursion: integer?, filter: string?, all_projects: boolean? }? recursion is 1 unless told; with 0
---the list is of URLs
---@return table[]? list of data
---@return lualxd.error? err
function collection:list(settings)
  settings = options.check(settings, LIST, "list")
  local recursion = settings.recursion or 1
  if recursion < 0 then
    error("list: option 'recursion' must not be negative", 2)
  end
  return listing(self, settings, recursion > 0 and recursion or nil)
end

---@return string[]? names
---@return lualxd.error? err
function collection:names()
  local list, err = listing(self, {}, self.kind.free and 1 or nil)
  if not list then
    return nil, err
  end
  local names = json.array {}
  for _, entry in ipairs(list) do
    names[#names + 1] = name_of(self.kind, entry)
  end
  return names
end

---Iterates over `name, data`; raises an error where the listing fails.
---@param settings { recursion: integer?, filter: string?, all_projects: boolean? }? as of `list`
---@return fun(): string?, table?
function collection:each(settings)
  settings = options.check(settings, LIST, "each")
  local list, err = self:list(settings)
  if not list then
    error(err, 2)
  end
  local index, kind = 0, self.kind
  return function()
    index = index + 1
    local data = list[index]
    if data then
      return name_of(kind, data), data
    end
  end
end

---@param data table
---@return lualxd.operation
function collection:create(data)
  local body = encoded(self, data, "create")
  local name = data[self.kind.key]
  local what = "create " .. self.kind.one .. (type(name) == "string" and " " .. name or "")
  local proof = outcome.unknown(what)
  if self.kind.dated and type(name) == "string" and name ~= "" then
    proof = outcome.created(self.scope, self.path .. "/" .. options.escape(name), what)
  end
  return start(self, what, function(change)
    return change:send("POST", self.path, { json = body }, proof)
  end)
end

----------------------------------------------------------------------------------------------------
-- From rows to objects

local node_meta = setmetatable({}, { __mode = "k" }) -- row -> { collection, item } metatables

local function make(meta, scope, kind, path, name, parent)
  return setmetatable({ scope = scope, kind = kind, path = path, name = name, parent = parent }, meta)
end

local function describe(node)
  return "lualxd." .. node.kind.one:gsub(" ", "_") .. ": " .. node.path
end

local function read_method(what, extension)
  return function(self)
    local err = lacking(self, extension or self.kind.extension)
    if err then
      return nil, err
    end
    local answer, problem = http.ask(self.scope, "GET", self.path .. "/" .. what, {
      tried = tried("get " .. what .. " of", self),
      object = true,
    })
    if not answer then
      return nil, problem
    end
    return answer.data
  end
end

local function copy_into(target, source)
  for name, value in pairs(source or {}) do
    target[name] = value
  end
  return target
end

local metas

-- What an item gives by name: methods, kinds below it, views such as `files`.
local function item_meta(kind)
  local methods = copy_into(copy_into({}, item), kind.items)
  for what, extension in pairs(kind.reads or {}) do
    methods[what] = read_method(what, extension)
  end
  local meta = { __name = "lualxd.item", __tostring = describe }
  function meta.__index(self, name)
    if methods[name] then
      return methods[name]
    elseif kind.below and kind.below[name] then
      return make(metas(kinds[name]).collection, self.scope, kinds[name],
        self.path .. "/" .. kinds[name].path)
    elseif kind.views and kind.views[name] then
      return kind.views[name](self)
    end
  end
  return meta
end

local function collection_meta(kind)
  local methods = copy_into(copy_into({}, collection), kind.collections)
  local meta = { __name = "lualxd.collection", __tostring = describe }
  function meta.__index(self, name)
    if methods[name] then
      return methods[name]
    elseif kind.properties and kind.properties[name] then
      local below = kinds[kind.properties[name]]
      return make(metas(below).collection, self.scope, below, self.path .. "/" .. below.path)
    end
  end
  function meta.__call(self, name)
    local segment = options.segment(name, kind.path)
    return make(metas(kind).item, self.scope, kind, self.path .. "/" .. segment, name, self.path)
  end
  return meta
end

function metas(kind)
  local both = node_meta[kind]
  if not both then
    both = { collection = collection_meta(kind), item = item_meta(kind) }
    node_meta[kind] = both
  end
  return both
end

---A top-level collection of a scope.
---@param scope lualxd.scope
---@param name string
---@return table? collection nil where there is no such kind
function tree.collection(scope, name)
  local kind = kinds[name]
  if kind and tree.TOP[name] then
    if kind.instance and kind.extension then -- which what is below it and can be done with it needs as well
      scope = { link = scope.link, project = scope.project, target = scope.target, needs = kind.extension }
    end
    return make(metas(kind).collection, scope, kind, "/1.0/" .. kind.path)
  end
end

---The kinds that a client has.
tree.TOP = {}
for name in pairs(kinds) do
  tree.TOP[name] = true
end
for _, name in ipairs { "snapshots", "backups", "aliases" } do
  tree.TOP[name] = nil
end

-- In `/1.0` a boolean says "set, hidden" (core.trust_password = true) and goes back as one: as a string it would
-- become the password. Numbers LXD refuses there ("invalid type float64"), so these are strings.
local SERVER = { one = "server", key = "name" }
function SERVER.verbatim(data)
  local copy = copy_into({}, data)
  if type(data.config) == "table" then
    copy.config = {}
    for key, value in pairs(data.config) do
      copy.config[key] = type(value) == "number" and json.number_text(value) or value
    end
  end
  return copy
end

-- A PUT of `/1.0` leaves the `user.*` keys that it doesn't name (5.0.2, tried); an empty value unsets any key.
function SERVER.unset(before, data)
  data.config = data.config or {}
  for key in pairs(before.config or {}) do
    if data.config[key] == nil then
      data.config[key] = ""
    end
  end
end

---The server itself as an item: get, put, patch, update.
---@param scope lualxd.scope
---@return table
function tree.server(scope)
  return make(metas(SERVER).item, scope, SERVER, "/1.0")
end

return tree
