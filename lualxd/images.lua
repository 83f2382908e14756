-- Images that come from files here.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"

local images = {}

---@class lualxd.images : lualxd.collection
---@field aliases lualxd.collection
images.collection = {}

local IMPORT = {
  alias = "string", public = "boolean", properties = "table", progress = "callable",
}

local PROGRESS_PERIOD = 0.2 -- seconds between two reports of an upload

-- Properties as LXD wants them in a header.
local function form(properties)
  local pairs_of = {}
  for name, value in pairs(json.as_strings({ properties = properties }).properties) do
    if type(name) ~= "string" or type(value) ~= "string" then
      error(tostring(name) .. " must be a name with a string, number or boolean", 0)
    end
    pairs_of[#pairs_of + 1] = options.escape(name) .. "=" .. options.escape(value)
  end
  table.sort(pairs_of)
  return table.concat(pairs_of, "&")
end

-- A split image goes as a form of two files, in this order (lxd/images.go, getImgPostInfo).
local function multipart(source)
  local boundary = "lualxd-" .. core.random(16)
  local function part(name)
    return "--" .. boundary .. '\r\nContent-Disposition: form-data; name="' .. name
      .. '"; filename="' .. name .. '"\r\nContent-Type: application/octet-stream\r\n\r\n'
  end
  return {
    part "metadata", { path = source.metadata },
    "\r\n" .. part "rootfs", { path = source.rootfs },
    "\r\n--" .. boundary .. "--\r\n",
  }, "Content-Type: multipart/form-data; boundary=" .. boundary
end

local function upload(change, source, settings, properties)
  local body, content_type
  if type(source) == "table" then
    body, content_type = multipart(source)
  else
    body, content_type = { { path = source } }, "Content-Type: application/octet-stream"
  end
  local headers = { content_type, "X-LXD-public: " .. (settings.public and "true" or "false") }
  if properties ~= "" then
    headers[#headers + 1] = "X-LXD-properties: " .. properties
  end
  if type(source) == "string" then
    headers[#headers + 1] = "X-LXD-filename: " .. options.escape(source:match("[^/]*$"))
  end
  local this, err = http.start(change.scope, "POST", "/1.0/images", {
    headers = headers, body = body, hash = true, tried = change.tried, typed = true,
  })
  if not this then
    return nil, err
  end
  local began = core.now()
  this:observe(PROGRESS_PERIOD, function(sent, total) -- who wants to know may come later, by op:progress
    change:tell_progress {
      stage = "upload",
      percent = total > 0 and math.floor(sent * 100 / total) or 0,
      speed = math.floor(sent / math.max(core.now() - began, 1e-3)),
    }
  end)
  local status, head, text = this:finish()
  if not status then
    return nil, head
  end
  local answer, problem = answers.read(this, status, head, text)
  return answer, problem, this.digest
end

-- The alias names the image from now on, whatever it named before.
local function give_alias(change, alias, fingerprint)
  local path = "/1.0/images/aliases"
  local answer, err = change:ask("POST", path, {
    json = json.encode { name = alias, target = fingerprint },
  })
  if answer or err.kind ~= "exists" then
    return answer and true, err
  end
  path = path .. "/" .. options.escape(alias)
  answer, err = change:ask("GET", path)
  if not answer then
    return nil, err
  elseif answer.data.target == fingerprint then
    return true
  end
  answer, err = change:ask("PUT", path, {
    json = json.encode { target = fingerprint, description = answer.data.description },
    etag = answers.etag(change.scope.link, answer.head),
  })
  return answer and true, err
end

---Imports an image from a file (a unified tarball) or from two. One that is there already counts as done.
---@param source string|{ metadata: string, rootfs: string } paths here
---@param settings { alias: string?, public: boolean?, properties: table?, progress: function? }? `alias`
---names the image afterwards, whatever it named before
---@return lualxd.operation its data's `metadata.fingerprint` names the image
function images.collection:import(source, settings)
  settings = options.check(settings, IMPORT, "import")
  if type(source) == "table" then
    options.check(source, { metadata = "string", rootfs = "string" }, "import: source")
    if not source.metadata or not source.rootfs then
      error("import: a split image needs both 'metadata' and 'rootfs'", 2)
    end
  else
    options.argument(source, "string", "import: path")
  end
  if settings.alias == "" then
    error("import: option 'alias' must not be empty", 2)
  end
  local fine, properties = pcall(form, settings.properties or {})
  if not fine then
    error("import: option 'properties': " .. properties, 2)
  end
  local name = type(source) == "table" and source.rootfs or source
  local op = operation.start(self.scope, "import image " .. name, function(change)
    if settings.progress then
      change.watchers = { settings.progress }
    end
    local answer, err, digest = upload(change, source, settings, properties)
    local path = "/1.0/images/" .. (digest or "")
    local data
    data, err = change:finish(answer, err, outcome.exists(self.scope, path, change.tried))
    local there = err and err.kind == "exists"
    if err and not there then
      return nil, err
    end
    local told = there and err.operation or data
    local fingerprint = type(told) == "table" and type(told.metadata) == "table"
      and told.metadata.fingerprint or digest
    if digest and fingerprint ~= digest then
      return nil, errors.new("protocol", {
        tried = change.tried,
        message = "the server has another image than was sent: " .. tostring(fingerprint),
      })
    end
    if there then
      data = { id = err.operation and err.operation.id, status = "Success", status_code = 200 }
    end
    data.metadata = type(data.metadata) == "table" and data.metadata or {}
    data.metadata.fingerprint = fingerprint
    if settings.alias then
      local given
      given, err = give_alias(change, settings.alias, fingerprint)
      if not given then
        return nil, err
      end
    end
    return data
  end)
  return op
end

return images
