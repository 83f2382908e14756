-- Files in an instance, through LXD's files endpoint: it works on running and stopped instances.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local operation = require "lualxd.operation"
local options = require "lualxd.options"

local files = {}

---@class lualxd.files
---@field node table the instance
local methods = {}
local meta = { __name = "lualxd.files", __index = methods }

function meta:__tostring()
  return "lualxd.files: " .. self.node.path .. "/files"
end

---@param node table an instance's item
---@return lualxd.files
function files.new(node)
  return setmetatable({ node = node }, meta)
end

---@class lualxd.file_info
---@field type "file"|"directory"|"symlink"
---@field uid integer
---@field gid integer
---@field mode integer permission bits: 420 is 0644
---@field size integer? of a file and of a symlink's target

local MAX_LINKS = 40 -- as the kernel's

local function check_path(path, who)
  options.argument(path, "string", who .. ": path", 3)
  if path:sub(1, 1) ~= "/" then
    error(who .. ": path must be absolute, got '" .. path .. "'", 3)
  elseif path:find("%z") then
    error(who .. ": path must not contain a zero byte", 3)
  end
  return path
end

local function integer(text, base)
  local value = tonumber(text, base)
  return value and (math.tointeger and math.tointeger(value) or value)
end

local function info_of(head)
  local headers = answers.headers(head)
  return {
    type = headers["x-lxd-type"] or "file",
    uid = integer(headers["x-lxd-uid"] or "0", 10),
    gid = integer(headers["x-lxd-gid"] or "0", 10),
    mode = integer(headers["x-lxd-mode"] or "0", 8),
    size = integer((headers["content-range"] or ""):match("/(%d+)$")
      or headers["content-length"] or "", 10),
  }
end

local function request(path, tried)
  return { query = { path = path }, tried = tried, raw = true, limit = 2 ^ 40 }
end

local function fetch(self, path, tried)
  local answer, err = http.ask(self.node.scope, "GET", self.node.path .. "/files",
    request(path, tried))
  if not answer then
    return nil, err
  end
  return answer, info_of(answer.head)
end

local function in_instance(self, verb, path)
  return verb .. " " .. path .. " in " .. self.node.name
end

---Reads a file whole; symlinks are followed.
---@param path string absolute
---@return string? bytes
---@return lualxd.file_info|lualxd.error info_or_err
function methods:read(path)
  check_path(path, "files:read")
  local tried, at = in_instance(self, "read", path), path
  for _ = 1, MAX_LINKS do
    local answer, info = fetch(self, at, tried)
    if not answer then
      return nil, info
    elseif info.type == "directory" then
      return nil, errors.new("invalid", {
        tried = tried,
        message = "it is a directory",
        hint = "files:list reads directories",
      })
    elseif info.type ~= "symlink" then
      return answer.body, info
    end
    -- LXD never follows a link: the body is its target (made absolute, except by old servers).
    local target = answer.body
    at = target:sub(1, 1) == "/" and target or at:gsub("[^/]*$", "") .. target
  end
  return nil, errors.new("invalid", { tried = tried, message = "too many levels of symbolic links" })
end

---@param path string absolute
---@return lualxd.file_info? info of the path itself: symlinks aren't followed
---@return lualxd.error? err
function methods:stat(path)
  check_path(path, "files:stat")
  local tried = in_instance(self, "stat", path)
  local settings = request(path, tried)
  -- HEAD tells no size (5.0.2); the first byte's range does. A server that ignores the range is cut
  -- off once its headers are here. `brief`: the connection isn't used again. After a 416, which
  -- announces no body, LXD 5.0.2 writes one all the same, and Go then closes the connection without
  -- having said so: the next change would run into that.
  settings.headers = { "Range: bytes=0-0" }
  settings.stream, settings.brief = true, true
  local this, err = http.start(self.node.scope, "GET", self.node.path .. "/files", settings)
  if not this then
    return nil, err
  end
  while not this.request:head() and this.request:state() ~= "done" do
    this:await_news()
  end
  local status, head = this.request:head()
  if status == 206 or status == 200 then
    this:cancel()
    return info_of(head)
  elseif status == 416 then -- an empty file has no first byte
    this:cancel()
    local info = info_of(head)
    info.size = 0
    return info
  end
  local pieces = {}
  local piece = this.request:read()
  while piece do
    pieces[#pieces + 1] = piece
    if piece == "" then
      this:await_news()
    end
    piece = this.request:read()
  end
  status, head = this:finish()
  if not status then
    return nil, head
  end
  local _, problem = answers.read(this, status, head, table.concat(pieces), true)
  return nil, problem
end

---@param path string absolute
---@return string[]? names of what is in the directory, sorted
---@return lualxd.error? err
function methods:list(path)
  check_path(path, "files:list")
  local tried = in_instance(self, "list", path)
  local answer, info = fetch(self, path, tried)
  if not answer then
    return nil, info
  elseif info.type ~= "directory" then
    return nil, errors.new("invalid", { tried = tried, message = "it is not a directory" })
  end
  local names = type(answer.data) == "table" and answer.data or json.array {}
  table.sort(names)
  return names
end

local ATTRIBUTES = { uid = "integer", gid = "integer", mode = "integer|string" }

local PERMISSIONS, ALL_BITS = 511, 4095 -- 0777, 07777

-- The last user and group; what is beyond 32 bits LXD takes for root (5.0.2, tried).
local MOST = 2 ^ 32 - 2

-- Options as `stat` would tell them.
local function attributes(settings, who)
  settings = options.check(settings, ATTRIBUTES, who, 3)
  local mode = settings.mode
  if type(mode) == "string" then
    if not mode:match("^0?[0-7][0-7][0-7][0-7]?$") then
      error(who .. ": option 'mode' must be octal, as in '0644', got '" .. mode .. "'", 3)
    end
    mode = tonumber(mode, 8)
  end
  local wanted = { uid = settings.uid, gid = settings.gid, mode = mode }
  for name, value in pairs(wanted) do
    if value < 0 or value > (name == "mode" and ALL_BITS or MOST) then
      error(string.format("%s: option '%s' can't be %.14g", who, name, value), 3)
    end
  end
  return wanted
end

-- LXD takes a mode without a leading zero for a decimal number (shared/util.go).
local FORMATS = { { "uid", "X-LXD-uid: %d" }, { "gid", "X-LXD-gid: %d" }, { "mode", "X-LXD-mode: 0%03o" } }

-- They as LXD's headers, after others; which of them there are.
local function headers_of(wanted, ...)
  local headers, named = { ... }, {}
  for _, row in ipairs(FORMATS) do
    local name, form = row[1], row[2]
    if wanted[name] then
      headers[#headers + 1] = form:format(wanted[name])
      named[#named + 1] = name
    end
  end
  return headers, named
end

-- LXD sets the permission bits and drops the others without a word (5.0.2, tried); nor does it tell of them.
local function settable(change, wanted)
  if (wanted.mode or 0) <= PERMISSIONS then
    return true
  end
  return nil, errors.new("unsupported", {
    tried = change.tried,
    message = "LXD sets no set-user-ID, set-group-ID and sticky bits",
    hint = "chmod by instance:exec does",
  })
end

local function nothing_to_tell()
  return true
end

-- Sends a body that a function gives piece by piece; what it raises, or a handle fails with, cancels the request.
local function send_pieces(change, this, next_piece)
  local core_request = this.request
  while true do
    local piece, problem = next_piece()
    if piece ~= nil and type(piece) ~= "string" then
      error("files: the function must return a string or nil, got " .. type(piece), 0)
    elseif piece == nil then
      if problem then
        this:cancel()
        return nil, errors.new("failed", { tried = change.tried, message = tostring(problem) })
      end
      break
    end
    local from = 1
    while from <= #piece do
      if core_request:state() == "done" then
        return true -- it says why by itself
      end
      local taken = core_request:write(piece, from)
      from = from + taken
      if taken == 0 and core_request:state() ~= "done" then
        this:await_news()
      end
    end
  end
  core_request:finish()
  return true
end

-- The body: bytes, or a function that gives the next piece.
local function body_of(tried, source)
  if type(source) == "function" then
    return operation.later(tried, source)
  elseif type(source) == "string" then
    return source
  end
  return function()
    return source:read(65536)
  end
end

local function post(change, self, path, body, headers, needs)
  local settings = request(path, change.tried)
  settings.headers, settings.needs = headers, needs
  if type(body) == "string" then
    settings.body = body
    return change:ask("POST", self.node.path .. "/files", settings)
  end
  settings.body = true
  local this, err = http.start(self.node.scope, "POST", self.node.path .. "/files", settings)
  if not this then
    return nil, err
  end
  local ok, sent, problem = pcall(send_pieces, change, this, body)
  if not ok then
    this:cancel()
    error(sent, 0)
  elseif not sent then
    return nil, problem
  end
  local status, head, answer = this:finish()
  if not status then
    return nil, head
  end
  return answers.read(this, status, head, answer, true)
end

local function differs(info, wanted)
  for name, value in pairs(wanted) do
    if info[name] ~= value then
      return name
    end
  end
end

-- LXD before `instances_files_modify_permissions` ignores owner and mode of a file that exists
-- (lxd#12724). Its only way to change them is to make the file anew, with what it has and wasn't named.
local function make_way(change, self, path, wanted)
  if next(wanted) == nil or self.node.scope.link.has("instances_files_modify_permissions") then
    return wanted
  end
  local info, err = self:stat(path)
  if not info then
    return err.kind == "not_found" and wanted or nil, err
  end
  local what = differs(info, wanted)
  if not what then
    return wanted
  elseif info.type ~= "file" or not self.node.scope.link.has("file_delete") then
    return nil, errors.new("unsupported", {
      tried = change.tried,
      extension = "instances_files_modify_permissions",
      message = "the server can't change the " .. what .. " of a " .. info.type .. " that exists",
    })
  end
  local answer
  answer, err = change:ask("DELETE", self.node.path .. "/files", request(path))
  if not answer then
    return nil, err
  end
  return { uid = wanted.uid or info.uid, gid = wanted.gid or info.gid, mode = wanted.mode or info.mode }
end

---Writes a file, new or over what is there; parent directories aren't made.
---@param path string absolute
---@param source string|function|file* bytes; a function that gives the next piece, nil at the end; an open file
---@param settings { uid: integer?, gid: integer?, mode: integer|string? }? of the file, also when it exists
---@return lualxd.operation
function methods:write(path, source, settings)
  check_path(path, "files:write")
  if type(source) ~= "string" and type(source) ~= "function" and io.type(source) ~= "file" then
    error("files:write: source must be a string, a function or an open file, got "
      .. type(source), 2)
  end
  local wanted = attributes(settings, "files:write")
  local tried = in_instance(self, "write", path)
  local body = body_of(tried, source)
  return operation.start(self.node.scope, tried, function(change)
    local possible, err = settable(change, wanted)
    if not possible then
      return nil, err
    end
    local given
    given, err = make_way(change, self, path, wanted)
    if not given then
      return nil, err
    end
    local headers, named = headers_of(given, "X-LXD-type: file", "X-LXD-write: overwrite")
    if #named > 0 and self.node.scope.link.has("instances_files_modify_permissions") then
      headers[#headers + 1] = "X-LXD-modify-perm: " .. table.concat(named, ",")
    end
    local answer
    answer, err = post(change, self, path, body, headers)
    return change:deliver(answer, err, nothing_to_tell)
  end)
end

---Adds to the end of a file; LXD doesn't make one for it.
---@param path string absolute
---@param source string|function|file*
---@param settings {}? there are none: LXD keeps owner and mode
---@return lualxd.operation
function methods:append(path, source, settings)
  check_path(path, "files:append")
  options.check(settings, {}, "files:append")
  if type(source) ~= "string" and type(source) ~= "function" and io.type(source) ~= "file" then
    error("files:append: source must be a string, a function or an open file, got "
      .. type(source), 2)
  end
  local tried = in_instance(self, "append to", path)
  local body = body_of(tried, source)
  return operation.start(self.node.scope, tried, function(change)
    local answer, err = post(change, self, path, body,
      { "X-LXD-type: file", "X-LXD-write: append" }, "file_append")
    return change:deliver(answer, err, nothing_to_tell)
  end)
end

-- What an old server would make a file of.
local NEEDS = { directory = "directory_manipulation", symlink = "file_symlinks" }

-- What LXD makes of a POST without content.
local function make(self, who, path, kind, body, settings)
  local wanted = attributes(settings, who)
  local tried = in_instance(self, who, path)
  return operation.start(self.node.scope, tried, function(change)
    local possible, err = settable(change, wanted)
    if not possible then
      return nil, err
    end
    local answer
    answer, err = post(change, self, path, body, headers_of(wanted, "X-LXD-type: " .. kind), NEEDS[kind])
    return change:deliver(answer, err, nothing_to_tell)
  end)
end

---Makes a directory; one that is there is left as it is.
---@param path string absolute
---@param settings { uid: integer?, gid: integer?, mode: integer|string? }?
---@return lualxd.operation
function methods:mkdir(path, settings)
  check_path(path, "files:mkdir")
  return make(self, "mkdir", path, "directory", "", settings)
end

---Makes a symbolic link.
---@param path string absolute
---@param target string what it points to, as it is
---@param settings {}? there are none
---@return lualxd.operation
function methods:symlink(path, target, settings)
  check_path(path, "files:symlink")
  options.check(settings, {}, "files:symlink")
  options.argument(target, "string", "files:symlink: target")
  return make(self, "symlink", path, "symlink", target)
end

---Deletes a file, a symlink or an empty directory.
---@param path string absolute
---@param settings {}? there are none
---@return lualxd.operation
function methods:delete(path, settings)
  check_path(path, "files:delete")
  options.check(settings, {}, "files:delete")
  local tried = in_instance(self, "delete", path)
  return operation.start(self.node.scope, tried, function(change)
    local asked = request(path)
    asked.needs = "file_delete"
    local answer, err = change:ask("DELETE", self.node.path .. "/files", asked)
    return change:deliver(answer, err, nothing_to_tell)
  end)
end

return files
