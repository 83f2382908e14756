-- A request that becomes a WebSocket: the handshake, messages both ways, and every way that it ends.
local support = require "spec.core.support"
local posix = support.posix

local GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

local function accept_of(key)
  local pipe = io.popen("printf %s " .. key .. GUID .. " | openssl dgst -sha1 -binary | base64")
  local text = pipe:read "*l"
  pipe:close()
  return text
end

local function frame(opcode, payload, options)
  options = options or {}
  local first = (options.more and 0 or 128) + (options.rsv or 0) + opcode
  local length
  if #payload < 126 then
    length = string.char((options.masked and 128 or 0) + #payload)
  elseif #payload < 65536 then
    length = string.char(126, math.floor(#payload / 256), #payload % 256)
  else
    length = "\127\0\0\0\0" .. string.char(math.floor(#payload / 2 ^ 24), math.floor(#payload / 65536) % 256,
      math.floor(#payload / 256) % 256, #payload % 256)
  end
  return string.char(first) .. length .. (options.masked and "\0\0\0\0" or "") .. payload
end

local TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

-- Takes a frame of the client: opcode, payload without its mask, the mask.
local function take(c)
  local first, second = c:bytes(2):byte(1, 2)
  assert(second >= 128, "not masked")
  local n = second - 128
  if n == 126 then
    local high, low = c:bytes(2):byte(1, 2)
    n = high * 256 + low
  elseif n == 127 then
    local b = { c:bytes(8):byte(1, 8) }
    n = ((b[5] * 256 + b[6]) * 256 + b[7]) * 256 + b[8]
  end
  local mask, payload = c:bytes(4), c:bytes(n)
  local m, out = { mask:byte(1, 4) }, {}
  for at = 1, math.min(n, 200) do -- the beginning tells
    local byte, key, value = payload:byte(at), m[(at - 1) % 4 + 1], 0
    for bit = 0, 7 do
      local power = 2 ^ bit
      if math.floor(byte / power) % 2 ~= math.floor(key / power) % 2 then
        value = value + power
      end
    end
    out[at] = string.char(value)
  end
  return first % 16, table.concat(out), mask, n
end

describe("a WebSocket", function()
  before_each(support.begin)
  after_each(support.finally)

  -- A new one, with the server and the engine of this test.
  local function begin(fields)
    if not support.server then
      support.open(fields)
    end
    fields = fields or {}
    local host = fields.tcp and "127.0.0.1:" .. support.server.port or "lxd"
    local r = support.get { upgrade = true, silence = fields.silence, timeout = fields.timeout,
      url = "http://" .. host .. "/1.0/events?type=x" }
    return r, support.server:accept()
  end

  -- Another poller and engine; the server stays.
  local function renew()
    support.poller:close()
    support.poller = assert(support.core.poller())
    support.engine = support.new_engine()
  end

  local function greet(c)
    local head = c:head()
    c:send("HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade\r\n"
      .. "Sec-WebSocket-Accept: " .. accept_of(head:match "Sec%-WebSocket%-Key: (%S+)") .. "\r\n\r\n")
    return head
  end

  local function open(fields)
    local r, c = begin(fields)
    local head = greet(c)
    support.until_(function()
      return r:is_open()
    end)
    return r, c, head
  end

  local function receive(r)
    local bytes, kind, final
    support.until_(function()
      bytes, kind, final = r:receive()
      return bytes
    end)
    return bytes, kind, final
  end

  -- A whole message.
  local function message(r)
    local pieces = {}
    while true do
      local bytes, kind, final = receive(r)
      pieces[#pieces + 1] = bytes
      if final then
        return table.concat(pieces), kind
      end
    end
  end

  it("asks as RFC 6455 has it, with a fresh key", function()
    local _, c, head = open()
    assert.equal("GET /1.0/events?type=x HTTP/1.1", head:match "^[^\r]+")
    for _, line in ipairs { "Host: lxd", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13" } do
      assert(head:find("\r\n" .. line .. "\r\n", 1, true), line)
    end
    assert.is_nil(head:find "Origin")
    c:close()
    local r = support.get { upgrade = true, headers = { "X-Mine: 1" } }
    local again = support.server:accept():head()
    assert.matches("\r\nX%-Mine: 1\r\n", again)
    assert.are_not.equal(head:match "Key: (%S+)", again:match "Key: (%S+)")
    r:close()
  end)

  it("carries messages of any size both ways", function()
    local r, c = open()
    for _, n in ipairs { 0, 1, 125, 126, 65535, 65536, 1000000 } do
      local text = ("0123456789abcdef"):rep(math.ceil(n / 16)):sub(1, n)
      support.until_(function()
        return r:send(text, "text")
      end)
      local opcode, begins, _, length = take(c)
      assert.equal(TEXT, opcode)
      assert.equal(n, length)
      assert.equal(text:sub(1, 200), begins)
      local sent, pieces, bytes, kind, final = frame(BINARY, text), {}, nil, nil, nil
      support.until_(function()
        sent = sent:sub(1 + (#sent > 0 and support.posix.send(c.fd, sent) or 0))
        bytes, kind, final = r:receive()
        pieces[#pieces + 1] = bytes
        return final
      end)
      assert.equal(text, table.concat(pieces))
      assert.equal("binary", kind)
    end
  end)

  it("tells text from binary, and where a message ends", function()
    local r, c = open()
    c:send(frame(TEXT, "ab", { more = true }) .. frame(PING, "p") .. frame(0, "cd") .. frame(BINARY, ""))
    local bytes, kind = message(r)
    assert.equal("abcd", bytes)
    assert.equal("text", kind)
    bytes, kind = message(r)
    assert.equal("", bytes)
    assert.equal("binary", kind)
    local opcode, payload = take(c)
    assert.equal(PONG, opcode)
    assert.equal("p", payload)
  end)

  it("gives the beginning of a message before its end has come", function()
    local r, c = open()
    c:send(frame(TEXT, "begin", { more = true }))
    local bytes, kind, final = receive(r)
    assert.equal("begin", bytes)
    assert.equal("text", kind)
    assert.is_false(final)
    assert.is_nil(r:receive())
    c:send(frame(0, "end"))
    bytes, kind, final = receive(r)
    assert.equal("end", bytes)
    assert.equal("text", kind)
    assert.is_true(final)
  end)

  it("takes what comes with the handshake's answer", function()
    local r, c = begin()
    local key = c:head():match "Sec%-WebSocket%-Key: (%S+)"
    c:send("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " .. accept_of(key)
      .. "\r\n\r\n" .. frame(TEXT, "at once"))
    c:close()
    assert.equal("at once", (message(r)))
    assert.equal(101, (support.finish(r)))
  end)

  it("masks each frame anew", function()
    local r, c = open()
    r:send "x"
    r:send "x"
    local _, _, one = take(c)
    local _, _, two = take(c)
    assert.are_not.equal(one, two)
  end)

  it("answers pings while nobody reads its messages", function()
    local r, c = open()
    c:send(frame(TEXT, "unread") .. frame(PING, "still there?"))
    assert.equal(PONG, (take(c)))
    assert.equal("unread", (message(r)))
  end)

  it("says that it sends no more, hears the rest, and ends when the peer has said so, too", function()
    local r, c = open()
    assert.is_true(r:send("last", "text"))
    assert.is_true(r:send("", "close"))
    assert.is_nil(r:send("more", "text"))
    assert.is_nil(r:send("", "close"))
    local opcode, payload = take(c)
    assert.same({ TEXT, "last" }, { opcode, payload })
    opcode, payload = take(c)
    assert.same({ CLOSE, "\3\232" }, { opcode, payload })
    c:send(frame(TEXT, "rest"))
    assert.equal("rest", (message(r)))
    assert.equal("active", r:state())
    c:send(frame(CLOSE, "\3\232"))
    assert.equal(101, (support.finish(r)))
  end)

  it("that only listens answers pings when nothing has come for a while", function()
    local r, c = open { silence = 1 }
    local before = support.core.now()
    c:send(frame(PING, "still there?"))
    assert.equal(PONG, (take(c)))
    assert.is_true(support.core.now() - before >= 1)
    c:send(frame(PING, "1") .. frame(PING, "2"))
    assert.equal(PONG, (take(c)))
    assert.equal(PONG, (take(c)))
    c:send(frame(PING, "3") .. frame(TEXT, "last") .. frame(CLOSE, "\3\232"))
    support.finish(r)
    assert.equal("last", (r:receive()))
  end)

  -- TCP drops what a closed socket still had to send as soon as anything comes for it.
  for _, silence in ipairs { 1, math.huge } do
    it("that only listens hears all that was said before the peer closed, over TCP: " .. silence, function()
      local r, c = open { silence = silence, tcp = true }
      c:send(frame(PING, "keepalive"))
      local piece, sent = ("x"):rep(65536), 0
      c:send "\130\127\0\0\0\0\127\0\0\0" -- a message longer than what will come of it
      repeat
        local n = posix.send(c.fd, piece)
        sent = sent + (n or 0)
      until not n
      assert.is_true(sent > 500000)
      c:close()
      local got = 0
      support.until_(function()
        local bytes = r:receive()
        got = got + (bytes and #bytes or 0)
        return not bytes and r:state() == "done"
      end)
      assert.equal(sent, got)
    end)
  end

  it("may answer no pings at all", function()
    local r, c = open { silence = math.huge }
    c:send(frame(PING, "1"))
    local deadline = support.core.now() + 1.5
    support.until_(function()
      return support.core.now() > deadline
    end)
    assert.equal("", c:peek())
    assert.is_true(r:is_open())
  end)

  it("tells whether anything was said yet, be it a ping", function()
    local r, c = open()
    local news = {}
    support.poller:step(news)
    assert.is_false(r:heard())
    c:send(frame(PING, "keepalive"))
    support.until_(function()
      for index = 1, support.poller:step(news) do
        if news[index] == r:id() then
          return true
        end
      end
    end)
    assert.is_true(r:heard())
    assert.is_nil(r:receive())
  end)

  it("ends when the peer closes, with a closing frame or without; what has come is there to be read", function()
    local r, c = open()
    c:send(frame(TEXT, "last") .. frame(CLOSE, "\3\232"))
    assert.equal(CLOSE, (take(c)))
    assert.equal(101, (support.finish(r)))
    assert.equal("last", (r:receive()))
    assert.is_nil(r:receive())
    assert.is_nil(r:send "x")
    assert.is_false(r:is_open())
    r, c = open()
    c:send(frame(TEXT, "last"))
    c:close()
    assert.equal(101, (support.finish(r)))
    assert.equal("last", (r:receive()))
  end)

  it("is refused by an answer that is none of it: that is the answer", function()
    local r, c = begin()
    c:head()
    c:answer('{"error":"Operation not found"}', "404 Not Found")
    local status, head, body = support.finish(r)
    assert.equal(404, status)
    assert.matches("Content%-Length: 31", head)
    assert.equal('{"error":"Operation not found"}', body)
  end)

  it("sends headers as they were given, an empty one too", function()
    support.open()
    support.get { upgrade = true, url = "http://lxd/1.0/events", headers = { "X-Empty:", "X-Full: a;b" } }
    local head = support.server:accept():head()
    assert.matches("\r\nX%-Empty:\r\n", head)
    assert.matches("\r\nX%-Full: a;b\r\n", head)
  end)

  it("accepts no handshake that is wrong", function()
    local GOOD = { "HTTP/1.1 101 x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: %s" }
    for at, wrong in pairs { "SSH-2.0-x", "Upgrade: h2c", "Connection: close", "Sec-WebSocket-Accept: AAAA",
      "Sec-WebSocket-Extensions: permessage-deflate" } do
      local r, c = begin()
      local lines = { at == 1 and wrong or GOOD[1], at == 2 and wrong or GOOD[2], at == 3 and wrong or GOOD[3],
        at == 4 and wrong or GOOD[4], at == 5 and wrong or nil }
      c:send((table.concat(lines, "\r\n") .. "\r\n\r\n"):format(accept_of(c:head():match "Key: (%S+)")))
      assert.equal("protocol", (support.failure(r)), wrong)
      c:close()
    end
  end)

  it("is bounded in its handshake, and has its time", function()
    local r, c = begin()
    c:head()
    c:send("HTTP/1.1 101 x\r\nX: " .. ("x"):rep(200000))
    assert.equal("protocol", (support.failure(r)))
  end)

  it("runs out of time while nothing comes, in the handshake only", function()
    local r = begin { timeout = 0.05 }
    assert.equal("timeout", (support.failure(r)))
    local other, c = open { timeout = 0.2 }
    support.posix.sleep(0.3)
    support.poller:step({})
    assert.is_true(other:is_open())
    c:send(frame(TEXT, "late"))
    assert.equal("late", (message(other)))
  end)

  it("is lost when the connection ends within the handshake", function()
    for _, bytes in ipairs { "", "HTTP/1.1 101 x\r\nUpgr" } do
      local r, c = begin()
      c:head()
      if #bytes > 0 then c:send(bytes) end
      c:close()
      assert.equal("lost", (support.failure(r)))
    end
  end)

  it("takes no frame that breaks the rules", function()
    for _, bytes in ipairs {
      frame(TEXT, "x", { masked = true }), frame(TEXT, "x", { rsv = 64 }), frame(3, "x"), frame(0, "x"),
      frame(TEXT, "x", { more = true }) .. frame(TEXT, "y"), frame(PING, "x", { more = true }),
      frame(PING, ("x"):rep(126)), "\129\127\255\255\255\255\255\255\255\255", frame(TEXT, "\255\254"),
    } do
      local r, c = open()
      c:send(bytes)
      local kind, failure = support.failure(r)
      assert.equal("protocol", kind)
      assert.matches("frame", failure.message)
    end
  end)

  it("reads no more than finds room, and goes on when there is some", function()
    local r, c = open()
    local all, sent = frame(BINARY, ("x"):rep(60000)):rep(20), 0
    for _ = 1, 200 do
      sent = sent + (support.posix.send(c.fd, all:sub(sent + 1)) or 0)
      support.poller:step({})
    end
    assert(sent < #all, "it reads ever more")
    c:close()
    local got = 0
    for _ = 1, 10 do
      support.poller:step({})
    end
    assert.equal("active", r:state()) -- the end wasn't reached yet
    assert.is_false(support.poller:wait(0.02)) -- and nothing spins
    while r:state() ~= "done" do
      local bytes = r:receive()
      got = got + (bytes and #bytes or 0)
      support.poller:step({})
    end
    for bytes in r.receive, r do
      got = got + #bytes
    end
    assert(got > sent - 60000, got)
  end)

  it("keeps apart thousands of messages that nobody has taken yet", function()
    local r, c = open()
    local all = {}
    for i = 1, 3000 do
      all[i] = frame(TEXT, tostring(i))
    end
    c:send(table.concat(all))
    posix.sleep(0.02)
    support.poller:step({})
    support.poller:step({})
    for i = 1, 3000 do
      assert.equal(tostring(i), (message(r)))
    end
    assert.is_nil(r:receive())
  end)

  it("loses nothing when a finalizer drives the poller while bytes are taken", function()
    local r, c = open()
    local armed, sent, got, nested = false, {}, {}, 0
    local function arm()
      local function finalizer()
        if armed then
          support.poller:step({})
          nested = nested + #(r:receive() or "")
          arm()
        end
      end
      if newproxy then -- luacheck: globals newproxy
        getmetatable(newproxy(true)).__gc = finalizer
      else
        setmetatable({}, { __gc = finalizer })
      end
    end
    local function take_one()
      local bytes = r:receive()
      got[#got + 1] = bytes
      return bytes
    end
    pcall(collectgarbage, "incremental")
    local pause, speed = collectgarbage("setpause", 0), collectgarbage("setstepmul", 1000)
    for i = 1, 60 do
      local text = string.char(97 + i % 20):rep(60000)
      c:send(frame(i == 1 and BINARY or 0, text, { more = true }))
      support.poller:step({}, 0.1)
      c:send(frame(0, text:upper(), { more = true })) -- in the socket, not read yet
      sent[#sent + 1] = text .. text:upper()
      armed = true
      arm()
      take_one()
      armed = false
      for _ = 1, 5 do
        support.poller:step({}, 0.01)
        take_one()
      end
    end
    collectgarbage("setpause", pause)
    collectgarbage("setstepmul", speed)
    local all = table.concat(sent)
    support.until_(function()
      take_one()
      return #table.concat(got) + nested >= #all
    end)
    assert.equal(#all, #table.concat(got) + nested) -- within another call it gets nothing, before and after it may
    assert.is_true(nested > 0 or table.concat(got) == all)
  end)

  it("reads no more pings than it finds room for pongs, and forgets none", function()
    local r, c = open()
    local pings, sent, stays = frame(PING, ""):rep(1000000), 0, 0
    while stays < 20 do
      local n = posix.send(c.fd, pings:sub(sent + 1, sent + 65536))
      sent = sent + (n or 0)
      stays = n and 0 or stays + 1
      support.poller:step({})
      assert(sent < #pings, "it reads ever more")
    end
    assert.is_true(support.at_rest()) -- nothing spins
    local got = 0
    support.until_(function()
      got = got + #c:peek()
      c.buffer = ""
      return got >= math.floor(sent / 2) * 6
    end)
    c:send((sent % 2 == 1 and "\0" or "") .. frame(TEXT, "then"))
    assert.equal("then", (message(r)))
  end)

  it("reads while its own messages find no room", function()
    local r, c = open()
    while r:send(("x"):rep(50000)) do
      support.poller:step({})
    end
    c:send(frame(PING, "") .. frame(TEXT, "still read"))
    assert.equal("still read", (message(r)))
  end)

  it("turns a sender away when the peer doesn't read, and tells of room", function()
    for _, case in ipairs { { ("x"):rep(50000), 1000 }, { "x", 100000 }, { "", 100000 } } do
      local text, most = case[1], case[2]
      local r, c = open()
      local sent = 0
      while r:send(text) do
        sent = sent + 1
        assert(sent < most, "it takes ever more")
      end
      assert.is_false(r:send(text))
      local told
      support.until_(function()
        c:peek()
        local news = {}
        support.poller:step(news)
        told = told or news[1] == r:id()
        return told
      end)
      assert.is_true(r:send "more")
    end
  end)

  it("isn't among the requests that count", function()
    local _, server = support.open { connections = 1 }
    local list = {}
    for index = 1, 5 do
      list[index] = support.get { upgrade = true }
      greet(server:accept())
    end
    local plain = support.get()
    local c = server:accept()
    c:request()
    c:answer "x"
    assert.equal(200, (support.finish(plain)))
    for _, r in ipairs(list) do
      support.until_(function()
        return r:is_open()
      end)
      r:close()
    end
  end)

  it("is closed, collected or its engine closed at any point", function()
    for _, how in ipairs { "close", "collect", "engine", "poller" } do
      for point = 1, 4 do
        local r, c = begin()
        if point == 2 then
          c:head()
        elseif point == 3 then
          c:send "HTTP/1.1 101"
        elseif point == 4 then
          greet(c)
          c:send(frame(TEXT, "unread"))
        end
        support.poller:wait(0.01)
        support.poller:step({})
        if how == "close" then
          r:close()
          assert.has_error(function() r:receive() end)
        elseif how == "collect" then
          r = nil -- luacheck: ignore 311
          support.collect()
        else
          support[how]:close()
          assert.equal("done", r:state())
          assert.equal("cancelled", select(2, r:result()).kind)
          renew()
        end
      end
    end
  end)

  it("is the parent's, not a child's", function()
    local r, c = open()
    local child = support.fork(function()
      assert(not r:is_open())
      assert(select(2, r:result()).kind == "forked")
      r:close()
    end)
    assert.equal(0, support.posix.waitpid(child))
    c:send(frame(TEXT, "still here"))
    assert.equal("still here", (message(r)))
  end)

  it("is told from other requests", function()
    support.open()
    local r = support.get()
    assert.has_error(function() r:receive() end, "this request is no WebSocket")
    r:close()
  end)
end)
