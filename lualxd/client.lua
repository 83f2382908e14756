-- One server: connecting, scopes, and the request that has no name yet.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local events = require "lualxd.events"
local http = require "lualxd.http"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"
local place = require "lualxd.place"
local tree = require "lualxd.tree"
local trust = require "lualxd.trust"
local which = require "lualxd.loop.which"

local client = {}

---@class lualxd.pollable
---@field pollfd fun(self): integer
---@field events fun(self): string
---@field timeout fun(self): number?
---@field step fun(self)

---@class lualxd.instances : lualxd.collection
---@operator call(string): lualxd.instance

---@class lualxd.network : lualxd.item
---@field state fun(self): table?, lualxd.error?
---@field leases fun(self): table[]?, lualxd.error?

---@class lualxd.networks : lualxd.collection
---@operator call(string): lualxd.network

---@class lualxd.storage_pool : lualxd.item
---@field resources fun(self): table?, lualxd.error?

---@class lualxd.storage_pools : lualxd.collection
---@operator call(string): lualxd.storage_pool

---@class lualxd.project : lualxd.item
---@field state fun(self): table?, lualxd.error?

---@class lualxd.projects : lualxd.collection
---@operator call(string): lualxd.project

---@class lualxd.certificates : lualxd.collection
---@field token fun(self, settings: { name: string, projects: string[]?, restricted: boolean? }): string?, lualxd.error?

---@class lualxd.client one scope (project, cluster member) of a connection to a server
---@field server table the metadata of `GET /1.0`, as the handshake read it
---@field pollable lualxd.pollable for schedulers that poll objects, shared by all scopes
---@field containers lualxd.instances
---@field instances lualxd.instances
---@field virtual_machines lualxd.instances
---@field profiles lualxd.collection
---@field images lualxd.images
---@field networks lualxd.networks
---@field network_acls lualxd.collection
---@field storage_pools lualxd.storage_pools
---@field projects lualxd.projects
---@field certificates lualxd.certificates
---@field operations lualxd.collection
---@field warnings lualxd.collection
---@field get fun(self): table?, string|lualxd.error?
---@field put fun(self, data: table, etag: string?): lualxd.operation
---@field patch fun(self, data: table): lualxd.operation
---@field update fun(self, f: fun(data: table)): lualxd.operation
---@field plan fun(self, declaration: table, settings: table?): lualxd.plan?, lualxd.error?
---@field apply fun(self, declaration: table, settings: table?): lualxd.reconcile.report?, lualxd.error?
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

local CONNECT = {
  socket = "string", url = "string", remote = "string", cert = "string", key = "string",
  server_cert = "string", ca = "string", token = "string", password = "string",
  project = "string", target = "string", connections = "integer", timeout = "seconds",
  trace = "callable", loop = "string|table",
}

local MOST_CONNECTIONS = 1024 -- of the core

-- The first of several places that lets us in.
local function open_first(places, settings, how)
  local self, err
  local tried = {}
  for _, at in ipairs(places) do
    self, err = trust.open(at, settings, how)
    if self or err.kind ~= "connect" and err.kind ~= "tls" and err.kind ~= "timeout" then
      return self, err
    end
    tried[#tried + 1] = at.where
  end
  if #tried > 1 then
    err.hint = "tried " .. table.concat(tried, ", ")
  end
  return nil, err
end

---Connects to a server: reads `GET /1.0`.
---@param settings table? where: `socket`: path of its unix socket, or `url`: `https://host:8443`, or `remote`: one of
---`lxc`, or a `token`, which tells its addresses (else `$LXD_SOCKET`, `$LXD_DIR/unix.socket`, the usual places); who we
---are: `cert`, `key` (PEM text or a path); who it is: `server_cert` (PEM text, a path or a SHA-256: this certificate
---and no other) or `ca`; `token` or `password`: joins the server first if it doesn't trust us yet; `project`, `target`:
---the scope; `connections`: requests at once (8); `timeout`: seconds without any progress of a request (30); `loop`:
---where it can't be told, the event loop that waits: `nginx`, `cqueues`, `luv`, `copas`, a table with `wait(fd,
---timeout)`, or `poll` for none; `trace(method, path, status, seconds)`: is told of every request
---@return lualxd.client?
---@return lualxd.error? err
function client.connect(settings)
  settings = options.check(settings, CONNECT, "lxd.connect")
  if settings.connections and (settings.connections < 1 or settings.connections > MOST_CONNECTIONS) then
    error("lxd.connect: option 'connections' must be 1 to " .. MOST_CONNECTIONS, 2)
  elseif settings.timeout == 0 then
    error("lxd.connect: option 'timeout' must be more than 0", 2)
  elseif settings.socket and (settings.socket == "" or settings.socket:find("%z")) then
    error("lxd.connect: option 'socket' must be a path", 2)
  end
  for _, name in ipairs { "project", "target" } do
    if settings[name] then
      options.segment(settings[name], "lxd.connect: option '" .. name .. "'")
    end
  end
  place.check(settings, "lxd.connect")
  if settings.loop then
    which.tell(settings.loop, "lxd.connect")
  end
  local how, err = trust.how(settings, "connect")
  if not how then
    return nil, err
  end
  local places, self
  places, err = place.find(settings, how.token)
  if places then
    self, err = open_first(places, settings, how)
  end
  if not self then
    return nil, err
  end
  return new {
    link = self,
    project = settings.project or places[1].project,
    target = settings.target,
  }
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
  return self._scope.link.has(extension)
end

methods.events = events.open

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

local function check_query(query)
  for name, value in pairs(query or {}) do
    local kind = type(value)
    if type(name) ~= "string" or kind ~= "string" and kind ~= "number" and kind ~= "boolean"
      or kind == "number" and value - value ~= 0 then -- NaN and the infinities aren't 0 then
      error("client:request: option 'query': " .. tostring(name)
        .. " must be a name with a string, a finite number or a boolean", 3)
    end
  end
end

-- A body in pieces. An object that was to be JSON would be none.
local function check_body(body)
  if type(body) == "table" then
    for index, piece in pairs(body) do
      local path = type(piece) == "table" and piece.path
      if type(index) ~= "number" or type(piece) ~= "string" and type(path) ~= "string" then
        error("client:request: option 'body': " .. tostring(index)
          .. " must be a string or { path = … } in a list; JSON is given as 'json'", 3)
      end
    end
  end
end

-- Numbers and booleans of `config` and the like are strings here as everywhere, but in `/1.0` (see tree.lua).
local function json_body(path, data)
  if path:gsub("%?.*", "") ~= "/1.0" then
    data = json.as_strings(data)
  end
  return json.encode(data)
end

-- `{ ["X-Name"] = value }` as lines; what would break out of its line raises.
local function header_lines(headers)
  local lines = {}
  for name, value in pairs(headers or {}) do
    local line = tostring(name) .. ": " .. tostring(value)
    if type(value) ~= "string" and type(value) ~= "number" then
      error("client:request: option 'headers': " .. tostring(name) .. " must be a string or a number", 3)
    elseif line:find("[%c]") or type(name) ~= "string" or not name:match("^[%w!#$%%&'*+%-.^_`|~]+$") then
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

-- The body of an answer piece by piece to a function.
local function pour_body(this, sink)
  local piece = read_piece(this)
  while piece do
    local fine, problem = pcall(sink, piece)
    if not fine then
      this:cancel()
      error(problem, 0)
    end
    piece = read_piece(this)
  end
  return close_stream(this)
end

-- The body of an answer to be taken piece by piece: what gives the next one, and what gives the rest up.
local function body_of(this)
  local over, reading
  local function close()
    if over then
      return
    end
    over = {}
    if reading then
      this.request:cancel() -- who reads is told
    else
      this:cancel()
    end
  end
  return function()
    if over then
      return nil, over.err
    end
    reading = true
    local piece = read_piece(this)
    reading = false
    if over then
      this:cancel()
      return nil
    elseif not piece then
      local _, err = close_stream(this)
      over = { err = err }
      return nil, err
    end
    return piece
  end, close
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
    local answer = { status = status, head = head }
    if sink == true then
      answer.body, answer.close = body_of(this)
      return answer
    end
    local ok, problem = pour_body(this, sink)
    return ok and answer, problem
  end
  local body = status and collect(this) or nil
  status, head = this:finish()
  if not status then
    return nil, head
  end
  return answers.read(this, status, head, body, true)
end

---Any request. Waits for the answer, whatever the method.
---@param method string
---@param path string as it goes out, percent-encoded by the caller
---@param settings table? `query`, `headers`: tables; `body`: a string, or pieces, each a string or `{ path = … }` of a
---file here; `json`: any value, sent as JSON as the data of a change is; `timeout`: seconds without progress;
---`stream`: a function is called with each piece of the body; with `true` the response's `body` is a function that
---gives the next piece, nil (and an error, if it ended badly) at the end, and `close` is to be called where that isn't
---read to the end: until then, or until it is collected, it has a connection for itself
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
  check_query(settings.query)
  check_body(settings.body)
  if settings.json ~= nil and settings.body ~= nil then
    error("client:request: options 'json' and 'body' don't go together", 2)
  end
  local what = { query = settings.query, headers = header_lines(settings.headers), raw = true }
  what.timeout = settings.timeout
  if settings.json ~= nil then
    local ok, text = pcall(json_body, path, settings.json)
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
    headers = answers.headers(answer.head),
    body = answer.body,
    close = answer.close,
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
    for what, leave in pairs(link.orderly) do
      leave(what)
    end
    loop.flush(link, link.timeout)
    link.engine = nil
    engine:close()
    loop.turn()
  end
end

meta.__close = methods.close

return client
