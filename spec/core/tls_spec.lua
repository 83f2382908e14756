-- TLS in the engine: what a handshake finds out outlives whoever began it, and nobody else's.
local support = require "spec.core.support"
local core = support.core
local tls_server = require "spec.support.tls_server"

describe("TLS", function()
  local server, pin, identity

  setup(function()
    server = tls_server.start()
    server:certificate("ca")
    server:certificate("good", "--by ca --san IP:127.0.0.1")
    pin = core.certificate(server:read "server.crt").fingerprint:gsub("%x%x", function(hex)
      return string.char(tonumber(hex, 16))
    end)
    identity = { core.new_identity "spec" }
  end)

  teardown(function()
    server:stop()
  end)

  before_each(function()
    support.begin()
    support.poller = assert(core.poller())
    server:mode "serve"
    server:forget()
  end)

  after_each(function()
    server:drop()
    support.finally()
  end)

  local function engine(tls, timeout)
    tls.host = "127.0.0.1"
    support.engine = assert(core.engine(support.poller, {
      tls = tls, connections = 4, timeout = timeout or 5,
    }))
    return support.engine
  end

  local function get(e)
    return (e or support.engine):submit { method = "GET", url = server.url .. "/1.0" }
  end

  it("accepts what is pinned, and tells the certificate", function()
    local e = engine { pin = pin, cert = identity[1], key = identity[2] }
    assert.is_nil(e:certificate())
    assert.equal(200, (support.finish(get())))
    assert.equal(server:read "server.crt", e:certificate())
    assert.equal(1, e:connects())
  end)

  it("accepts what a CA has signed", function()
    server:mode("serve", "good")
    engine { ca = server:read "ca.crt" }
    assert.equal(200, (support.finish(get())))
  end)

  it("refuses, for each of several requests, with certificate and reason", function()
    engine { pin = ("\0"):rep(32) }
    local list = { get(), get(), get(), get(), get() }
    for _, request in ipairs(list) do
      local kind, failure = support.failure(request)
      assert.equal("tls", kind)
      assert.equal("pin", failure.reason)
      assert.is_false(failure.unsure)
      assert.equal(server:read "server.crt", failure.certificate)
      assert.equal(core.certificate(failure.certificate).fingerprint, failure.fingerprint)
      request:close()
    end
    assert.is_nil(support.engine:certificate())
    engine {}
    local _, failure = support.failure(get())
    assert.equal("ca", failure.reason)
    engine { ca = server:read "ca.crt" }
    _, failure = support.failure(get())
    assert.equal("ca", failure.reason)
    assert.equal("", server:record().plain)
  end)

  it("needs both where both are told", function()
    engine { pin = pin, ca = server:read "ca.crt" }
    local _, failure = support.failure(get())
    assert.equal("ca", failure.reason)
    server:mode("serve", "good")
    engine { pin = pin, ca = server:read "ca.crt" }
    _, failure = support.failure(get())
    assert.equal("pin", failure.reason)
  end)

  it("doesn't speak HTTP without it", function()
    engine { pin = pin }
    local request = support.engine:submit { method = "GET", url = server.url:gsub("https", "http") .. "/1.0" }
    local _, failure = support.failure(request)
    assert.equal("failed", failure.kind)
    assert.equal(0, server:record().connections)
  end)

  it("is given up at any point of a handshake", function()
    for _, mode in ipairs { "silent", "stall", "half", "cut", "reset", "plain", "serve", "hangup" } do
      server:mode(mode)
      for turns = 0, 6, 2 do
        local e = engine { pin = pin }
        local request = get()
        for _ = 1, turns do
          support.poller:wait(0.003)
          support.poller:step({})
        end
        if turns % 4 == 0 then
          request:close()
        else
          e:close()
        end
        request, e, support.engine = nil, nil, nil -- luacheck: ignore 311
        support.collect()
      end
    end
  end)

  it("is refused and forgotten, before anybody asks why", function()
    local e = engine { pin = ("\1"):rep(32) }
    local request = get()
    support.until_(function()
      return request:state() == "done"
    end)
    e:close()
    support.collect()
    local _, failure = request:result()
    assert.equal("pin", failure.reason)
    assert.is_string(failure.certificate)
  end)

  it("isn't the parent's in a child", function()
    local e = engine { pin = pin, cert = identity[1], key = identity[2] }
    assert.equal(200, (support.finish(get())))
    local child = support.fork(function()
      local request = get()
      assert.equal(200, (support.finish(request)))
      request:close()
      e:close()
    end)
    assert.equal(0, support.posix.waitpid(child))
    assert.equal(200, (support.finish(get())))
    assert.equal(1, e:connects()) -- still the first one
    assert.equal(2, server:record().handshakes)
  end)

  local function put(body)
    return support.engine:submit { method = "PUT", url = server.url .. "/1.0", body = body, once = true }
  end

  it("has the answer of a server that refuses to read a body", function()
    server:mode "refuse"
    engine { pin = pin }
    assert.equal(413, (support.finish(get())))
    assert.equal("h2 ", server:record().plain)
    server:forget()
    for _, n in ipairs { 16385, 60000, 3e5, 4e6 } do
      local status, failure = support.finish(put(("x"):rep(n)))
      assert.equal(413, status, n .. " bytes: " .. tostring(not status and failure.message))
    end
    local written = put(true)
    support.until_(function()
      written:write(("x"):rep(10000))
      return written:state() == "done"
    end)
    assert.equal(413, (written:result()))
    assert.equal(("h1 "):rep(5), server:record().plain)
  end)

  it("rests while a server takes no more of a body", function()
    server:mode "deaf"
    engine({ pin = pin }, 0.3)
    for _, n in ipairs { 16384, 3e5, 8e6 } do
      local r, steps = put(("x"):rep(n)), 0
      while r:state() ~= "done" do
        support.poller:step({}, 1)
        steps = steps + 1
      end
      assert.equal("timeout", (support.failure(r)))
      assert(steps < 1000, steps)
    end
  end)

  it("gives a request with a small body no more time than it has", function()
    server:mode "deaf"
    engine({ pin = pin }, 0.6)
    for _, n in ipairs { 1, 1, 16384 } do
      local start = core.now()
      assert.equal("timeout", (support.failure(put(("x"):rep(n)))))
      local took = core.now() - start
      assert(took > 0.55 and took < 1, took)
    end
    assert.equal("h2 h2 h2 ", server:record().plain)
  end)

  it("ends when the time is up, and leaves nothing", function()
    server:mode "half"
    engine({ pin = pin }, 0.05)
    local kind = support.failure(get())
    assert.equal("timeout", kind)
  end)

  it("tells a key that isn't the certificate's, and texts that make no sense", function()
    local other = { core.new_identity "other" }
    for _, tls in ipairs {
      { cert = identity[1], key = other[2] }, { cert = identity[1], key = identity[1] },
      { cert = identity[2], key = identity[2] }, { cert = "x", key = identity[2] }, { ca = "x" },
      { cert = identity[1], key = identity[2]:gsub("M", "N") },
    } do
      tls.host = "127.0.0.1"
      local e, why = core.engine(support.poller, { tls = tls, connections = 1, timeout = 1 })
      assert.is_nil(e)
      assert.is_string(why)
    end
    for _, tls in ipairs { { pin = "x" }, { pin = 5 }, { host = 5 }, { cert = identity[1] }, { ca = {} }, {} } do
      tls.host = tls.host or (next(tls) and "127.0.0.1") or nil
      assert.has_error(function()
        core.engine(support.poller, { tls = tls, connections = 1, timeout = 1 })
      end)
    end
  end)
end)
