-- One exchange: bodies in and out, back-pressure both ways, cancelling, what can be asked when.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

local MIB = 1024 * 1024

describe("request", function()
  before_each(support.begin)
  after_each(support.finally)

  local function start(fields)
    local _, server, p = support.open()
    local r = support.get(fields)
    return r, server:accept(), p
  end

  it("gives status, headers and body", function()
    local r, c = start()
    assert.is_nil(r:head())
    assert.is_nil(r:result())
    assert.equal("active", r:state())
    c:request()
    c:send("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nETag:  x\r\n"
      .. "Content-Length: 4\r\n\r\n\0\255{}")
    local status, headers, body = support.finish(r)
    assert.equal(201, status)
    assert.equal("Content-Type: application/json\r\nETag:  x\r\nContent-Length: 4\r\n", headers)
    assert.equal("\0\255{}", body)
    assert.same({ 201, headers }, { r:head() })
    -- Asked again, it says the same.
    assert.same({ 201, headers, body }, { r:result() })
    assert.same({ 0, 0, 4, 4 }, { r:progress() })
  end)

  it("takes the final head alone", function()
    local r, c = start()
    c:request()
    c:send "HTTP/1.1 100 Continue\r\nX-A: 1\r\n\r\n"
    posix.sleep(0.002)
    support.poller:step({})
    assert.is_nil(r:head())
    c:send "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    c:send "HTTP/1.1 200 OK\r\nX-B: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    c:send "3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Trailer: 3\r\n\r\n"
    local status, headers, body = support.finish(r)
    assert.equal(200, status)
    assert.equal("X-B: 2\r\nTransfer-Encoding: chunked\r\n", headers)
    assert.equal("abcde", body)
  end)

  it("reads answers without a body, and to the end of the connection", function()
    local _, server = support.open()
    for _, case in ipairs {
      { "HTTP/1.1 204 No Content\r\n\r\n", 204, "" },
      { "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, "" },
      { "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "" },
      { "HTTP/1.0 200 OK\r\n\r\nto the end", 200, "to the end" },
      { "HTTP/1.1 500 \r\nConnection: close\r\n\r\nto the end", 500, "to the end" },
      { "HTTP/1.1 404\nContent-Length: 2\n\nno", 404, "no" },
    } do
      local r = support.get()
      local c = server:accept()
      c:request()
      c:send(case[1])
      c:close()
      local status, _, body = support.finish(r)
      assert.equal(case[2], status)
      assert.equal(case[3], body)
    end
  end)

  it("knows that HEAD has no body", function()
    local r, c = start { method = "HEAD", limit = 5 }
    assert.matches("^HEAD ", (c:request()))
    c:send "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    local status, _, body = support.finish(r)
    assert.equal(200, status)
    assert.equal("", body)
  end)

  it("follows no redirection and sends no password", function()
    local r, c = start()
    c:request()
    c:send "HTTP/1.1 301 Moved\r\nLocation: http://lxd/2\r\nContent-Length: 0\r\n\r\n"
    assert.equal(301, (support.finish(r)))
    assert.equal(1, r:attempts())
    r = support.get()
    c:request()
    c:send "HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    assert.equal(401, (support.finish(r)))
    assert.equal(1, r:attempts())
    r = support.get { method = "POST", body = "x" }
    c:request()
    c:send "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"
    assert.equal(417, (support.finish(r)))
    assert.equal(1, r:attempts())
  end)

  it("doesn't take a compressed body apart", function()
    local r, c = start()
    c:request()
    c:send "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    local _, _, body = support.finish(r)
    assert.equal("abc", body)
  end)

  it("keeps no more of a body than its limit", function()
    local r, c = start { limit = 1000 }
    c:request()
    c:answer(("x"):rep(1000))
    assert.equal(200, (support.finish(r)))
    r = support.get { limit = 1000 }
    c:request()
    c:send "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" -- fails before the first byte
    local kind, failure = support.failure(r)
    assert.equal("protocol", kind)
    assert.is_true(failure.unsure)
    c:wait_end()
    r = support.get { limit = 1000 }
    c = support.server:accept()
    c:request()
    c:send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" .. ("x"):rep(1001))
    kind, failure = support.failure(r)
    assert.equal("protocol", kind)
    assert.equal("the body of the answer is longer than 1000 bytes", failure.message)
    r = support.get { limit = 0 }
    c = support.server:accept()
    c:request()
    c:answer "x"
    assert.equal("protocol", (support.failure(r)))
  end)

  describe("with a stream", function()
    it("gives the head, then what is there, then the end", function()
      local r, c, p = start { stream = true }
      assert.equal("", r:read())
      c:request()
      c:send "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 6\r\n\r\n"
      support.until_(function() return r:head() end)
      assert.same({ 200, "X: y\r\nContent-Length: 6\r\n" }, { r:head() })
      assert.equal("", r:read())
      assert.is_nil(r:result())
      c:send "abc"
      assert.equal("abc", support.until_(function()
        local bytes = r:read()
        return bytes ~= "" and bytes
      end))
      c:send "def"
      p:wait(1)
      p:step({})
      assert.equal("done", r:state())
      assert.same({ 200, "X: y\r\nContent-Length: 6\r\n" }, { r:result() })
      assert.equal("def", r:read())
      assert.is_nil(r:read())
      assert.is_nil(r:read())
      assert.same({ 0, 0, 6, 6 }, { r:progress() })
    end)

    it("gives what came before a failure", function()
      local r, c = start { stream = true }
      c:request()
      c:send "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
      c:close()
      assert.equal("protocol", (support.failure(r)))
      assert.equal("abc", r:read())
      assert.is_nil(r:read())
    end)

    it("lets the peer wait while nobody reads, without a time-out", function()
      local _, server, p = support.open { timeout = 0.05 }
      local r = support.get { stream = true }
      local c = server:accept()
      c:request()
      local total = 8 * MIB
      c:send(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"):format(total))
      local chunk, sent = ("0123456789abcdef"):rep(4096), 0
      local function push()
        while sent < total do
          local n = posix.send(c.fd, chunk:sub(sent % #chunk + 1))
          if not n then
            return
          end
          sent = sent + n
        end
      end
      local deadline = core.now() + 0.2
      while core.now() < deadline do
        push()
        p:wait(0.01)
        p:step({})
      end
      assert.equal("active", r:state())
      assert.is_true(sent < 2 * MIB, "sent " .. sent) -- the rest waits in the server
      local _, _, received = r:progress()
      assert.is_true(received <= 512 * 1024)
      local got = {}
      while true do
        local bytes = r:read()
        if not bytes then break end
        got[#got + 1] = bytes
        push()
        p:wait(0.01)
        p:step({})
      end
      assert.equal(200, (r:result()))
      got = table.concat(got)
      assert.equal(total, #got)
      assert.equal(core.sha256(chunk:rep(total / #chunk)), core.sha256(got))
    end)

    it("times out when nothing comes while somebody waits", function()
      local _, server = support.open { timeout = 0.05 }
      local r = support.get { stream = true }
      local c = server:accept()
      c:request()
      c:send "HTTP/1.1 200 OK\r\n\r\nabc"
      local kind, failure = support.failure(r)
      assert.equal("timeout", kind)
      assert.equal("no progress for 0.05 s", failure.message)
      assert.equal("abc", r:read())
    end)

    it("is no way to read what is kept in memory", function()
      local r = start()
      assert.has_error(function() r:read() end, "this request is no stream")
    end)
  end)

  describe("with a body that is written", function()
    it("sends pieces as they come, chunked where the length isn't known", function()
      local r, c = start { method = "POST", body = true }
      assert.equal(3, r:write "abc")
      assert.equal(2, r:write("xyz", 2))
      assert.equal(0, r:write("xyz", 4))
      assert.equal(0, r:write "")
      r:finish()
      r:finish()
      assert.has_error(function() r:write "x" end)
      local head, body = c:request()
      assert.matches("Transfer%-Encoding: chunked\r\n", head)
      assert.is_nil(head:find("Content-Length", 1, true))
      assert.equal("abcyz", body)
      c:answer ""
      assert.equal(200, (support.finish(r)))
      assert.equal(0, r:write "late")
      assert.same({ 5, -1, 0, 0 }, { r:progress() })
    end)

    it("announces a length that is known, and keeps to it", function()
      local r, c = start { method = "PUT", body = true, length = 6 }
      assert.equal(3, r:write "abc")
      assert.has_error(function() r:write "defg" end, "more bytes than the length of the body")
      assert.equal(3, r:write "def")
      r:finish()
      local head, body = c:request()
      assert.matches("Content%-Length: 6\r\n", head)
      assert.equal("abcdef", body)
      c:answer ""
      assert.equal(200, (support.finish(r)))
      r = support.get { method = "PUT", body = true, length = 6 }
      r:write "abc"
      r:finish()
      local kind, failure = support.failure(r)
      assert.equal("failed", kind)
      assert.is_true(failure.unsure)
      assert.matches("ended before its length", failure.message)
    end)

    it("may be empty", function()
      local r, c = start { method = "PUT", body = true, length = 0 }
      r:finish()
      local head = c:request()
      assert.matches("Content%-Length: 0\r\n", head)
      c:answer ""
      assert.equal(200, (support.finish(r)))
      r = support.get { method = "PUT", body = true }
      r:finish()
      local _, body = c:request()
      assert.equal("", body)
      c:answer ""
      assert.equal(200, (support.finish(r)))
    end)

    it("takes what there is room for, and has news when there is room again", function()
      local r, c, p = start { method = "PUT", body = true }
      local chunk = ("0123456789abcdef"):rep(4096)
      local written, refused = 0, false
      for _ = 1, 100 do
        local n = r:write(chunk)
        written = written + n
        p:step({})
        if n < #chunk then
          refused = true
          break
        end
      end
      assert.is_true(refused)
      assert.is_true(written < 2 * MIB)
      for _ = 1, 20 do -- no news while the server doesn't read
        assert.equal(0, p:step({}))
        p:wait(0)
      end
      repeat
        local bytes = posix.recv(c.fd)
      until not bytes
      local news = {}
      support.until_(function()
        return p:step(news) > 0
      end)
      assert.equal(r:id(), news[1])
      assert.is_true(r:write(chunk) > 0)
    end)

    it("doesn't time out while nobody writes, but does while the server doesn't read", function()
      local _, server, p = support.open { timeout = 0.05 }
      local r = support.get { method = "PUT", body = true }
      server:accept()
      r:write "abc"
      local deadline = core.now() + 0.15
      while core.now() < deadline do
        p:wait(0.02)
        p:step({})
      end
      assert.equal("active", r:state())
      while r:write(("x"):rep(65536)) > 0 do
        p:step({})
      end
      local kind, failure = support.failure(r)
      assert.equal("timeout", kind)
      assert.is_true(failure.unsure)
    end)

    it("can be written while the request is in line", function()
      local _, server = support.open { connections = 1 }
      local first = support.get()
      local second = support.get { method = "PUT", body = true }
      assert.equal(5, second:write "early")
      second:finish()
      local c = server:accept()
      c:request()
      c:answer ""
      support.finish(first)
      local _, body = c:request()
      assert.equal("early", body)
      c:answer ""
      assert.equal(200, (support.finish(second)))
    end)

    it("stops when the server answers before it has read all", function()
      local r, c, p = start { method = "PUT", body = true }
      while r:write(("x"):rep(65536)) > 0 do
        p:step({})
      end
      c:send "HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\nno"
      local status, _, body = support.finish(r)
      assert.equal(413, status)
      assert.equal("no", body)
    end)

    it("echoes through both directions at once", function()
      local r, c, p = start { method = "PUT", body = true, stream = true }
      local total, written, read = 4 * MIB, 0, 0
      c:head()
      c:send(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"):format(total))
      local chunk, answered = ("x"):rep(65536), 0
      support.until_(function()
        if written < total then
          written = written + r:write(chunk:sub(1, total - written))
          if written == total then r:finish() end
        end
        posix.recv(c.fd)
        posix.recv(c.fd)
        if answered < total then
          answered = answered + (posix.send(c.fd, chunk:sub(1, total - answered)) or 0)
        end
        p:step({})
        local bytes = r:read()
        read = read + #(bytes or "")
        return not bytes
      end)
      assert.equal(total, written)
      assert.equal(total, read)
    end)

    it("belongs to the request that has it", function()
      local r = start { method = "PUT", body = "x" }
      assert.has_error(function() r:write "x" end)
      assert.has_error(function() r:finish() end)
      local live = support.get { method = "PUT", body = true }
      assert.has_error(function() live:write() end)
      assert.has_error(function() live:write("abc", 0) end)
      assert.has_error(function() live:write("abc", 5) end)
      assert.has_error(function() live:write("abc", 0 / 0) end)
    end)
  end)

  describe("with pieces and files", function()
    it("sends them one after the other, with their length and hash", function()
      local a = support.file("a", ("a"):rep(100000))
      local b = support.file("b", "")
      local r, c = start { method = "POST", hash = true, once = true,
        body = { "head\r\n", { path = a }, "", "between", { path = b }, "\r\ntail" } }
      assert.is_nil(r:hash())
      local head, body = c:request()
      assert.matches("Content%-Length: 100019\r\n", head)
      assert.equal("head\r\n" .. ("a"):rep(100000) .. "between\r\ntail", body)
      c:answer ""
      assert.equal(200, (support.finish(r)))
      assert.equal(core.sha256(("a"):rep(100000)), r:hash())
      assert.equal(r:hash(), r:hash())
      assert.same({ 100019, 100019, 0, 0 }, { r:progress() })
    end)

    it("knows the hash of nothing", function()
      local b = support.file("b", "")
      local r, c = start { method = "POST", hash = true, body = { { path = b } } }
      c:request()
      c:answer ""
      support.finish(r)
      assert.equal(core.sha256(""), r:hash())
      r = support.get { method = "POST", body = {} }
      assert.matches("Content%-Length: 0\r\n", (c:request()))
      c:answer ""
      support.finish(r)
      assert.is_nil(r:hash())
    end)

    it("sends a file as it was long when it was opened", function()
      local a = support.file("a", ("a"):rep(MIB))
      local r, c = start { method = "PUT", body = { { path = a } } }
      local f = io.open(a, "ab")
      f:write "more"
      f:close()
      local _, body = c:request()
      assert.equal(MIB, #body)
      c:answer ""
      assert.equal(200, (support.finish(r)))
    end)

    it("fails when the file becomes shorter under way", function()
      local a = support.file("a", ("a"):rep(4 * MIB))
      local r, c = start { method = "PUT", body = { { path = a } }, hash = true }
      posix.truncate(a, MIB)
      c:head()
      local seen = 0
      support.until_(function()
        seen = seen + #(posix.recv(c.fd) or "")
        return r:state() == "done"
      end)
      assert.is_true(seen > 0)
      local kind, failure = support.failure(r)
      assert.equal("file", kind)
      assert.is_true(failure.unsure)
      assert.equal(a .. ": became shorter while it was sent", failure.message)
      assert.is_nil(failure.errno)
      assert.is_nil(r:hash())
    end)

    it("has no file open while it stands in line, and reads it as it is then", function()
      local a = support.file("a", "bytes")
      local _, c = start {}
      c:request()
      for _ = 1, 3 do
        support.get()
        support.server:accept():request()
      end
      local before = posix.descriptors()
      local waiting = {}
      for i = 1, 100 do
        waiting[i] = support.get { method = "PUT", body = { { path = a } }, hash = true }
        assert.equal("queued", waiting[i]:state())
        assert.same({ 0, 5, 0, -1 }, { waiting[i]:progress() })
      end
      local missing = support.get { method = "PUT", body = { { path = a .. "b" } } }
      assert.equal("done", missing:state())
      assert.equal(before, (posix.descriptors()))
      support.file("a", "other bytes")
      c:answer ""
      local head, body = c:request()
      assert.matches("Content%-Length: 11\r\n", head)
      assert.equal("other bytes", body)
      os.remove(a)
      c:answer ""
      assert.equal(200, (support.finish(waiting[1])))
      assert.equal(core.sha256 "other bytes", waiting[1]:hash())
      for i = 2, 100 do
        local kind, failure = support.failure(waiting[i])
        assert.equal("file", kind)
        assert.equal(2, failure.errno)
        assert.is_false(failure.unsure)
      end
    end)

    it("ends at once when a file can't be read", function()
      local engine = support.open()
      local fifo = support.directory .. "/fifo"
      posix.mkfifo(fifo)
      for _, case in ipairs {
        { support.directory .. "/nothing", "No such file or directory", 2 },
        { support.directory, "Is a directory", 21 },
        { fifo, "not a plain file" }, { "/dev/zero", "not a plain file" }, { "", "No such file", 2 },
        { support.directory .. "/line\nbreak", "No such file or directory", 2 },
        { ("/long"):rep(1000), "%?*", 36 },
      } do
        local r = support.get { method = "PUT", body = { "x", { path = case[1] } } }
        assert.equal("done", r:state())
        local status, failure = r:result()
        assert.is_nil(status)
        assert.equal("file", failure.kind)
        assert.matches(case[2], failure.message)
        assert.is_nil(failure.message:find("\n", 1, true))
        assert.equal(case[3], failure.errno)
        assert.is_false(failure.unsure)
        assert.equal(0, r:attempts())
        local news = {}
        assert.equal(1, support.poller:step(news))
        assert.equal(r:id(), news[1])
      end
      assert.equal(0, engine:connects())
    end)
  end)

  it("doesn't let memory grow with the body, either way", function()
    local _, server, p = support.open()
    local size = 100 * MIB
    local pid = support.fork(function()
      support.poller = nil
      local c = server:accept()
      c:head()
      local left = size - #c.buffer
      local chunk = ("x"):rep(65536)
      while left > 0 do
        local bytes = posix.recv(c.fd)
        left = left - #(bytes or "")
        if not bytes then posix.sleep(0.0005) end
      end
      c:send(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"):format(size))
      for _ = 1, size / #chunk do
        c:send(chunk)
      end
    end)
    local path = support.directory .. "/sparse"
    support.file("sparse", "")
    posix.truncate(path, size)
    support.collect()
    local before, most = support.memory(), 0
    local r = support.get { method = "PUT", stream = true, body = { { path = path } } }
    local got, turns = 0, 0
    while true do
      local bytes = r:read()
      if not bytes then break end
      got = got + #bytes
      turns = turns + 1
      if turns % 64 == 0 then
        collectgarbage()
        most = math.max(most, support.memory() - before)
      end
      p:wait(1)
      p:step({})
    end
    assert.equal(200, (r:result()))
    assert.equal(size, got)
    assert.is_true(most < 8 * MIB, "grew by " .. most)
    assert.equal(0, posix.waitpid(pid))
  end)

  describe("cancelled", function()
    local function check(r, unsure)
      r:cancel()
      r:cancel()
      assert.equal("done", r:state())
      local status, failure = r:result()
      assert.is_nil(status)
      assert.same({ kind = "cancelled", message = "cancelled", unsure = unsure }, failure)
    end

    it("in line", function()
      local _, server = support.open { connections = 1 }
      local first, second = support.get(), support.get()
      check(second, false)
      local c = server:accept()
      c:request()
      c:answer ""
      assert.equal(200, (support.finish(first)))
    end)

    it("before the server accepts", function()
      support.open()
      check(support.get(), true)
    end)

    it("while the body goes out", function()
      local r, c = start { method = "PUT", body = ("x"):rep(4 * MIB) }
      c:head()
      check(r, true)
      c:wait_end()
    end)

    it("while nobody writes or reads", function()
      local r, c, p = start { method = "PUT", body = true, stream = true }
      c:head()
      check(r, true)
      r = support.get { stream = true }
      c = support.server:accept()
      c:request()
      c:send "HTTP/1.1 200 OK\r\n\r\n"
      for _ = 1, 40 do
        posix.send(c.fd, ("x"):rep(65536))
        p:step({})
      end
      check(r, true)
      assert.is_true(#r:read() > 65536)
      assert.is_nil(r:read())
    end)

    it("within the head and within the body of the answer", function()
      local r, c, p = start()
      c:request()
      c:send "HTTP/1.1 200 OK\r\nContent-"
      p:wait(1)
      p:step({})
      check(r, true)
      c:wait_end()
      r = support.get()
      c = support.server:accept()
      c:request()
      c:send "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
      p:wait(1)
      p:step({})
      assert.equal(200, (r:head()))
      check(r, true)
      c:wait_end()
    end)

    it("after the end, where it changes nothing", function()
      local r, c = start()
      c:request()
      c:answer "x"
      support.finish(r)
      r:cancel()
      assert.equal(200, (r:result()))
    end)
  end)

  it("frees everything when it is closed, and says so when it is used then", function()
    local r, c = start { stream = true }
    c:request()
    r:close()
    r:close()
    c:wait_end()
    for _, method in ipairs { "id", "state", "head", "result", "read", "write", "finish", "progress",
      "hash", "attempts", "cancel" } do
      assert.has_error(function() r[method](r, "x") end, "attempt to use a closed request")
    end
    assert.equal("lualxd.request (closed)", tostring(r))
    assert.matches("^lualxd.request %d+$", tostring(support.get()))
  end)

  describe("without progress", function()
    it("ends as a time-out at every stage", function()
      local _, server = support.open { timeout = 0.04, connections = 8 }
      local stages = {
        function() end, -- nobody accepts
        function(c) c:request() end,
        function(c) c:request() c:send "HTT" end,
        function(c) c:request() c:send "HTTP/1.1 200 OK\r\nX:" end,
        function(c) c:request() c:send "HTTP/1.1 100 Continue\r\n\r\n" end,
        function(c) c:request() c:send "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" end,
        function(c) c:request() c:send "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc" end,
        function(c) c:request() c:send "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na" end,
      }
      for _, stage in ipairs(stages) do
        local t = core.now()
        local r = support.get()
        stage(server:accept())
        local kind, failure = support.failure(r)
        assert.equal("timeout", kind)
        assert.is_true(failure.unsure)
        assert.is_true(core.now() - t < 9)
      end
    end)

    it("goes on as long as a byte comes now and then", function()
      local _, server, p = support.open { timeout = 0.06 }
      local r = support.get()
      local c = server:accept()
      c:request()
      for byte in ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow"):gmatch "." do
        posix.sleep(0.005)
        c:send(byte)
        p:step({})
      end
      local _, _, body = support.finish(r)
      assert.equal("slow", body)
    end)

    it("counts no time in line", function()
      local _, server, p = support.open { timeout = 0.06, connections = 1 }
      local first = support.get { timeout = 0 }
      local second = support.get()
      local c = server:accept()
      c:request()
      local deadline = core.now() + 0.1
      while core.now() < deadline do
        p:wait(0.02)
        p:step({})
      end
      assert.equal("active", first:state())
      assert.equal("queued", second:state())
      c:answer ""
      support.finish(first)
      c:request()
      c:answer ""
      assert.equal(200, (support.finish(second)))
    end)
  end)
end)
