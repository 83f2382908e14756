-- What only instances can do: change their state, be copied, moved, restored, published, run commands, be talked to.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local console = require "lualxd.console"
local http = require "lualxd.http"
local json = require "lualxd.json"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"
local process = require "lualxd.process"

local instance = {}

---@class lualxd.instance : lualxd.item a container or a virtual machine
---@field snapshots lualxd.collection
---@field backups lualxd.collection
---@field files lualxd.files
---@field state fun(self): table?, lualxd.error?
---@field start fun(self, settings: { stateful: boolean?, timeout: integer? }?): lualxd.operation
---@field stop fun(self, settings: { force: boolean?, stateful: boolean?, timeout: integer? }?): lualxd.operation
---@field restart fun(self, settings: { force: boolean?, timeout: integer? }?): lualxd.operation
---@field freeze fun(self, settings: { timeout: integer? }?): lualxd.operation
---@field unfreeze fun(self, settings: { timeout: integer? }?): lualxd.operation
instance.item = {}

-- One row a state change. `statuses`: what the instance is after it, where that tells (LXD's `Ready` is a running
-- instance that said so itself, shared/api/status_code.go).
local RUNNING = { Running = true, Ready = true }
local STATES = {
  start = { options = { stateful = "boolean", timeout = "integer" }, statuses = RUNNING },
  -- An ephemeral instance is gone once it has stopped.
  stop = {
    options = { force = "boolean", stateful = "boolean", timeout = "integer" },
    statuses = { Stopped = true, Gone = true },
  },
  restart = { options = { force = "boolean", timeout = "integer" } },
  freeze = { options = { timeout = "integer" }, statuses = { Frozen = true } },
  unfreeze = { options = { timeout = "integer" }, statuses = RUNNING },
}

local function change_state(node, action, settings, what)
  local row = STATES[action]
  local body = { action = action }
  for name, value in pairs(settings) do
    body[name] = value
  end
  local proof = row.statuses
    and outcome.status(node.scope, node.path, what, row.statuses) or outcome.unknown(what)
  return { json = json.encode(body) }, proof
end

for action, row in pairs(STATES) do
  instance.item[action] = function(self, settings)
    settings = options.check(settings, row.options, action)
    local what = action .. " " .. self.kind.one .. " " .. self.name
    return operation.start(self.scope, what, function(change)
      local request, proof = change_state(self, action, settings, what)
      return change:send("PUT", self.path .. "/state", request, proof)
    end)
  end
end

---@param settings { force: boolean? }? with `force` a running instance is stopped first, without asking its processes
---@return lualxd.operation
function instance.item:delete(settings)
  local force = options.check(settings, { force = "boolean" }, "delete").force
  local what = "delete " .. self.kind.one .. " " .. self.name
  return operation.start(self.scope, what, function(change)
    local gone = outcome.gone(self.scope, self.path, what)
    if force then
      local request, proof = change_state(self, "stop", { force = true }, what)
      local _, err = change:complete("PUT", self.path .. "/state", request, proof)
      -- Stopped already is what was wanted; so is gone (ephemeral), unless it never was there.
      if err and err.kind ~= "state" then
        return nil, err
      end
      local result
      result, err = change:send("DELETE", self.path, nil, gone)
      if err and err.kind == "not_found" then
        return true
      end
      return result, err
    end
    return change:send("DELETE", self.path, nil, gone)
  end)
end

---Puts the instance back to one of its snapshots.
---@param snapshot string
---@param settings { stateful: boolean? }?
---@return lualxd.operation
function instance.item:restore(snapshot, settings)
  options.segment(snapshot, "restore: snapshot") -- LXD takes `""` for a change that unsets everything
  settings = options.check(settings, { stateful = "boolean" }, "restore")
  local what = "restore " .. self.kind.one .. " " .. self.name
  local body = json.encode { restore = snapshot, stateful = settings.stateful }
  return operation.start(self.scope, what, function(change)
    return change:send("PUT", self.path, { json = body }, outcome.unknown(what))
  end)
end

-- What is to be sent; raises at the caller for what JSON can't hold.
local function checked(who, data)
  local ok, strings = pcall(json.as_strings, data)
  local fine, problem = pcall(json.encode, strings)
  if not ok or not fine then
    error(who .. ": " .. (ok and problem or strings), 3)
  end
  return strings
end

local COPY = {
  snapshot = "string", config = "table", devices = "table", profiles = "table",
  description = "string", ephemeral = "boolean", instance_only = "boolean", project = "string",
}

---Makes a copy on the same server.
---@param name string of the copy
---@param settings table? `snapshot`: of this instance, to copy from instead of its present state; `project`:
---where the copy goes; `instance_only`: without snapshots; `config`, `devices`, `profiles`,
---`description`, `ephemeral`: of the copy
---@return lualxd.operation
function instance.item:copy(name, settings)
  local segment = options.segment(name, "copy: name")
  settings = options.check(settings, COPY, "copy")
  local what = "copy " .. self.kind.one .. " " .. self.name
  local source = settings.snapshot and self.name .. "/" .. settings.snapshot or self.name
  local request = checked("copy", {
    name = name,
    config = settings.config,
    devices = settings.devices,
    profiles = settings.profiles,
    description = settings.description,
    ephemeral = settings.ephemeral,
    source = {
      type = "copy",
      source = source,
      project = settings.project and (self.scope.project or "default"), -- else LXD looks where the copy goes
      instance_only = settings.instance_only,
      -- LXD takes a missing `live` for true and then wants CRIU for a running source.
      live = false,
    },
  })
  local scope = settings.project
    and { link = self.scope.link, project = settings.project, target = self.scope.target }
    or self.scope
  local source_path = self.path .. (settings.snapshot
    and "/snapshots/" .. options.segment(settings.snapshot, "copy: snapshot") or "")
  return operation.start(scope, what, function(change)
    -- The source's config and devices LXD 5.0 takes by itself, its profiles it doesn't: without any the copy
    -- has no root disk. `lxc copy` sends them, too.
    local answer, err = http.ask(self.scope, "GET", source_path, {
      tried = what,
      needs = settings.project and "projects" or settings.instance_only and "container_only_migration",
    })
    if not answer then
      return nil, err
    end
    for _, field in ipairs { "profiles", "description", "ephemeral" } do
      if request[field] == nil then
        request[field] = answer.data[field]
      end
    end
    return change:send("POST", self.parent, { json = json.encode(request) },
      outcome.created(scope, self.parent .. "/" .. segment, what))
  end)
end

local MOVE = { target = "string", pool = "string", project = "string" }

---Moves the instance: to another name, pool, project or cluster member.
---@param name string? its new name; nil: as it is
---@param settings { target: string?, pool: string?, project: string? }?
---@return lualxd.operation
function instance.item:move(name, settings)
  local segment = name == nil and options.escape(self.name) or options.segment(name, "move: name")
  settings = options.check(settings, MOVE, "move")
  local what = "move " .. self.kind.one .. " " .. self.name
  local elsewhere = settings.target or settings.pool or settings.project
  if not elsewhere and (name == nil or name == self.name) then
    error("move: needs a new name, or one of target, pool, project", 2)
  end
  local body = json.encode {
    name = name or self.name,
    migration = elsewhere and true or nil,
    live = elsewhere and false or nil,
    pool = settings.pool,
    project = settings.project,
  }
  local scope = { link = self.scope.link, project = settings.project or self.scope.project }
  local path = self.parent .. "/" .. segment
  local proof = outcome.unknown(what)
  if path ~= self.path and not settings.project then
    proof = outcome.moved(scope, self.path, path, what)
  end
  local needs = settings.project and "instance_project_move" or settings.pool and "instance_pool_move"
    or settings.target and "clustering"
  return operation.start(self.scope, what, function(change)
    return change:send("POST", self.path, {
      json = body,
      query = { target = settings.target },
      needs = needs,
    }, proof)
  end)
end

local PUBLISH = {
  snapshot = "string", alias = "string", public = "boolean", properties = "table",
  compression_algorithm = "string",
}

---Makes an image of the instance (stopped) or of one of its snapshots.
---@param settings table? `snapshot`, `alias`, `public`, `properties`, `compression_algorithm`
---@return lualxd.operation its data's `metadata.fingerprint` names the image
function instance.item:publish(settings)
  settings = options.check(settings, PUBLISH, "publish")
  if settings.snapshot then
    options.segment(settings.snapshot, "publish: option 'snapshot'")
  end
  local what = "publish " .. self.kind.one .. " " .. self.name
  local body = json.encode(checked("publish", {
    public = settings.public,
    properties = settings.properties,
    compression_algorithm = settings.compression_algorithm,
    aliases = settings.alias and json.array { { name = settings.alias } } or nil,
    source = {
      type = settings.snapshot and "snapshot" or "container",
      name = settings.snapshot and self.name .. "/" .. settings.snapshot or self.name,
    },
  }))
  return operation.start(self.scope, what, function(change)
    return change:send("POST", "/1.0/images", {
      json = body,
      needs = settings.compression_algorithm and "image_compression_algorithm",
    }, outcome.unknown(what))
  end)
end

---Runs a command and waits for its end. One that ran and failed is a result, not an error.
---@param argv string[]
---@param settings table? `stdin` (a string, or a function that gives pieces and nil at the end, or nil and why it
---failed); `stdout`, `stderr` (functions that get each piece); `env`, `cwd`, `user`, `group`; `timeout` (seconds; TERM,
---then KILL); `max_output` (bytes of each output that are kept); `tty` (`{ width, height }`: a terminal)
---@return { status: integer?, stdout: string?, stderr: string?, truncated: true? }? result
---@return lualxd.error? err of kind `timeout` it has `result`
function instance.item:exec(argv, settings)
  return process.exec(self, argv, settings)
end

---Starts a command, to talk to it: `:read`, `:write`, `:close_stdin`, `:signal`, `:resize`, `:wait`.
---@param argv string[]
---@param settings table? as of `exec`
---@return lualxd.process?
---@return lualxd.error? err
function instance.item:spawn(argv, settings)
  return process.start(self, argv, settings, "spawn")
end

---Attaches to the console: `:read`, `:write`, `:resize`, `:close`. Who is second is told so in the terminal.
---@param settings { width: integer?, height: integer? }? 80 by 24 unless told
---@return lualxd.console?
---@return lualxd.error? err
function instance.item:console(settings)
  return console.open(self, settings)
end

---What the console has shown so far, as far as LXD keeps it. Waits.
---@return string? text
---@return lualxd.error? err
function instance.item:console_log()
  return console.log(self)
end

---Empties the log of the console.
---@return lualxd.operation
function instance.item:clear_console_log()
  local what = "clear the log of the console of " .. self.kind.one .. " " .. self.name
  return operation.start(self.scope, what, function(change)
    return change:send("DELETE", self.path .. "/console", { needs = "console" }, outcome.unknown(what))
  end)
end

return instance
