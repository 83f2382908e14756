-- One exchange with the server: the URL of a scope (project, cluster member), sending, waiting. Above this nobody sees
-- HTTP.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local core = require "lualxd.core"
local errors = require "lualxd.error"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local options = require "lualxd.options"

local http = {}

---@class lualxd.link what all scopes of a client share
---@field engine lualxd.core.engine? nil after `close`
---@field base string scheme and host of every URL
---@field where string the server, for people
---@field identity table? what our certificate says
---@field advice string? what to do when the server doesn't trust us
---@field timeout number seconds
---@field trace function?
---@field trusted boolean?
---@field bare_etags boolean? the server writes its ETags without quotes
---@field loop lualxd.adapter? told by `connect`

---@class lualxd.scope
---@field link lualxd.link
---@field project string?
---@field target string?
---@field needs string? an API extension without which nothing below has a meaning

---Appends parameters to a path. The scope's own come in unless the path or the query name them.
---@param scope lualxd.scope
---@param path string
---@param query table<string, string|number|boolean>?
---@return string
function http.path(scope, path, query)
  if not query and not scope.project and not scope.target then
    return path
  end
  local names, values = {}, {}
  for name, value in pairs(query or {}) do
    names[#names + 1] = name
    values[name] = type(value) == "number" and json.number_text(value) or tostring(value)
  end
  for _, name in ipairs { "project", "target" } do
    local value = scope[name]
    if value and values[name] == nil and not path:find("[?&]" .. name .. "=")
      and not (name == "project" and values["all-projects"]) then
      names[#names + 1] = name
      values[name] = value
    end
  end
  if #names == 0 then
    return path
  end
  table.sort(names)
  for index, name in ipairs(names) do
    names[index] = options.escape(name) .. "=" .. options.escape(values[name])
  end
  return path .. (path:find("?", 1, true) and "&" or "?") .. table.concat(names, "&")
end

-- The secrets of websockets and of image transfers travel in the query.
local function without_secrets(path)
  return (path:gsub("([?&][^=&]*secret=)[^&]*", "%1..."))
end

---@class lualxd.exchange
local exchange = {}
local meta = { __name = "lualxd.exchange", __index = exchange }

---@class lualxd.http_options
---@field query table?
---@field headers string[]?
---@field json string? a body, encoded
---@field body any as of `core`'s `submit`
---@field length integer?
---@field etag string?
---@field stream boolean?
---@field brief boolean? a stream that is cut off soon: not worth a connection of its own
---@field urgent boolean? before all in line that aren't
---@field limit integer?
---@field hash boolean?
---@field timeout number?
---@field tried string? in words, for errors
---@field typed boolean? `headers` have the Content-Type of `body`
---@field reading boolean? a method other than GET and HEAD that changes nothing
---@field needs string? the API extension without which this isn't sent
---@field object boolean? an answer whose metadata is no table is `protocol`

-- Settings that few requests have.
local RARE = { "length", "limit", "hash", "timeout", "brief", "urgent", "upgrade", "silence" }

local function headers_of(link, settings)
  local headers = settings.headers
  if not (settings.json or settings.body or settings.etag) then
    return headers
  end
  headers = { (table.unpack or unpack)(headers or {}) }
  if settings.json or not settings.typed and settings.body then
    -- Anything else and LXD eats the body as a form (Go's parsePostForm).
    headers[#headers + 1] = settings.json and "Content-Type: application/json"
      or "Content-Type: application/octet-stream"
  end
  if settings.etag then
    local quote = link.bare_etags and "" or '"'
    headers[#headers + 1] = "If-Match: " .. quote .. settings.etag .. quote
  end
  return headers
end

-- The API extension that a request needs and the server lacks. One that doesn't know a parameter or a header does
-- without it, and something else than was meant.
local function lacking(scope, needs)
  local has = scope.link.has
  if scope.project and not has "projects" then
    return "projects"
  elseif scope.target and not has "clustering" then
    return "clustering"
  elseif scope.needs and not has(scope.needs) then
    return scope.needs
  end
  return needs and not has(needs) and needs or nil
end

---Sends as far as goes without waiting.
---@param scope lualxd.scope
---@param method string
---@param path string
---@param settings lualxd.http_options
---@return lualxd.exchange? exchange
---@return lualxd.error? err
function http.start(scope, method, path, settings)
  local link = scope.link
  loop.admit(link)
  path = http.path(scope, path, settings.query)
  local change = not settings.reading and method ~= "GET" and method ~= "HEAD"
  local this = setmetatable({
    -- It is the condition of its own news, and what `submit` reads: one table a request, of 16
    -- fields, because with one more Lua makes room for 32.
    link = link,
    method = method,
    path = path,
    url = link.base .. path,
    tried = settings.tried,
    object = settings.object,
    change = change,
    once = change,
    headers = headers_of(link, settings),
    body = settings.json or settings.body,
    stream = settings.stream,
    started = link.trace and core.now(), -- once it has ended: when it was sent
    request = false, -- the core's handle
    id = false, -- of what is watched
    set = false,
  }, meta)
  if not link.engine then
    return nil, this:fail("cancelled", { message = "the client is closed" })
  elseif change and loop.inherited() then
    -- The parent sends it as well.
    return nil, this:fail("failed", { message = "this change is the parent process's" })
  end
  local extension = lacking(scope, settings.needs)
  if extension then
    return nil, this:fail("unsupported", {
      extension = extension,
      message = "the server lacks the API extension " .. extension,
    })
  end
  for index = 1, #RARE do
    local value = settings[RARE[index]]
    if value ~= nil then
      this[RARE[index]] = value
    end
  end
  local request = link.engine:submit(this)
  this.request, this.body = request, nil
  if request:state() ~= "done" then
    this.id = request:id()
    loop.watch(this.id, this)
  end
  return this
end

-- Method and path, for errors; a query may hold secrets.
function exchange:name()
  return self.method .. " " .. self.path:gsub("%?.*", "")
end

---An error that says what this exchange was.
---@param kind string
---@param fields table
---@return lualxd.error
function exchange:fail(kind, fields)
  fields.request = self:name()
  fields.tried = fields.tried or self.tried
  return errors.new(kind, fields)
end

local ERRNO_ENOENT, ERRNO_EACCES, ERRNO_EPERM = 2, 13, 1

local FAILURES = {
  connect = function(failure, link)
    local hint
    if failure.errno == ERRNO_EACCES or failure.errno == ERRNO_EPERM then
      hint = "this user may not use the socket; is it in LXD's group?"
    else
      hint = "is LXD running, and is this where it listens"
        .. (link.base:find("^https") and " (lxc config set core.https_address :8443)?" or "?")
    end
    return "connect", "no connection to " .. link.where .. ": " .. failure.message, hint
  end,
  lost = function(failure, link)
    return "connect", "the connection to " .. link.where .. " ended before an answer: "
      .. failure.message
  end,
  tls = function(failure, link)
    local hints = {
      pin = "it is another server, or it has a new certificate: ask its administrator",
      ca = "if its administrator tells this fingerprint, give it as server_cert (or give the CA as ca): "
        .. (failure.fingerprint or "?"),
      date = "it needs a new certificate; to accept exactly this one, give its fingerprint as server_cert",
      name = "connect by a name that is in its certificate; to accept exactly this one, give its"
        .. " fingerprint as server_cert",
      own = "make a new one by lxd.identity, and join with it",
    }
    return "tls", "no TLS with " .. link.where .. ": " .. failure.message,
      hints[failure.reason] or "is this the HTTPS port of LXD?"
  end,
  file = function(failure)
    local kinds = { [ERRNO_ENOENT] = "not_found", [ERRNO_EACCES] = "forbidden" }
    return kinds[failure.errno] or "failed", failure.message
  end,
  forked = function(failure)
    return "failed", failure.message
  end,
}

---The error for a failure of the core.
---@param failure lualxd.core.failure
---@return lualxd.error
function exchange:explain(failure)
  local kind, message, hint = failure.kind, failure.message, nil
  local explain = FAILURES[kind]
  if explain then
    kind, message, hint = explain(failure, self.link)
  end
  -- A broken answer to a change tells as little of it as none: the operation's id may be lost.
  local lost = failure.kind == "lost" or failure.kind == "timeout" or failure.kind == "protocol"
    or failure.kind == "cancelled" or failure.kind == "failed"
  if self.change and failure.unsure and lost then
    return self:fail("unknown_outcome", {
      message = message .. "; the server may have got the request",
    })
  end
  return self:fail(kind, {
    message = message,
    hint = hint,
    certificate = failure.certificate,
    fingerprint = failure.fingerprint,
  })
end

---Tells the trace function of an answer, or that there was none. What it raises must not take along what is traced,
---which may have changed the server.
---@param status integer?
function exchange:trace(status)
  local link = self.link
  if not link.trace then
    return
  end
  local ok, problem = pcall(link.trace, self.method, without_secrets(self.path), status, core.now() - self.started)
  if not ok then
    io.stderr:write("lualxd: the trace function raised an error: ", tostring(problem), "\n")
  end
end

---Waits for the end.
---@param deadline number?
---@return integer? status
---@return string|lualxd.error head_or_err the raw header block
---@return string? body
function exchange:finish(deadline)
  local request = self.request
  if self.id == false then
    loop.breathe(self.link) -- it has failed at once; a script may try again and again
  end
  while true do
    local status, head, body = request:result()
    if status or head then
      if self.id then
        loop.unwatch(self.id)
      end
      self:trace(status)
      self.digest = status and self.hash and request:hash()
      self.started = request:began()
      request:close()
      if not status then
        return nil, self:explain(head)
      end
      return status, head, body
    end
    self.set = false
    if not loop.await(self, deadline) then
      return nil, self:fail("timeout", { message = "no answer in time" })
    end
  end
end

---Waits until it has ended, calling a function every so often.
---@param period number seconds
---@param f fun(sent: integer, to_send: integer, received: integer, to_receive: integer)
function exchange:observe(period, f)
  while self.request:state() ~= "done" do
    self.set = false
    loop.await(self, core.now() + period)
    f(self.request:progress())
  end
end

---Waits until there is news of the request (bytes, room, the end).
function exchange:await_news()
  self.set = false
  loop.await(self)
end

---Gives up; frees everything.
function exchange:cancel()
  if self.id then
    loop.unwatch(self.id)
  end
  self.request:close()
end

-- Whoever waited for it was killed.
exchange.abandoned = exchange.cancel

---Sends and waits for the answer.
---@param scope lualxd.scope
---@param method string
---@param path string
---@param settings lualxd.http_options?
---@return lualxd.answer?
---@return lualxd.error? err
function http.ask(scope, method, path, settings)
  settings = settings or {}
  local this, err = http.start(scope, method, path, settings)
  if not this then
    loop.breathe(scope.link)
    return nil, err
  end
  local status, head, body = this:finish()
  if not status then
    return nil, head
  end
  return answers.read(this, status, head, body, settings.raw)
end

return http
