-- What a server, a network and a script can get wrong, and that each gives one clear error of the
-- right kind, after which the client works on. The server is an imitation: a real one doesn't err.

local lxd = require "lualxd"
local imitation = require "spec.support.imitation"

local server, client

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function sh(command)
  local pipe = assert(io.popen(command .. " 2>&1"))
  local out = pipe:read "*a"
  pipe:close()
  return (out:gsub("%s+$", ""))
end

-- One clear error: of this kind, one printable line that isn't endless.
local function refused(kind, result, err)
  assert.are.equal("nil", type(result))
  assert.are.equal("table", type(err))
  local text = tostring(err)
  assert.are.equal(kind, err.kind, text:sub(1, 300))
  assert.is_nil(text:find "%c", text:sub(1, 300))
  assert.is_true(#text > 10 and #text < 1500, text:sub(1, 300))
  return err
end

-- Without the rules the same client gets its answers: it isn't harmed.
local function works_on()
  server:drop_rules()
  local answer = assert(client.containers "web":get())
  assert.are.equal("web", answer.name)
end

setup(function()
  server = imitation.start()
end)

teardown(function()
  server:stop()
end)

before_each(function()
  server:reset()
  client = assert(lxd.connect { socket = server.socket, timeout = 0.25 })
  assert(client.containers:create {
    name = "web", source = { type = "image", alias = "busybox" },
  }:wait())
end)

after_each(function()
  client:close()
end)

describe("a place without a server", function()
  local function connect(path)
    return lxd.connect { socket = path, timeout = 1 }
  end

  it("that isn't there is refused with its path", function()
    local err = refused("connect", connect(server.directory .. "/none"))
    assert.truthy(tostring(err):find(server.directory .. "/none", 1, true))
  end)

  it("whose directory isn't there is refused", function()
    refused("connect", connect(server.directory .. "/none/socket"))
  end)

  it("that is a file or a directory is refused", function()
    assert(io.open(server.directory .. "/file", "w")):close()
    refused("connect", connect(server.directory .. "/file"))
    refused("connect", connect(server.directory))
    refused("connect", connect(server.directory .. "/file/below"))
  end)

  it("that nobody listens on any more is refused", function()
    local other = imitation.start()
    local left = server.directory .. "/left"
    os.execute("ln " .. quote(other.socket) .. " " .. quote(left))
    other:stop()
    refused("connect", connect(left))
  end)

  it("whose path is longer than a socket's can be is refused", function()
    refused("connect", connect("/tmp/" .. ("x"):rep(200)))
  end)

  it("that this user may not use is refused with a reason", function()
    if sh "id -u" ~= "0" then
      pending "needs root, to become somebody else"
      return
    end
    os.execute("chmod 755 " .. quote(server.directory))
    local script = server.directory .. "/script.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
      package.path, package.cpath = %q, %q
      local client, err = require "lualxd".connect { socket = %q }
      print(client, err and err.kind, tostring(err))
    ]]):format(package.path, package.cpath, server.socket))
    file:close()
    local lua = arg and arg[-1] or "lua5.4"
    local index = -1
    while arg and arg[index - 1] do
      index = index - 1
      lua = arg[index]
    end
    local out = sh("setpriv --reuid=65534 --regid=65534 --clear-groups " .. quote(lua) .. " "
      .. quote(script))
    assert.truthy(out:find("^nil%s+connect%s"), out)
    assert.truthy(out:find("ermission", 1, true), out)
  end)
end)

describe("a server that", function()
  local function get()
    return client.containers "web":get()
  end

  -- The rule is used for one request, each row in its own server.
  local function row(what, kind, rule)
    it(what .. " is " .. kind, function()
      rule.path = "containers/web"
      server:rules(rule)
      refused(kind, get())
      works_on()
    end)
  end

  local HTML = "<html>\n<body><h1>It works!</h1></body>\n</html>\n"
  local html = { ["Content-Type"] = "text/html" }

  describe("ends the connection", function()
    row("before it answers", "connect", { steps = { { close = true } } })
    row("in the status line", "connect", { steps = { { bytes = "HTTP/1." }, { close = true } } })
    row("in the headers", "connect", {
      steps = { { bytes = "HTTP/1.1 200 OK\r\nContent-Le" }, { close = true } },
    })
    row("in the body", "protocol", { answer = { body = '{"type":"sync"}', length = 100, cut = 90 } })
    row("in a chunk", "protocol", { steps = {
      { bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc" },
      { close = true },
    } })

    it("as soon as it has accepted it", function()
      server:rules { when = "accept", close = true }
      refused("connect", lxd.connect { socket = server.socket, timeout = 0.25 })
    end)
  end)

  describe("stalls", function()
    row("before it answers", "timeout", { stall = true })
    row("in the headers", "timeout", {
      steps = { { bytes = "HTTP/1.1 200 OK\r\nContent-Le" }, { stall = true } },
    })
    row("in the body", "timeout", {
      steps = { { answer = { body = '{"type":"sync"', length = 100 } }, { stall = true } },
    })

    it("as soon as it has accepted the connection", function()
      server:rules { when = "accept", stall = true }
      refused("timeout", lxd.connect { socket = server.socket, timeout = 0.2 })
    end)

    it("but goes on in time is waited for", function()
      server:rules { path = "containers/web", times = 1, steps = {
        { delay = 0.15 }, { bytes = "HTTP/1.1 200 OK\r\n" }, { delay = 0.15 },
        { bytes = "Content-Type: application/json\r\nContent-Length: 39\r\n\r\n" },
        { delay = 0.15 }, { bytes = '{"type":"sync","metadata":' },
        { delay = 0.15 }, { bytes = '{"a":"slow"}}' },
      } }
      assert.are.equal("slow", assert(get()).a)
    end)
  end)

  describe("isn't LXD and answers", function()
    row("HTML", "protocol", { answer = { body = HTML, headers = html } })
    row("HTML that says it is JSON", "protocol", { answer = { body = HTML } })
    row("nothing", "protocol", { answer = { body = "" } })
    row("204", "protocol", { answer = { status = 204, length = false, body = "" } })
    row("a redirect", "protocol", {
      answer = { status = 302, headers = { Location = "http://elsewhere/" }, body = HTML },
    })
    row("HTML with 502", "unavailable", { answer = { status = 502, body = HTML, headers = html } })
    row("HTML with 404", "not_found", { answer = { status = 404, body = HTML, headers = html } })
    row("HTML with 500", "failed", { answer = { status = 500, body = HTML, headers = html } })
    row("half an error", "protocol", { answer = { status = 400, body = '{"type":"err' } })
    row("something older than HTTP", "protocol", { steps = { { bytes = HTML }, { close = true } } })
    row("SSH", "protocol", { steps = { { bytes = "SSH-2.0-OpenSSH_9.2\r\n" }, { close = true } } })
    row("noise", "protocol", {
      steps = { { bytes = "\0\255\1\254garbage\r\n\r\n\0\0" }, { close = true } },
    })
    row("a status that is none", "protocol", {
      steps = { { bytes = "HTTP/1.1 abc\r\n\r\n" }, { close = true } },
    })

    it("HTML from the start gives no client", function()
      server:rules { answer = { body = HTML, headers = html } }
      refused("protocol", lxd.connect { socket = server.socket })
    end)

    for what, body in pairs {
      ["another kind of JSON"] = '{"hello":"world"}',
      ["an array"] = "[1,2]",
      ["a string"] = '"LXD"',
      ["null"] = "null",
      ["no version"] = '{"type":"sync","metadata":{}}',
      ["no metadata"] = '{"type":"sync"}',
      ["a number as metadata"] = '{"type":"sync","metadata":5}',
    } do
      it("its first question with " .. what .. " gives no client", function()
        server:rules { answer = { body = body } }
        refused("protocol", lxd.connect { socket = server.socket })
      end)
    end
  end)

  describe("sends", function()
    row("half a JSON", "protocol", { answer = { body = '{"type":"sync","metadata":{"a":[1' } })
    row("JSON and more", "protocol", { answer = { body = '{"type":"sync","metadata":{}} {}' } })
    row("numbers that are none", "protocol", {
      answer = { body = '{"type":"sync","metadata":{"a":NaN,"b":Infinity}}' },
    })
    row("a JSON of a depth of 100,000", "protocol", { deep = 100000 })
    row("an object that isn't one", "protocol", { sync = '"web"' })
    row("no object", "protocol", { sync = "null" })
    row("an envelope of no type", "protocol", { answer = { body = '{"metadata":{"name":"x"}}' } })
    row("an envelope whose type is no word", "protocol", {
      answer = { body = '{"type":{},"metadata":{"name":"x"}}' },
    })
    row("an endless body", "protocol", { steps = {
      { bytes = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" },
      { endless = "[[[[[[[[" },
    } })
    row("an endless chunked body", "protocol", { steps = {
      { bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" },
      { endless = "8\r\n[[[[[[[[\r\n" },
    } })
    row("an endless error", "protocol", { steps = {
      { bytes = "HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\n\r\n" }, { endless = "x" },
    } })
    row("more than anybody wants", "protocol", {
      steps = { { answer = { body = "{", length = 1e15 } }, { stall = true } },
    })
    row("endless headers", "protocol", {
      steps = { { bytes = "HTTP/1.1 200 OK\r\n" }, { endless = "X-Header: value\r\n" } },
    })
    row("an endless header", "protocol", {
      steps = { { bytes = "HTTP/1.1 200 OK\r\nX: " }, { endless = "x" } },
    })
    row("a Content-Length that is too small", "protocol", {
      answer = { body = '{"type":"sync","metadata":{"name":"web"}}', length = 20 },
    })
    row("a Content-Length that is too large, and ends", "protocol", {
      answer = { body = '{"type":"sync","metadata":{"name":"web"}}', length = 50, cut = 1000 },
    })
    row("a Content-Length that is too large, and waits", "timeout", {
      steps = { { answer = { body = '{"type":"sync","metadata":{}}', length = 50 } },
        { stall = true } },
    })
    row("a Content-Length that is no number", "protocol", {
      answer = { body = "{}", length = "many" },
    })
    row("a Content-Length below nothing", "protocol", { answer = { body = "{}", length = -5 } })
    row("chunks that are none", "protocol", { steps = {
      { bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n" },
      { close = true },
    } })
    row("a compression that nobody asked for", "protocol", { answer = {
      body = "\31\139\8\0\0\0", headers = { ["Content-Encoding"] = "gzip" },
    } })

    it("provisional answers first is understood", function()
      server:rules { path = "containers/web", times = 1, steps = {
        { bytes = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" },
        { model = true },
      } }
      assert.are.equal("web", assert(get()).name)
    end)

    it("any bytes in strings passes them on", function()
      server:rules { path = "containers/web", times = 1, sync = '{"a":"\255\\u0000\195\164\\n"}' }
      assert.are.equal("\255\0\195\164\n", assert(get()).a)
    end)

    it("surplus bytes doesn't have them taken for the next answer", function()
      local forged = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        .. "Content-Length: 45\r\n\r\n"
        .. '{"type":"sync","metadata":{"name":"forged!"}}'
      local good = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        .. "Content-Length: 43\r\n\r\n"
        .. '{"type":"sync","metadata":{"name":"first"}}'
      server:rules { path = "containers/web", times = 1, steps = { { bytes = good .. forged } } }
      assert.are.equal("first", assert(get()).name)
      works_on()
    end)

    it("a text of its own keeps it to one line", function()
      server:rules { path = "containers/web", times = 1,
        error = { 400, "first\nsecond\r\n\27[31mthird" } }
      refused("invalid", get())
    end)

    it("an error whose text is no text says its status", function()
      server:rules { path = "containers/web", times = 1,
        answer = { status = 400, body = '{"type":"error","error":{"a":1},"error_code":"x"}' } }
      local err = refused("invalid", get())
      assert.are.equal(400, err.code)
    end)
  end)

  describe("sends a list", function()
    local function list_row(what, metadata)
      it("with " .. what .. " is protocol, never an empty list", function()
        server:rules { path = "containers", sync = metadata }
        refused("protocol", client.containers:list())
        refused("protocol", client.containers:names())
        local ok, err = pcall(function()
          for _ in client.containers:each() do
            error "an entry"
          end
        end)
        assert.is_false(ok)
        assert.are.equal("protocol", err.kind, tostring(err))
      end)
    end
    list_row("a string in its place", '"none"')
    list_row("a number in its place", "7")
    list_row("an object in its place", '{"web":{}}')
    list_row("numbers in it", "[1,2]")
    list_row("objects without a name in it", '[{"name":"web"},{"nam":"db"},{"name":5}]')
  end)

  describe("has operations that", function()
    local function create()
      return client.containers:create { name = "new", source = { type = "none" } }
    end

    it("have no id are protocol", function()
      server:rules { method = "POST", answer = { status = 202, body = '{"type":"async"}' } }
      refused("protocol", create():wait())
    end)

    it("have an id that would lead elsewhere lead nowhere", function()
      server:rules(
        { method = "POST", answer = { status = 202,
          body = '{"type":"async","operation":"/1.0/operations/x/../../certificates",'
            .. '"metadata":{"id":"../../1.0/certificates?x","status_code":103}}' } })
      local op = create()
      local _, err = op:wait(1)
      assert.is_not_nil(err)
      for _, request in ipairs((server:record())) do
        assert.is_nil(request.target:find("/../", 1, true), request.target)
        assert.is_nil(request.target:find("^/1.0/certificates"), request.target)
      end
    end)

    it("end with something else than a status are protocol", function()
      server:rules(
        { path = "/wait", sync = '"done"' },
        { method = "POST", async = { id = "abc", status_code = 103, status = "Running" } })
      refused("protocol", create():wait(1))
    end)

    it("end with HTML are protocol", function()
      server:rules(
        { path = "/wait", answer = { body = HTML, headers = html } },
        { method = "POST", async = { id = "abc", status_code = 103, status = "Running" } })
      refused("protocol", create():wait(1))
    end)

    it("fail without a word have an error nevertheless", function()
      server:rules { method = "POST",
        async = { id = "abc", status_code = 400, status = "Failure", err = "" } }
      refused("failed", create():wait(1))
    end)
  end)

  it("ends the connection in the middle of a streamed body is told at its end", function()
    server:rules {
      path = "/export", answer = { body = ("x"):rep(1000), length = 2000, cut = 1100 },
    }
    local response = assert(client:request("GET", "/1.0/images/a/export", { stream = true }))
    local got = 0
    local piece, err = response.body()
    while piece do
      got = got + #piece
      piece, err = response.body()
    end
    assert.is_true(got < 2000)
    refused("protocol", nil, err)
    works_on()
  end)
end)

describe("a name", function()
  local NAMES = {
    ["a/b"] = "a%2Fb", ["a?b=c"] = "a%3Fb%3Dc", ["a%b"] = "a%25b", ["a%2Fb"] = "a%252Fb",
    ["a\nb"] = "a%0Ab", ["a\r\nHost: b"] = "a%0D%0AHost%3A%20b", ["a\0b"] = "a%00b",
    ["a b"] = "a%20b", ["a#b"] = "a%23b", ["..a"] = "..a", ["a/../b"] = "a%2F..%2Fb",
    ["\195\164"] = "%C3%A4", ["\255"] = "%FF", ["-"] = "-", ["a+b"] = "a%2Bb",
    ["http://x"] = "http%3A%2F%2Fx",
    [("x"):rep(10000)] = ("x"):rep(10000),
  }

  for name, escaped in pairs(NAMES) do
    it(("of %q goes out as it must"):format(name:sub(1, 20)), function()
      refused("not_found", client.containers(name):get())
      refused("not_found", client.containers(name):state())
      refused("not_found", client.containers "web".snapshots(name):get())
      refused("not_found", client.containers(name):start():wait())
      refused("not_found", client.containers(name):delete():wait())
      local requests = server:record()
      local first = #requests - 4
      assert.are.equal("/1.0/containers/" .. escaped, requests[first].target)
      assert.are.equal("/1.0/containers/" .. escaped .. "/state", requests[first + 1].target)
      assert.are.equal("/1.0/containers/web/snapshots/" .. escaped, requests[first + 2].target)
      assert.are.equal("DELETE", requests[first + 4].method)
      assert.are.equal("/1.0/containers/" .. escaped, requests[first + 4].target)
    end)
  end

  it("that no URL can hold raises and sends nothing", function()
    local before = #server:record()
    for _, name in ipairs { "", ".", "..", 5, {}, true } do
      local ok, message = pcall(client.containers, name)
      assert.is_false(ok)
      assert.truthy(tostring(message):find("name", 1, true), message)
    end
    assert.is_false((pcall(client.containers)))
    assert.is_false((pcall(client.containers "web".rename, client.containers "web", "..")))
    assert.are.equal(before, #server:record())
  end)

  it("of a file keeps to its parameter", function()
    local long = "/" .. ("y"):rep(9999)
    for _, path in ipairs { "/etc/a&project=other", "/a?b#c", "/a\nb", "/../x", long } do
      refused("not_found", client.containers "web".files:read(path))
    end
    for _, request in ipairs((server:record())) do
      assert.is_nil(request.target:find("project", 1, true) and request.target:find("&", 1, true))
      assert.is_nil(request.target:find "%c")
    end
  end)
end)

describe("what a script gives", function()
  it("as a header can't break out of its line", function()
    local before = #server:record()
    for _, headers in ipairs {
      { ["X-A"] = "b\r\nX-C: d" }, { ["X-A\r\nX-C"] = "d" }, { ["X-A"] = "b\0c" },
      { ["X A"] = "b" }, { [""] = "b" }, { "X-A: b" },
    } do
      assert.has_error(function()
        client:request("GET", "/1.0", { headers = headers })
      end)
    end
    assert.are.equal(before, #server:record())
  end)

  it("as a path or method can't break out of the request line", function()
    local before = #server:record()
    for _, path in ipairs { "", "1.0", "/1.0 HTTP/1.1\r\nX: y\r\n\r\n", "/1.0\n", "/a b", "/\0" } do
      assert.has_error(function()
        client:request("GET", path)
      end)
    end
    for _, method in ipairs { "", "GET /", "GET\r\n", "get it" } do
      assert.has_error(function()
        client:request(method, "/1.0")
      end)
    end
    assert.are.equal(before, #server:record())
  end)

  it("as a query has names, and values that can be sent", function()
    local before = #server:record()
    for _, query in ipairs { { 1, 2 }, { recursion = {} }, { filter = print } } do
      local ok, problem = pcall(function()
        return (client:request("GET", "/1.0/instances", { query = query }))
      end)
      assert.is_false(ok)
      assert.matches("bad_input_spec.lua:%d+: client:request: option 'query'", problem)
    end
    assert.are.equal(before, #server:record())
  end)

  it("as a body is one", function()
    assert.has_error(function()
      client:request("POST", "/1.0/profiles", { json = {}, body = "{}" })
    end, "client:request: options 'json' and 'body' don't go together")
    for at, body in pairs { [1] = { 5 }, [2] = { "{", {} }, name = { name = "web" } } do
      local ok, problem = pcall(client.request, client, "POST", "/1.0/instances", { body = body })
      assert.is_false(ok)
      assert.matches("option 'body': " .. at .. " must be a string or { path = … } in a list", problem, 1, true)
    end
  end)

  it("as a header is text or a number", function()
    assert.has_error(function()
      client:request("GET", "/1.0", { headers = { ["X-A"] = {} } })
    end, "client:request: option 'headers': X-A must be a string or a number")
    assert(client:request("GET", "/1.0", { headers = { ["X-A"] = 1, ["X-B"] = "b" } }))
  end)

  it("to a change raises and sends nothing", function()
    local before = #server:record()
    local web, base = client.containers "web", client.profiles "base"
    for said, f in pairs {
      ["delete: unknown option 'recursive'"] = function() base:delete { recursive = true } end,
      ["delete: options must be a table"] = function() base:delete(true) end,
      ["list: option 'recursion' must not be negative"] = function() client.profiles:list { recursion = -1 } end,
      -- A PUT with `restore = ""` is one of an empty container.
      ["restore: snapshot: '' is not a name"] = function() web:restore "" end,
      ["publish: option 'snapshot': '' is not a name"] = function() web:publish { snapshot = "" } end,
      ["files:append: unknown option 'mode'"] = function() web.files:append("/a", "b", { mode = "0600" }) end,
      ["files:symlink: unknown option 'uid'"] = function() web.files:symlink("/a", "b", { uid = 1 }) end,
      ["files:write: option 'uid' can't be 1099511627776"] = function()
        web.files:write("/a", "b", { uid = 2 ^ 40 })
      end,
      ["files:delete: unknown option 'recursive'"] = function() web.files:delete("/a", { recursive = true }) end,
      ["import: option 'alias' must not be empty"] = function() client.images:import("/a", { alias = "" }) end,
      ["lxd.on_unwaited must be callable"] = function() lxd.on_unwaited = "no" end,
    } do
      assert.error_matches(f, said, 1, true)
    end
    assert.are.equal(before, #server:record())
  end)

  it("to connect is refused where the script says it", function()
    for option, value in pairs { connections = 1025, socket = "", project = "", target = ".." } do
      local ok, problem = pcall(function()
        local other = lxd.connect { [option] = value, socket = option ~= "socket" and server.socket or value }
        return other
      end)
      assert.is_false(ok)
      assert.matches("bad_input_spec.lua:%d+: lxd.connect: option '" .. option .. "'", problem)
    end
  end)

  it("as operations to wait for is a sequence of them", function()
    local op = client.profiles:create { name = "x" }
    for _, ops in ipairs { { web = op }, { op, nil, op }, { op, "no" } } do
      local ok, problem = pcall(function()
        local results = lxd.wait_all(ops)
        return results
      end)
      assert.is_false(ok)
      assert.matches("bad_input_spec.lua:%d+: lxd.wait_all: operations%[", problem)
    end
    op:wait()
  end)

  it("as an ETag can't break out of its header", function()
    local before = #server:record()
    local ok, op = pcall(client.containers "web".put, client.containers "web", {}, 'x"\r\nX: y')
    if ok then
      local result, err = op:wait()
      assert.is_nil(result)
      assert.is_not_nil(err)
    end
    for _, request in ipairs((server:record())) do
      assert.is_nil(request.headers.x)
    end
    assert.are.equal(before, #server:record())
  end)

  it("as data that JSON can't hold raises and sends nothing", function()
    local before = #server:record()
    local cycle = {}
    cycle.cycle = cycle
    for _, data in ipairs {
      { f = print }, { n = 0 / 0 }, { n = math.huge }, cycle, { [{}] = 1 },
      { t = coroutine.create(print) },
    } do
      local ok, message = pcall(client.containers.create, client.containers, data)
      assert.is_false(ok)
      assert.is_string(message)
    end
    assert.is_false((pcall(client.containers.create, client.containers)))
    assert.is_false((pcall(client.containers.create, client.containers, "web")))
    assert.are.equal(before, #server:record())
  end)

  it("as an unknown option raises and names it", function()
    local ok, message = pcall(lxd.connect, { sockt = server.socket })
    assert.is_false(ok)
    assert.truthy(message:find("sockt", 1, true) and message:find("socket", 1, true), message)
    assert.is_false((pcall(lxd.connect, { socket = 5 })))
    assert.is_false((pcall(lxd.connect, { socket = server.socket, timeout = -1 })))
    assert.is_false((pcall(lxd.connect, { socket = server.socket, connections = 0 })))
  end)
end)

describe("the configuration of the server", function()
  it("put back as it was read keeps the trust password set", function()
    local data, etag = assert(client:get())
    assert.is_true(data.config["core.trust_password"])
    assert(client:put(data, etag):wait())
    local requests = server:record()
    local put = requests[#requests]
    assert.are.equal("PUT", put.method)
    assert.truthy(put.body:find('"core.trust_password":true', 1, true), put.body)
    assert.are.same(data.config, assert(client:get()).config)
  end)

  it("put back as it was read keeps the same trust password on a real LXD", function()
    if not (os.getenv "LXD_SOCKET" and os.getenv "LXD_DIR") then
      pending "needs a private LXD"
      return
    end
    -- What the server keeps is salted: the same bytes are the same password, never set again.
    local function kept()
      return sh "lxd sql global 'SELECT value FROM config WHERE key = \"core.trust_password\"'"
    end
    local real = assert(lxd.connect { socket = os.getenv "LXD_SOCKET" })
    assert(real:patch { config = { ["core.trust_password"] = "a secret" } }:wait())
    local before = kept()
    assert.truthy(before:find("%x%x%x%x%x%x%x%x"), before)
    local data, etag = assert(real:get())
    assert.is_true(data.config["core.trust_password"])
    assert(real:put(data, etag):wait())
    assert.are.equal(before, kept())
    -- And so does a change of something else.
    assert(real:update(function(server_data)
      server_data.config["user.note"] = "x"
    end):wait())
    assert.are.equal(before, kept())
    assert(real:patch {
      config = { ["core.trust_password"] = lxd.unset, ["user.note"] = lxd.unset },
    }:wait())
    assert.is_nil(assert(real:get()).config["core.trust_password"])
    real:close()
  end)
end)
