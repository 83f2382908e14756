-- The engine: connections kept and reused, a bounded number at once, submit that really sends.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

describe("engine", function()
  before_each(support.begin)
  after_each(support.finally)

  it("uses one connection for one request after another", function()
    local engine, server = support.open()
    local c
    for i = 1, 20 do
      local r = support.get()
      c = c or server:accept()
      c:request()
      c:answer("answer " .. i)
      local status, _, body = support.finish(r)
      assert.equal(200, status)
      assert.equal("answer " .. i, body)
      assert.equal(1, r:attempts())
      r:close()
    end
    assert.equal(1, engine:connects())
    assert.is_nil(server:pending())
  end)

  it("opens no more connections than allowed, first come first served", function()
    local engine, server = support.open { connections = 2 }
    local requests = {}
    for i = 1, 5 do
      requests[i] = support.get { url = "http://lxd/" .. i }
    end
    local active, queued = engine:count()
    assert.equal(2, active)
    assert.equal(3, queued)
    assert.equal("queued", requests[3]:state())
    local a, b = server:accept(), server:accept()
    local head = a:request()
    local one = head:match("GET /(%d)")
    b:request()
    a:answer "x"
    support.finish(requests[tonumber(one)])
    assert.matches("GET /3 ", (a:request()))
    a:answer "x"
    support.finish(requests[3])
    assert.matches("GET /4 ", (a:request()))
    b:answer "x"
    assert.matches("GET /5 ", (b:request()))
    a:answer "x"
    b:answer "x"
    for i = 1, 5 do
      assert.equal(200, (support.finish(requests[i])))
    end
    assert.equal(2, engine:connects())
    assert.is_nil(server:pending())
    assert.equal(0, (engine:count()))
  end)

  it("lets the urgent go before all others, among themselves in order", function()
    local engine, server = support.open { connections = 1 }
    local requests = {}
    local function put(number, urgent)
      requests[#requests + 1] = support.get { url = "http://lxd/" .. number, urgent = urgent }
    end
    put(1)
    put(5)
    put(2, true)
    put(3, true)
    put(6)
    requests[3]:close()
    put(4, true)
    local c = server:accept()
    for _, number in ipairs { 1, 3, 4, 5, 6 } do
      assert.matches("GET /" .. number .. " ", (c:request()))
      c:answer "x"
    end
    support.until_(function()
      return engine:count() == 0
    end)
  end)

  it("knows when a request left the line", function()
    local _, server = support.open { connections = 1 }
    local before = core.now()
    local first, second = support.get(), support.get()
    local c = server:accept()
    c:request()
    assert.is_nil(second:began())
    local between = core.now()
    assert.is_true(before <= first:began() and first:began() <= between)
    c:answer "x"
    c:request()
    assert.is_true(second:began() >= between)
    c:answer "x"
    assert.equal(200, (support.finish(second)))
  end)

  it("goes on in the queue when the one before is cancelled or closed", function()
    local engine, server = support.open { connections = 1 }
    local first, second, third = support.get(), support.get { url = "http://lxd/2" },
      support.get { url = "http://lxd/3" }
    server:accept():request()
    first:cancel()
    local c = server:accept()
    assert.matches("GET /2 ", (c:request()))
    second:close()
    c = server:accept()
    assert.matches("GET /3 ", (c:request()))
    c:answer "x"
    assert.equal(200, (support.finish(third)))
    assert.equal(0, (engine:count()))
  end)

  it("has a request in the kernel when submit returns", function()
    local engine, server = support.open()
    local body = ("x"):rep(50000)
    for i = 1, 3 do
      local r = support.get { method = "POST", body = body, once = true }
      local c = assert(server:pending(), "no connection")
      posix.sleep(0)
      local bytes = c:peek()
      assert.matches("^POST /1.0 HTTP/1.1\r\n", bytes)
      assert.equal(body, bytes:match("\r\n\r\n(.*)$"))
      assert.equal(i, engine:connects())
      r:close()
    end
  end)

  it("has a request on a kept connection in the kernel, too", function()
    local _, server = support.open()
    local r = support.get()
    local c = server:accept()
    c:request()
    c:answer "x"
    support.finish(r)
    r = support.get { method = "DELETE" }
    assert.matches("^DELETE ", c:peek())
    assert.equal("active", r:state())
  end)

  it("fills the kernel's buffer with a large body and returns", function()
    local _, server = support.open()
    local r = support.get { method = "PUT", body = ("x"):rep(20e6) }
    local c = server:pending()
    assert.is_true(posix.pending(c.fd) > 100000)
    assert.equal("active", r:state())
  end)

  it("writes heads and bodies as asked, and nothing else", function()
    local _, server = support.open()
    local function sent(fields)
      local r = support.get(fields)
      local c = server:accept()
      local head, body = c:request()
      c:answer ""
      support.finish(r)
      c:close()
      return head, body
    end
    local common = "Host: lxd\r\nAccept: */*\r\n"
    assert.equal("GET /1.0 HTTP/1.1\r\n" .. common .. "\r\n", (sent {}))
    local strange = "/a/../b/./%2e%2E/%2f//c?x=%20%41&y=/../"
    assert.equal("GET " .. strange .. " HTTP/1.1\r\n" .. common .. "\r\n",
      (sent { url = "http://lxd" .. strange }))
    assert.equal("DELETE /1.0 HTTP/1.1\r\n" .. common .. "\r\n", (sent { method = "DELETE" }))
    local head = sent { method = "POST" }
    assert.equal("POST /1.0 HTTP/1.1\r\n" .. common .. "Content-Length: 0\r\n\r\n", head)
    local body
    head, body = sent { method = "PUT", body = "abc", headers = { "Content-Type: application/json",
      "If-Match: abc", "X-Empty:", "X-Spaces:  a  b" } }
    assert.equal("PUT /1.0 HTTP/1.1\r\n" .. common .. "Content-Type: application/json\r\n"
      .. "If-Match: abc\r\nX-Empty:\r\nX-Spaces:  a  b\r\nContent-Length: 3\r\n\r\n", head)
    assert.equal("abc", body)
    head, body = sent { method = "PATCH", body = "\0\r\n\255" }
    assert.matches("^PATCH ", head)
    assert.equal("\0\r\n\255", body)
    head = sent { method = "DELETE", body = "{}" }
    assert.matches("Content%-Length: 2\r\n", head)
    head = sent { method = "POST", body = ("x"):rep(2e6) }
    assert.is_nil(head:find("Expect", 1, true))
  end)

  it("refuses what would break a head", function()
    local engine = support.open()
    for _, options in ipairs {
      {}, { method = "GET" }, { method = "G T", url = "http://lxd/" },
      { method = "GET", url = "http://lxd/ HTTP/1.1" }, { method = "GET", url = "http://lxd/\r\nA: b" },
      { method = "GET", url = "http://lxd/\0" }, { method = "", url = "http://lxd/" },
      { method = "GET\r\n", url = "http://lxd/" }, { method = 1, url = "http://lxd/" },
    } do
      assert.has_error(function() engine:submit(options) end)
    end
    for _, header in ipairs { "A: b\r\nC: d", "A: b\n", "A: b\0", "no colon", ": x", "A b: c",
      "A;: c", 5, {} } do
      assert.has_error(function() support.get { headers = { header } } end)
    end
    for _, body in ipairs { 5, false, { 5 }, { {} }, { { path = 5 } }, { { path = "a\0b" } } } do
      assert.has_error(function() support.get { method = "PUT", body = body } end)
    end
    for name, value in pairs { limit = -1, timeout = -1, length = -1 } do
      assert.has_error(function()
        support.get { method = "PUT", body = true, [name] = value }
      end)
      assert.has_error(function()
        support.get { method = "PUT", body = true, [name] = 0 / 0 }
      end)
    end
    assert.has_error(function() engine:submit(nil) end)
    assert.equal(0, (engine:count()))
  end)

  it("says what is wrong with a URL that libcurl doesn't take", function()
    local engine = support.open()
    for _, url in ipairs { "ftp://lxd/", "http://", "http://user:pass@lxd/", "file:///etc/passwd" } do
      local r = engine:submit { method = "GET", url = url }
      local kind, failure = support.failure(r)
      assert.equal("failed", kind)
      assert.is_false(failure.unsure)
      assert.is_nil(failure.message:find("bad argument", 1, true))
      assert.equal(0, r:attempts())
    end
  end)

  it("talks TCP where no socket is given", function()
    local _, server, p = support.open()
    local fd, port = posix.listen_tcp()
    posix.close(server.fd)
    server.fd = fd
    local engine = core.engine(p, { connections = 2, timeout = 5 })
    local r = engine:submit { method = "GET", url = ("http://127.0.0.1:%d/"):format(port) }
    local c = server:accept()
    c:request()
    c:answer "over TCP"
    local _, _, body = support.finish(r)
    assert.equal("over TCP", body)
    posix.close(server.fd)
    server.fd = assert(posix.listen(support.directory .. "/other"))
    r = engine:submit { method = "POST", url = ("http://127.0.0.1:%d/"):format(port) }
    c:close()
    local kind, failure = support.failure(r)
    assert.is_true(kind == "connect" or kind == "lost")
    assert.is_string(failure.message)
  end)

  it("fails what it can't wait for, and nothing else", function()
    local child = support.fork(function()
      local _, server = support.open { timeout = 1 }
      local first = support.get()
      local c = server:accept()
      c:request()
      assert(posix.fail_call("epoll_ctl", 28)) -- ENOSPC: this user watches too many already
      for _ = 1, 3 do
        local kind, failure = support.failure(support.get { method = "POST", body = ("x"):rep(1e6) })
        assert(kind == "failed" and failure.errno == 28, failure.message)
        assert(failure.message:find("can't be watched", 1, true), failure.message)
      end
      c:answer "first"
      local status, _, body = support.finish(first)
      assert(status == 200 and body == "first")
    end)
    assert.equal(0, posix.waitpid(child))
  end)

  it("takes no socket for one that libcurl has closed without a word", function()
    support.open()
    local _, engine = support.give_up()
    local c = support.server
    local fd, port = posix.listen_tcp()
    posix.close(c.fd)
    c.fd = fd
    local r = engine:submit { method = "GET", url = ("http://127.0.0.1:%d/"):format(port) }
    c = c:accept()
    c:head()
    -- The resolver's pair of sockets gets the numbers.
    local named = engine:submit { method = "GET", url = "http://nowhere.invalid/" }
    local status, failure = support.finish(named)
    assert.is_nil(status)
    assert.equal("connect", failure.kind)
    c:answer "still here"
    assert.equal(200, (support.finish(r)))
  end)

  it("waits for no lookup of a name that a request gave up", function()
    local slow = support.file("slow.c", [[
      #include <netdb.h>
      #include <unistd.h>
      int getaddrinfo(const char *host, const char *port, const struct addrinfo *like, struct addrinfo **out)
      { (void)host, (void)port, (void)like, (void)out; sleep(5); return EAI_AGAIN; }
    ]])
    assert(os.execute(("cc -shared -fPIC -o %s.so %s"):format(slow, slow)))
    local script = support.file("script.lua", ([[
      package.cpath = %q
      local core = require "lualxd.core"
      local p, t = core.poller(), core.now()
      local e = core.engine(p, { connections = 2, timeout = 0.1 })
      local r = e:submit { method = "GET", url = "http://slow.invalid/" }
      while r:state() ~= "done" do p:wait(1) p:step({}) end
      r = e:submit { method = "GET", url = "http://other.invalid/" }
      r:cancel()
      local f = io.open(%q, "w")
      f:write(tostring(core.now() - t))
      f:close()
    ]]):format(package.cpath, support.directory .. "/took"))
    local i = -1
    while arg[i - 1] do i = i - 1 end
    local ok = os.execute(("LD_PRELOAD=$LD_PRELOAD:%s.so timeout 20 %s %s"):format(slow, arg[i], script))
    assert(ok == true or ok == 0)
    local took = tonumber(assert(io.open(support.directory .. "/took")):read "*a")
    assert(took >= 0.1 and took < 3, took)
  end)

  it("speaks neither through a proxy nor with a .netrc", function()
    local _, server = support.open()
    local script = support.file("script.lua", ([[
      package.cpath = %q
      local core = require "lualxd.core"
      local p = core.poller()
      local e = core.engine(p, { unix = %q, connections = 1, timeout = 5 })
      local r = e:submit { method = "GET", url = "http://lxd/1.0" }
      while r:state() ~= "done" do p:wait(1) p:step({}) end
      os.exit(r:result() and 0 or 1)
    ]]):format(package.cpath, support.path))
    support.file(".netrc", "machine lxd login somebody password secret\n")
    local i = -1
    while arg[i - 1] do i = i - 1 end
    os.execute(("HOME=%s http_proxy=http://127.0.0.1:1/ ALL_PROXY=socks5://127.0.0.1:1 %s %s & ")
      :format(support.directory, arg[i], script))
    local c = server:accept()
    local head = c:request()
    c:answer "x"
    assert.equal("GET /1.0 HTTP/1.1\r\nHost: lxd\r\nAccept: */*\r\n\r\n", head)
    c:wait_end()
  end)

  it("opens sockets and files that close on exec", function()
    support.open()
    support.finish(support.get { url = "ftp://lxd/" }) -- libcurl's own pipe, which doesn't, is there
    local _, before = posix.descriptors()
    local path = support.file("file", ("x"):rep(1e6))
    local r = support.get { method = "PUT", body = { { path = path } } }
    local seen = 0
    for fd in pairs(select(2, posix.descriptors())) do
      if not before[fd] then
        seen = seen + 1
        assert.is_true(posix.cloexec(fd))
      end
    end
    assert.equal(2, seen)
    assert.equal("active", r:state())
  end)

  it("closes with requests under way, twice", function()
    local engine, server = support.open { connections = 1 }
    local active, queued = support.get(), support.get { method = "POST", body = "x" }
    local c = server:accept()
    c:request()
    engine:close()
    engine:close()
    for _, r in ipairs { active, queued } do
      local kind, failure = support.failure(r)
      assert.equal("cancelled", kind)
      assert.equal(r == active, failure.unsure)
    end
    c:wait_end()
    assert.has_error(function() engine:connects() end, "attempt to use a closed engine")
    support.engine = support.new_engine()
    local r = support.get()
    c = server:accept()
    c:request()
    c:answer "x"
    assert.equal(200, (support.finish(r)))
  end)

  it("notices a kept connection that the server closed, and takes a new one", function()
    local engine, server = support.open()
    for i = 1, 3 do
      local r = support.get { method = "POST", body = "x", once = true }
      local c = server:accept()
      c:request()
      c:answer "x"
      assert.equal(200, (support.finish(r)))
      c:close()
      -- The poller finds out, too, and doesn't stay readable for it.
      assert.is_true(support.at_rest())
      assert.equal(i, engine:connects())
    end
  end)

  it("isn't kept busy by a server that says something unasked", function()
    local _, server = support.open()
    local r = support.get()
    local c = server:accept()
    c:request()
    c:answer "x"
    support.finish(r)
    c:send "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"
    assert.is_true(support.at_rest())
  end)

  it("comes back from a step although a peer has ever more to say", function()
    local _, server, p = support.open()
    local pid = support.fork(function()
      support.poller = nil
      local c = server:accept()
      c:request()
      local bytes = ("x"):rep(65536)
      posix.send(c.fd, "HTTP/1.1 200 OK\r\n\r\n")
      while true do
        posix.send(c.fd, bytes)
      end
    end)
    local r = support.get { stream = true }
    local slowest, got, deadline = 0, 0, core.now() + 0.3
    while core.now() < deadline do
      p:wait(0.05)
      local t = core.now()
      p:step({})
      got = got + #r:read()
      slowest = math.max(slowest, core.now() - t)
    end
    assert.is_true(got > 1e6)
    assert.is_true(slowest < 0.1, "a step took " .. slowest)
    r:close()
    os.execute("kill " .. pid)
    posix.waitpid(pid)
  end)
end)
