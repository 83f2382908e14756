-- How exchanges end that don't end well: the kind, whether the server may know, and that nothing is
-- sent twice that must not be.
local support = require "spec.core.support"
local posix = support.posix

describe("a request on a kept connection that the server reads and hangs up on", function()
  before_each(support.begin)
  after_each(support.finally)

  -- Whether anything comes over a connection: libcurl opens one before it asks whether it may send.
  local function heard(c)
    return support.until_(function()
      return #c:peek() > 0 or c.ended
    end) and #c.buffer > 0
  end

  -- The server answers the first request of each connection, reads the second and hangs up. Gives the
  -- second's failure or status, and how many requests of its method arrived in all.
  local function provoke(fields, whole)
    local engine, server = support.open()
    local warm = support.get { url = "http://lxd/warm" }
    local c = server:accept()
    c:request()
    c:answer ""
    support.finish(warm)
    local r = engine:submit(fields)
    local arrived = 0
    if whole == "head" then c:head() else c:request() end
    arrived = arrived + 1
    c:close()
    while r:state() ~= "done" do
      support.poller:wait(0.01)
      support.poller:step({})
      local again = server:pending()
      if again and heard(again) then
        again:request()
        arrived = arrived + 1
        again:answer "again"
      end
    end
    local status, failure = r:result()
    return r, arrived, status, failure
  end

  local function lost(fields, whole)
    local r, arrived, status, failure = provoke(fields, whole)
    assert.is_nil(status)
    assert.equal("lost", failure.kind)
    assert.is_true(failure.unsure)
    assert.equal(1, arrived)
    assert.equal(1, r:attempts())
    local again = support.server:pending()
    assert.is_false(again ~= nil and heard(again))
    return r
  end

  it("is lost: POST with a body", function()
    lost { method = "POST", url = "http://lxd/", body = "change", once = true }
  end)

  it("is lost: POST with an empty body", function()
    lost { method = "POST", url = "http://lxd/", body = "", once = true }
  end)

  it("is lost: POST without a body", function()
    lost { method = "POST", url = "http://lxd/", once = true }
  end)

  it("is lost: PUT, PATCH, and DELETE with `once`", function()
    lost { method = "PUT", url = "http://lxd/", body = "{}", once = true }
    support.poller:close()
    support.server:close()
    os.remove(support.path)
    lost { method = "PATCH", url = "http://lxd/", body = "{}", once = true }
    support.poller:close()
    support.server:close()
    os.remove(support.path)
    lost { method = "DELETE", url = "http://lxd/", once = true }
  end)

  it("is lost: a body of pieces and files", function()
    local path = support.file("file", "bytes")
    lost { method = "POST", url = "http://lxd/", body = { "a", { path = path } }, once = true }
  end)

  it("is lost: a written body, finished or not", function()
    local engine, server = support.open()
    for _, finished in ipairs { true, false } do
      local warm = support.get()
      local c = server:accept()
      c:request()
      c:answer ""
      support.finish(warm)
      local r = engine:submit { method = "POST", url = "http://lxd/", body = true, once = true }
      r:write "some"
      if finished then
        r:finish()
        c:request()
      else
        c:head()
      end
      c:close()
      local kind, failure = support.failure(r)
      assert.equal("lost", kind)
      assert.is_true(failure.unsure)
      assert.equal(1, r:attempts())
      local again = server:pending()
      assert.is_false(again ~= nil and heard(again))
    end
  end)

  it("is lost, too, without `once`, when some of the body went out", function()
    -- libcurl can't have the body read again from its beginning, and nor do we want it to.
    lost({ method = "PUT", url = "http://lxd/", body = ("x"):rep(1e6) }, "head")
  end)

  it("is sent again: DELETE and GET without `once`", function()
    for _, method in ipairs { "DELETE", "GET" } do
      local r, arrived, status = provoke { method = method, url = "http://lxd/" }
      assert.equal(200, status)
      assert.equal(2, arrived)
      assert.equal(2, r:attempts())
      assert.equal(2, support.engine:connects())
      support.poller:close()
      support.server:close()
      os.remove(support.path)
    end
    support.server = nil
  end)
end)

describe("a bad peer", function()
  before_each(support.begin)
  after_each(support.finally)

  local function fails(fields, play)
    local r = support.get(fields)
    local c = support.server:accept()
    play(c)
    local kind, failure = support.failure(r)
    assert.is_string(failure.message)
    assert.is_nil(failure.message:find("[%c]"))
    c:close()
    return kind, failure, r
  end

  it("that hangs up at once, or after reading", function()
    support.open()
    for _, method in ipairs { "GET", "POST" } do
      for _, play in ipairs {
        function(c) c:close() end,
        function(c) c:request() c:close() end,
      } do
        local kind, failure, r = fails({ method = method, once = true }, play)
        assert.equal("lost", kind)
        assert.is_true(failure.unsure)
        assert.equal(1, r:attempts())
      end
    end
  end)

  it("that hangs up within the head", function()
    support.open()
    for _, part in ipairs { "H", "HTTP/1.1", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
      "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200" } do
      local kind, failure = fails({}, function(c)
        c:request()
        c:send(part)
        c:close()
      end)
      assert.is_true(kind == "lost", part .. ": " .. kind .. ", " .. failure.message)
      assert.is_true(failure.unsure)
    end
  end)

  it("that breaks its word about the body", function()
    support.open()
    for _, answer in ipairs {
      "Content-Length: 10\r\n\r\n", "Content-Length: 10\r\n\r\nabc",
      "Transfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
      "Transfer-Encoding: chunked\r\n\r\n2\r\nab", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
      "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
      "Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
      "Transfer-Encoding: chunked\r\n\r\n-1\r\nab\r\n",
      "Transfer-Encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n",
      "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nab",
      "Content-Length: -1\r\n\r\n", "Content-Length: x\r\n\r\n",
      "Content-Length: 99999999999999999999999\r\n\r\n", "content-length:\r\n\r\n",
      "Content-Length: 1 2\r\n\r\nabc",
      "Transfer-Encoding: unheard-of\r\n\r\nabc",
      "Transfer-Encoding: deflate, chunked\r\n\r\nc\r\nabcabcabcabc\r\n0\r\n\r\n",
      "Transfer-Encoding: " .. ("gzip, "):rep(10) .. "chunked\r\n\r\n",
    } do
      for _, stream in ipairs { false, true } do
        local kind, failure, r = fails({ stream = stream }, function(c)
          c:request()
          c:send("HTTP/1.1 200 OK\r\n" .. answer)
          c:close()
        end)
        assert.is_true(kind == "protocol", answer .. ": " .. kind .. ", " .. failure.message)
        assert.is_true(failure.unsure)
        assert.is_nil(r:result())
      end
    end
  end)

  it("that says more than it announced: the rest is nobody's answer", function()
    local _, server = support.open()
    local r = support.get()
    local c = server:accept()
    c:request()
    c:send "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefHTTP/1.1 200 OK\r\n\r\n"
    local _, _, body = support.finish(r)
    assert.equal("abc", body)
    r = support.get()
    c = server:accept()
    c:request()
    c:answer "mine"
    _, _, body = support.finish(r)
    assert.equal("mine", body)
  end)

  it("that doesn't speak HTTP", function()
    support.open()
    for _, bytes in ipairs { "SSH-2.0-OpenSSH_9.2p1\r\n", ("\0"):rep(100), "\r\n\r\n\r\n",
      "<html>nginx</html>\n", ("x"):rep(200000), "HTTP/1.1 abc\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n",
      "HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\0\r\n\r\n", "HTTP/1.1 999999 OK\r\n\r\n",
      "HTTP/1.1\r\n\r\n", "HTTP/2 200\r\n\r\n" } do
      local r = support.get()
      local c = support.server:accept()
      c:request()
      posix.send(c.fd, bytes)
      c:close()
      local status, failure = support.finish(r)
      if status then
        assert.is_true(status >= 100 and status <= 999)
      else
        assert.is_true(failure.kind == "protocol" or failure.kind == "lost",
          failure.kind .. ": " .. failure.message)
        assert.is_true(failure.unsure)
      end
    end
  end)

  it("that sends headers without end", function()
    support.open()
    for _, line in ipairs { "X-More: and more\r\n", ("x"):rep(4096), "X: " .. ("y"):rep(3000) .. "\r\n",
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n" } do
      local r = support.get()
      local c = support.server:accept()
      c:request()
      c:send "HTTP/1.1 200 OK\r\n"
      local n = 0
      while r:state() ~= "done" do
        n = n + (posix.send(c.fd, line) or 0)
        support.poller:wait(0)
        support.poller:step({})
        assert.is_true(n < 2e6)
      end
      local kind, failure = support.failure(r)
      assert.is_true(kind == "protocol", line:sub(1, 20) .. kind .. failure.message)
      assert.is_true(failure.unsure)
      c:close()
    end
  end)

  it("that sends a body without end", function()
    support.open()
    local r = support.get { limit = 1e6 }
    local c = support.server:accept()
    c:request()
    c:send "HTTP/1.1 200 OK\r\n\r\n"
    local bytes = ("x"):rep(65536)
    while r:state() ~= "done" do
      posix.send(c.fd, bytes)
      support.poller:step({})
    end
    assert.equal("protocol", (support.failure(r)))
  end)

  it("that resets the connection", function()
    local _, server, p = support.open()
    local fd, port = posix.listen_tcp()
    posix.close(server.fd)
    server.fd = fd
    local engine = support.core.engine(p, { connections = 2, timeout = 5 })
    for answer, kind in pairs { [""] = "lost", ["HTTP/1.1 200 OK\r\n"] = "lost",
      ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"] = "protocol" } do
      local r = engine:submit { method = "POST", url = ("http://127.0.0.1:%d/"):format(port),
        body = "x", once = true }
      local c = server:accept()
      c:request()
      c:send(answer)
      p:wait(0.01)
      p:step({})
      posix.reset(c.fd)
      c.fd = nil
      local got, failure = support.failure(r)
      assert.equal(kind, got)
      assert.is_true(failure.unsure)
    end
  end)

  it("survives noise", function()
    support.open { timeout = 1 }
    math.randomseed(3)
    local parts = { "HTTP/1.1 200 OK\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n",
      "\r\n", "\n", "5\r\nabcde\r\n", "0\r\n\r\n", "abcde", "\0", "HTTP/1.1 100 C\r\n\r\n",
      "Connection: close\r\n", "Content-Length: 7\r\n", "Content-Encoding: gzip\r\n", ": \r\n",
      " folded\r\n", "HTTP/1.0 204 N\r\n\r\n", "Upgrade: h2c\r\n", "HTTP/1.1 101 S\r\n" }
    for _ = 1, 300 do
      local r = support.get { stream = math.random(2) == 1, method = "POST", body = "x" }
      local c = support.server:accept()
      c:request()
      local bytes = {}
      for i = 1, math.random(0, 8) do
        bytes[i] = parts[math.random(#parts)]
      end
      for _, part in ipairs(bytes) do
        posix.send(c.fd, part)
        if math.random(3) == 1 then support.poller:step({}) end
      end
      c:close()
      local status, failure = support.finish(r)
      assert.is_true(status ~= nil or failure.kind == "lost" or failure.kind == "protocol",
        not status and failure.kind .. ": " .. failure.message .. ": " .. table.concat(bytes))
      support.engine:close()
      support.engine = support.new_engine { timeout = 1 }
      r:close()
    end
  end)
end)

describe("no connection", function()
  before_each(support.begin)
  after_each(support.finally)

  local function try(path)
    support.engine:close()
    support.engine = support.new_engine { unix = path }
    local r = support.get { method = "POST", body = "x", once = true }
    local kind, failure = support.failure(r)
    assert.equal("connect", kind)
    assert.is_false(failure.unsure)
    assert.equal(0, r:attempts())
    assert.equal(0, support.engine:connects())
    return failure.message, failure.errno
  end

  it("comes about where there is no socket, no listener, no right or no short enough path", function()
    local _, server = support.open()
    local message, errno = try(support.directory .. "/nothing")
    assert.equal(support.directory .. "/nothing: No such file or directory", message)
    assert.equal(2, errno)
    message, errno = try(support.file("plain", ""))
    assert.matches("Connection refused", message)
    assert.equal(111, errno)
    message, errno = try(support.file("plain", "") .. "/x")
    assert.matches("Not a directory", message)
    assert.equal(20, errno)
    assert.matches("too long", try(support.directory .. ("/long"):rep(50)))
    assert.matches("%?", (try(support.directory .. "/line\nbreak")))
    posix.close(server.fd)
    message, errno = try(support.path)
    assert.matches("Connection refused", message)
    assert.equal(111, errno)
    server.fd = posix.listen(support.path .. "2")
  end)

  it("comes about without the permission", function()
    if posix.getuid() ~= 0 then
      pending("needs root to become somebody else")
      return
    end
    support.open()
    posix.chmod(support.directory, 0x1ed) -- 0755
    posix.chmod(support.path, 0x180) -- 0600
    local pid = support.fork(function()
      posix.as_user(65534)
      local kind, failure = support.failure(support.get())
      assert(kind == "connect" and failure.errno == 13)
      assert(failure.message == support.path .. ": Permission denied")
    end)
    assert.equal(0, posix.waitpid(pid))
  end)

  it("comes about while the listener's backlog is full", function()
    local _, server = support.open { backlog = 0, connections = 8 }
    local held = { support.get() }
    local r = support.get { method = "POST", body = "x", once = true }
    local kind, failure = support.failure(r)
    assert.equal("connect", kind)
    assert.is_false(failure.unsure)
    assert.matches("temporarily unavailable", failure.message)
    local c = server:accept()
    c:request()
    c:answer "x"
    assert.equal(200, (support.finish(held[1])))
  end)

  it("comes about to a closed port or an unknown host", function()
    local _, _, p = support.open()
    local fd, port = posix.listen_tcp()
    posix.close(fd)
    local engine = support.core.engine(p, { connections = 1, timeout = 5 })
    local kind, failure = support.failure(engine:submit { method = "GET",
      url = ("http://127.0.0.1:%d/"):format(port) })
    assert.equal("connect", kind)
    assert.equal(111, failure.errno)
    assert.matches("Connection refused", failure.message)
  end)

  it("comes about when no descriptor is left; later it does", function()
    local engine, server = support.open()
    support.finish(support.get { url = "ftp://lxd/" }) -- libcurl's own descriptors are there
    local _, open = posix.descriptors()
    local limit = posix.limit_files(#open + 1) -- the lowest that is free
    local r = support.get()
    posix.limit_files(limit)
    local kind, failure = support.failure(r)
    assert.equal("connect", kind)
    assert.matches("Too many open files", failure.message)
    assert.equal(24, failure.errno)
    r = engine:submit { method = "GET", url = "http://lxd/" }
    local c = server:accept()
    c:request()
    c:answer "x"
    assert.equal(200, (support.finish(r)))
  end)
end)
