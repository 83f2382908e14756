-- One server: finding its socket, the handshake, scopes, and the request that has no name yet.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"
local tree = require "lualxd.tree"

local client = {}

---@class lualxd.client one scope (project, cluster member) of a connection to a server
---@field server table the metadata of `GET /1.0`, as the handshake read it
---@field pollable table `pollfd`, `events`, `timeout`, `step` for schedulers that poll objects
local methods = {}
local meta = { __name = "lualxd.client" }

client.methods = methods

-- What a client has without asking for it: its collections are made when they are first named.
function meta:__index(name)
  local method = methods[name]
  if method ~= nil then
    return method
  elseif name == "server" then
    return self._scope.link.server
  elseif name == "pollable" then
    return self._scope.link.pollable
  end
  local collection = tree.collection(self._scope, name)
  if collection then
    rawset(self, name, collection)
  end
  return collection
end

function meta:__tostring()
  local scope = self._scope
  return "lualxd.client: " .. scope.link.where
    .. (scope.project and ", project " .. scope.project or "")
    .. (scope.target and ", target " .. scope.target or "")
    .. (scope.link.engine and "" or " (closed)")
end

local function new(scope)
  return setmetatable({ _scope = scope }, meta)
end

-- In this order, the first that is there.
local function candidates()
  local list = {}
  for _, path in ipairs {
    os.getenv("LXD_SOCKET") or "",
    os.getenv("LXD_DIR") and os.getenv("LXD_DIR") .. "/unix.socket" or "",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
  } do
    if path ~= "" then
      list[#list + 1] = path
    end
  end
  return list
end

-- Whether something is there, be it for us or not: to open a socket as a file fails, but otherwise.
local function is_there(path)
  local file, message = io.open(path, "rb")
  if file then
    file:close()
    return true
  end
  return not message:find("No such file", 1, true) and not message:find("Not a directory", 1, true)
end

local function find_socket()
  local list = candidates()
  for _, path in ipairs(list) do
    if core.is_socket(path) then
      return path
    end
  end
  for _, path in ipairs(list) do
    if is_there(path) then
      return path -- to be refused with a reason
    end
  end
  return nil, errors.new("connect", {
    tried = "connect",
    message = "no LXD socket is there: " .. table.concat(list, ", "),
    hint = "is LXD running? Another place is told by { socket = path } or $LXD_SOCKET",
  })
end

local CONNECT = {
  socket = "string", project = "string", target = "string", connections = "integer",
  timeout = "seconds", trace = "callable",
}

local function pollable_of(poller)
  return {
    pollfd = function()
      return poller:pollfd()
    end,
    events = function()
      return "r"
    end,
    timeout = function()
      return loop.next_timeout()
    end,
    step = function()
      loop.turn()
    end,
  }
end

local function has(link, extension)
  return link.extensions[extension] == true
end

-- `GET /1.0`, whose answer must be LXD's.
local function shake_hands(link)
  local answer, err = http.ask({ link = link }, "GET", "/1.0", { tried = "connect" })
  if not answer then
    return nil, err
  end
  local server = answer.data
  if type(server) ~= "table" or type(server.api_version) ~= "string" then
    return nil, errors.new("protocol", {
      tried = "connect",
      message = "what answers at " .. link.where .. " is not LXD",
    })
  end
  link.server = server
  link.trusted = server.auth == "trusted"
  link.extensions = {}
  local extensions = type(server.api_extensions) == "table" and server.api_extensions or {}
  for _, name in ipairs(extensions) do
    link.extensions[name] = true
  end
  return true
end

---Connects to a server: reads `GET /1.0`.
---@param settings table? `socket`: path of its unix socket (else `$LXD_SOCKET`, `$LXD_DIR/unix.socket`, the usual
---places); `project`, `target`: the scope; `connections`: requests at once (8); `timeout`: seconds without any
---progress of a request (30); `trace(method, path, status, seconds)`: is told of every request
---@return lualxd.client?
---@return lualxd.error? err
function client.connect(settings)
  settings = options.check(settings, CONNECT, "lxd.connect")
  if settings.connections and settings.connections < 1 then
    error("lxd.connect: option 'connections' must be at least 1", 2)
  elseif settings.timeout == 0 then
    error("lxd.connect: option 'timeout' must be more than 0", 2)
  end
  local path = settings.socket
  if not path then
    local err
    path, err = find_socket()
    if not path then
      return nil, err
    end
  end
  local poller = loop.poller()
  local link = {
    base = "http://lxd",
    where = path,
    timeout = settings.timeout or 30,
    connections = settings.connections or 8,
    trace = settings.trace,
    server = nil,
    trusted = nil,
    extensions = {},
    waits = 0, -- connections that hold a `/wait`
    line = {}, -- who would like to
    editing = {}, -- path -> condition of the edit that is under way
    pollable = pollable_of(poller),
  }
  link.has = function(extension)
    return has(link, extension)
  end
  local engine, message = core.engine(poller, {
    unix = path,
    connections = link.connections,
    timeout = link.timeout,
  })
  if not engine then
    return nil, errors.new("failed", { tried = "connect", message = message })
  end
  link.engine = engine
  local ok, problem = shake_hands(link)
  if not ok then
    link.engine = nil
    engine:close()
    return nil, problem
  end
  return new { link = link, project = settings.project, target = settings.target }
end

---The same connections, another project.
---@param name string
---@return lualxd.client
function methods:project(name)
  options.segment(name, "client:project")
  local scope = self._scope
  return new { link = scope.link, project = name, target = scope.target }
end

---The same connections, another cluster member.
---@param member string
---@return lualxd.client
function methods:target(member)
  options.segment(member, "client:target")
  local scope = self._scope
  return new { link = scope.link, project = scope.project, target = member }
end

---Whether the server has an API extension.
---@param extension string
---@return boolean
function methods:has(extension)
  options.argument(extension, "string", "client:has: extension")
  return has(self._scope.link, extension)
end

for _, name in ipairs { "get", "put", "patch", "update" } do
  methods[name] = function(self, ...)
    local server = tree.server(self._scope)
    return server[name](server, ...)
  end
end

local REQUEST = {
  query = "table", headers = "table", body = "string|table", json = "table|string|number|boolean",
  stream = "boolean|callable", timeout = "seconds",
}

-- `{ ["X-Name"] = value }` as lines; what would break out of its line raises.
local function header_lines(headers)
  local lines = {}
  for name, value in pairs(headers or {}) do
    local line = tostring(name) .. ": " .. tostring(value)
    if line:find("[%c]") or not tostring(name):match("^[%w!#$%%&'*+%-.^_`|~]+$") then
      error("client:request: header '" .. tostring(name):gsub("%c", "?") .. "' is not a valid one", 3)
    end
    lines[#lines + 1] = line
  end
  table.sort(lines)
  return lines
end

local function read_piece(this)
  local piece = this.request:read()
  while piece == "" do
    this:await_news()
    piece = this.request:read()
  end
  return piece
end

-- The end of a stream: good, or the reason why not.
local function close_stream(this)
  local status, head = this:finish()
  return status, not status and head or nil
end

-- The body of an answer piece by piece: to a function, or to be taken by the caller.
local function stream_body(this, sink)
  if type(sink) ~= "boolean" then
    local piece = read_piece(this)
    while piece do
      sink(piece)
      piece = read_piece(this)
    end
    local ok, err = close_stream(this)
    return ok and true, err
  end
  local over
  return function()
    if over then
      return nil, over.err
    end
    local piece = read_piece(this)
    if not piece then
      local _, err = close_stream(this)
      over = { err = err }
      return nil, err
    end
    return piece
  end
end

local function collect(this)
  local pieces = {}
  for piece in read_piece, this do
    pieces[#pieces + 1] = piece
  end
  return table.concat(pieces)
end

-- A request whose answer's body is not kept: only a good answer is streamed, an error is read whole.
local function ask_stream(scope, method, path, settings, sink)
  local this, err = http.start(scope, method, path, settings)
  if not this then
    return nil, err
  end
  while not this.request:head() and this.request:state() ~= "done" do
    this:await_news()
  end
  local status, head = this.request:head()
  if status and status < 400 then
    local body, problem = stream_body(this, sink)
    if not body then
      return nil, problem
    end
    return { status = status, head = head, body = body ~= true and body or nil }
  end
  local body = status and collect(this) or nil
  status, head = this:finish()
  if not status then
    return nil, head
  end
  return http.read(this, status, head, body, true)
end

---Any request. Waits for the answer, whatever the method.
---@param method string
---@param path string as it goes out, percent-encoded by the caller
---@param settings table? `query`, `headers`: tables; `body`: a string; `json`: any value, sent as
---JSON; `timeout`: seconds without progress; `stream`: a function is called with each piece of the
---body; with `true` the response's `body` is a function that gives the next piece, nil (and an
---error, if it ended badly) at the end
---@return table? response `status`, `headers` (names in lower case), `body`, `json`, `operation` of a 202
---@return lualxd.error? err also of a 4xx and 5xx
function methods:request(method, path, settings)
  options.argument(method, "string", "client:request: method")
  options.argument(path, "string", "client:request: path")
  if not method:match("^%u+$") then
    error("client:request: '" .. method .. "' is not a method", 2)
  elseif path:sub(1, 1) ~= "/" or path:find("[%c%s#]") then
    error("client:request: path must begin with '/' and be percent-encoded", 2)
  end
  settings = options.check(settings, REQUEST, "client:request")
  local what = { query = settings.query, headers = header_lines(settings.headers), raw = true }
  what.timeout = settings.timeout
  if settings.json ~= nil then
    local ok, text = pcall(json.encode, settings.json)
    if not ok then
      error("client:request: option 'json': " .. text, 2)
    end
    what.json = text
  elseif settings.body then
    what.body = settings.body
    for _, line in ipairs(what.headers) do
      what.typed = what.typed or line:lower():find("^content%-type:") ~= nil
    end
  end
  if not what.timeout and path:gsub("%?.*", ""):find("/wait$") then
    what.timeout = 0 -- it may last as long as the operation
  end
  local answer, err
  if settings.stream then
    what.stream = true
    answer, err = ask_stream(self._scope, method, path, what, settings.stream)
  else
    answer, err = http.ask(self._scope, method, path, what)
  end
  if not answer then
    return nil, err
  end
  local response = {
    status = answer.status,
    headers = http.headers(answer.head),
    body = answer.body,
    json = answer.envelope,
  }
  if answer.async then
    local tried = method .. " " .. path:gsub("%?.*", "")
    response.operation = operation.given(self._scope, tried, answer, outcome.unknown(tried))
  end
  return response
end

---Sends what is still unsent (for at most `timeout`), then closes the connections of all scopes of this client.
function methods:close()
  local link = self._scope.link
  local engine = link.engine
  if engine then
    loop.flush(link, link.timeout)
    link.engine = nil
    engine:close()
    loop.turn()
  end
end

meta.__close = methods.close

return client
