-- What the core's specs share: a raw server in the same process, driven by hand, so that every
-- order of events can be made on purpose and without sleeping; and the count of descriptors.
local core = require "lualxd.core"

local support = { core = core }

local HERE = "spec/core/"
-- Seconds after which a test hangs; valgrind takes its time.
local DEADLINE = os.getenv "LUALXD_SANITIZED" and 60 or 10

-- Beside the core, for the same Lua.
local function load_posix()
  local so = assert(package.searchpath("lualxd.core", package.cpath)):gsub("lualxd/core.so$", "")
    .. "spec_posix.so"
  local lua = rawget(_G, "jit") and "luajit" or _VERSION:lower():gsub(" ", "")
  local made = os.execute(("test %s -nt %sposix.c || { cc -D_GNU_SOURCE -O1 -g -fPIC -shared "
    .. "-Wall -Wextra $(pkg-config --cflags %s) %sposix.c -o %s.$$ && mv %s.$$ %s; }")
    :format(so, HERE, lua, HERE, so, so, so))
  assert(made == true or made == 0, "can't build " .. so)
  return assert(package.loadlib(so, "luaopen_spec_posix"))()
end

local posix = load_posix()
support.posix = posix

-- A server ---------------------------------------------------------------------------------------

local connection = {}
connection.__index = connection

-- Waits until f gives something, stepping the client meanwhile.
function support.until_(f, poller)
  local deadline = core.now() + DEADLINE
  local news = {}
  while true do
    local value = f()
    if value then
      return value
    end
    assert(core.now() < deadline, "it hangs")
    local p = poller or support.poller
    if p then
      p:wait(0.002)
      p:step(news)
    else
      posix.sleep(0.001)
    end
  end
end

-- All that has come so far and hasn't been taken.
function connection:peek()
  local bytes, _, errno = posix.recv(self.fd)
  if bytes == "" or (errno and errno ~= 11) then
    self.ended = true
  end
  self.buffer = self.buffer .. (bytes or "")
  return self.buffer
end

-- Waits for a request's head; gives it.
function connection:head()
  return support.until_(function()
    local head, rest = self:peek():match("^(.-\r\n\r\n)(.*)$")
    if head then
      self.buffer = rest
      return head
    end
    assert(not self.ended, "the client closed the connection")
  end)
end

-- Waits for n bytes; gives them.
function connection:bytes(n)
  return support.until_(function()
    if #self:peek() >= n then
      local bytes = self.buffer:sub(1, n)
      self.buffer = self.buffer:sub(n + 1)
      return bytes
    end
    assert(not self.ended, "the client closed the connection")
  end)
end

-- Waits for a whole request; gives its head and its body.
function connection:request()
  local head = self:head()
  local length = tonumber(head:match("\r\nContent%-Length: (%d+)"))
  if not head:find("\r\nTransfer%-Encoding: chunked") then
    return head, self:bytes(length or 0)
  end
  local body = {}
  while true do
    local line = support.until_(function()
      return self:peek():match("^(%x+)\r\n")
    end)
    self:bytes(#line + 2)
    body[#body + 1] = self:bytes(tonumber(line, 16))
    self:bytes(2)
    if tonumber(line, 16) == 0 then
      return head, table.concat(body)
    end
  end
end

-- Waits for the client to close.
function connection:wait_end()
  return support.until_(function()
    self:peek()
    return self.ended
  end)
end

function connection:send(bytes)
  while #bytes > 0 do
    local n = support.until_(function()
      local sent, message, errno = posix.send(self.fd, bytes)
      assert(sent or errno == 11, message)
      return sent
    end)
    bytes = bytes:sub(n + 1)
  end
end

function connection:answer(body, status)
  self:send(("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s"):format(status or "200 OK", #body, body))
end

function connection:close()
  if self.fd then
    posix.close(self.fd)
    self.fd = nil
  end
end

local listener = {}
listener.__index = listener

-- Waits for a connection.
function listener:accept()
  local fd = support.until_(function()
    return (posix.accept(self.fd))
  end)
  local c = setmetatable({ fd = fd, buffer = "", ended = false }, connection)
  self.connections[#self.connections + 1] = c
  return c
end

-- The next connection that is there already, if any.
function listener:pending()
  local fd = posix.accept(self.fd)
  if fd then
    local c = setmetatable({ fd = fd, buffer = "", ended = false }, connection)
    self.connections[#self.connections + 1] = c
    return c
  end
end

function listener:close()
  for _, c in ipairs(self.connections) do
    c:close()
  end
  posix.close(self.fd)
end

-- Runs f in a child, which then exits: with 0, or with what f gives; 99 is an error raised in it.
function support.fork(f)
  local pid = assert(posix.fork())
  if pid == 0 then
    posix.alarm(20)
    local ok, code = pcall(f)
    if not ok then
      io.stderr:write("child: ", tostring(code), "\n")
    end
    posix.exit(ok and (code or 0) or 99)
  end
  return pid
end

-- One test's things ------------------------------------------------------------------------------

local before, opened

-- A new poller, server and engine, closed after the test.
function support.open(options)
  local s = setmetatable({ connections = {} }, listener)
  support.path = support.directory .. "/socket"
  if options and options.tcp then
    s.fd, s.port = posix.listen_tcp()
  else
    s.fd = assert(posix.listen(support.path, options and options.backlog))
  end
  support.server = s
  support.poller = assert(core.poller())
  support.engine = support.new_engine(options)
  return support.engine, s, support.poller
end

function support.new_engine(options)
  options = options or {}
  return assert(core.engine(support.poller, {
    unix = not options.tcp and (options.unix or support.path) or nil,
    connections = options.connections or 4,
    timeout = options.timeout or 5,
  }))
end

function support.get(fields)
  local options = { method = "GET", url = "http://lxd/1.0" }
  for key, value in pairs(fields or {}) do
    options[key] = value
  end
  return support.engine:submit(options)
end

-- A connect that is given up: libcurl closes its socket without saying so. Gives a request that is under
-- way on the same engine, and the engine.
function support.give_up()
  local fd, port = posix.listen_tcp(0)
  local url = ("http://127.0.0.1:%d/"):format(port)
  local engine = assert(core.engine(support.poller, { connections = 8, timeout = 60 }))
  local good = engine:submit { method = "GET", url = url }
  local deaf = {}
  for i = 1, 3 do -- more than its backlog: these stay connects
    deaf[i] = engine:submit { method = "GET", url = url, timeout = 0.2 }
  end
  for _, r in ipairs(deaf) do
    support.finish(r)
  end
  posix.close(fd)
  return good, engine
end

-- Drives the client until a request has ended; gives its result.
function support.finish(request)
  support.until_(function()
    return request:state() == "done"
  end)
  return request:result()
end

-- Its failure: the kind, the whole.
function support.failure(request)
  local status, failure = support.finish(request)
  assert(status == nil, "it has an answer: " .. tostring(status))
  return failure.kind, failure
end

function support.file(name, bytes)
  local path = support.directory .. "/" .. name
  local f = assert(io.open(path, "wb"))
  f:write(bytes)
  f:close()
  return path
end

function support.collect()
  for _ = 1, 4 do
    collectgarbage()
  end
end

-- Whether the poller comes to rest: an early timer may cost it a step or two.
function support.at_rest()
  for _ = 1, 5 do
    if not support.poller:wait(0) then
      return true
    end
    support.poller:step({})
  end
  return false
end

-- Bytes of memory that count: none under a sanitizer, which keeps what is freed.
function support.memory()
  return os.getenv "LUALXD_SANITIZED" and 0 or posix.memory()
end

-- Before each test.
function support.begin()
  support.collect()
  support.directory = assert(posix.directory())
  before, opened = posix.descriptors()
end

-- After each: everything closed and collected, no descriptor stays.
function support.finally()
  if support.server then
    support.server:close()
  end
  if support.poller then
    support.poller:close()
  end
  support.server, support.poller, support.engine = nil, nil, nil
  support.collect()
  os.execute("rm -rf " .. support.directory)
  local after, now = posix.descriptors()
  local left = {}
  for fd, target in pairs(now) do
    if not opened[fd] then
      left[#left + 1] = fd .. " " .. target
    end
  end
  assert(after == before, "descriptors left open: " .. table.concat(left, ", "))
end

return support
