-- What the allocation harness runs while memory fails at one place after the other: each constructor
-- and each method, with all kinds of bodies. `server` is the harness's, in C, so that it needs no
-- memory; `broken` says that memory of C may fail, and with it a request. Gives a function for the
-- part that may fail and one that must succeed afterwards, with the same objects.
local core, server, file, broken = ...

local news = {}

local function finish(p, r)
  for _ = 1, 500 do
    server.pump()
    p:step(news)
    if r:state() == "done" then
      return r:result()
    end
    p:wait(0)
  end
  error("it hangs")
end

-- A failure is one for want of memory, of the right kind, or none.
local function check(status, failure)
  if status == 200 then
    return true
  end
  assert(status == nil)
  assert(broken, failure.message)
  assert(failure.kind == "failed" or failure.kind == "connect" or failure.kind == "lost"
    or failure.kind == "protocol", failure.kind)
end

local kept_poller = assert(core.poller())
local kept = assert(core.engine(kept_poller, { unix = server.path, connections = 2, timeout = 5 }))

local function exchange(p, e)
  local r = e:submit { method = "GET", url = "http://lxd/1.0", headers = { "A: b", "C:" } }
  check(finish(p, r))
  assert(r:id() and tostring(r) and r:attempts() <= 1)
  r:head()
  r:close()
end

local function bodies(p, e)
  local r = e:submit { method = "POST", url = "http://lxd/1.0", once = true, body = "bytes" }
  check(finish(p, r))
  r:close()
  r = e:submit { method = "PUT", url = "http://lxd/1.0", hash = true,
    body = { "before", { path = file }, "after" } }
  if check(finish(p, r)) then
    assert(#r:hash() == 64)
  end
  r = e:submit { method = "PUT", url = "http://lxd/1.0", body = { { path = "/nowhere" } } }
  local _, failure = finish(p, r)
  assert(failure.kind == "file" and failure.message)
  r = e:submit { method = "PATCH", url = "http://lxd/1.0", body = true, stream = true }
  r:write("live bytes")
  r:write(("x"):rep(1000), 500)
  r:finish()
  for _ = 1, 500 do
    server.pump()
    p:step(news)
    if not r:read() then break end
  end
  check(finish(p, r))
  r:progress()
end

local function endings(p, e)
  local active = {}
  for i = 1, 3 do
    active[i] = e:submit { method = "GET", url = "http://lxd/" .. i, stream = true }
  end
  local queued = active[3]
  e:count()
  e:connects()
  queued:cancel()
  local _, failure = queued:result()
  assert(failure.kind == "cancelled" or broken)
  active[1]:close()
  assert(not pcall(e.submit, e, { method = "GET" }))
  assert(not pcall(e.submit, e, { method = "GET", url = "http://lxd/", headers = { "no" } }))
  local late = e:submit { method = "GET", url = "http://lxd/late", timeout = 0.001 }
  p:wait(0.003)
  p:step(news)
  late:close()
end

-- Keys and certificates; no handshake: the server of the harness has no TLS.
local function identities(p)
  local cert, key = core.new_identity "harness"
  local info = core.certificate(cert)
  -- OpenSSL takes a lack of memory for a text that makes no sense.
  assert(info or broken)
  assert(not info or #info.fingerprint == 64 and (info.name == "harness" or broken))
  core.certificate "nonsense"
  local text = core.base64("bytes")
  assert(core.unbase64(text) == "bytes" and not core.unbase64 "!")
  local e, why = core.engine(p, {
    tls = { host = "127.0.0.1", cert = cert, key = key, ca = cert, pin = ("x"):rep(32) },
    connections = 1, timeout = 1,
  })
  assert(e or broken and why)
  if e then
    assert(e:certificate() == nil)
    local r = e:submit { method = "GET", url = "https://127.0.0.1:1/" }
    local _, failure = finish(p, r)
    assert(failure.kind == "connect" or broken)
    e:close()
  end
end

local function words()
  assert(#core.sha256("abc") == 64 and #core.random(32) == 64 and core.now() and core.pid())
  core.is_socket(server.path)
  local text = '{"a":[],"b":12345678901234567,"c":[1,null,[ ]],"\\u0064":4}'
  local array = {}
  local lossy = { a = {}, b = 12345678901234567.0, c = { 1.0, false, {} }, d = 4.0 }
  local tree = core.restore_json(lossy, text, array, false, function() return "d" end)
  assert(getmetatable(tree.a) == array and #tree.c == 2 and tree.d == 4)
end

local function may_fail()
  words()
  exchange(kept_poller, kept)
  bodies(kept_poller, kept)
  local p, message = core.poller()
  assert(p, message)
  local e = core.engine(p, { unix = server.path, connections = 2, timeout = 5 })
  identities(p)
  tostring(p)
  tostring(e)
  p:pollfd()
  exchange(p, e)
  endings(p, e)
  e:close()
  e = core.engine(p, { unix = server.path, connections = 2, timeout = 5 })
  bodies(p, e)
  endings(p, e)
  p:close()
end

local function must_succeed()
  broken = false
  for _ = 1, 3 do
    exchange(kept_poller, kept)
  end
  bodies(kept_poller, kept)
  identities(kept_poller)
  words()
end

return may_fail, must_succeed
