-- TLS against a server that does what LXD won't: other certificates, exchanged under way, stalls and cuts in the
-- handshake. What is accepted and refused by a real LXD is in https_spec.
local core = require "lualxd.core"
local lxd = require "lualxd"
local tls_server = require "spec.support.tls_server"

local server, fingerprint

setup(function()
  server = tls_server.start()
  fingerprint = core.certificate(server:read "server.crt").fingerprint
end)

teardown(function()
  server:stop()
end)

before_each(function()
  server:mode "serve"
  server:drop()
  server:forget()
end)

local function connect(settings)
  settings = settings or {}
  settings.url = settings.url or server.url
  settings.timeout = settings.timeout or 5
  return lxd.connect(settings)
end

-- Refused within the handshake: the server got nothing that it could have read.
local function refused(settings)
  local client, err = connect(settings)
  assert.is_nil(client)
  assert.are.equal("tls", err.kind, tostring(err))
  local record = server:record()
  assert.are.equal("", record.plain)
  assert.are.equal(0, #record.requests)
  return err
end

local function accepted(settings)
  local client, err = connect(settings)
  assert(client, err)
  client:close()
  assert.are.equal(1, #server:record().requests)
  server:forget()
end

describe("a server's certificate", function()
  it("that nobody vouches for is refused, and shown", function()
    local err = refused()
    assert.are.equal(server:read "server.crt", err.certificate)
    assert.are.equal(fingerprint, err.fingerprint)
    assert.matches("server_cert", err.hint, 1, true)
  end)

  it("is accepted by its SHA-256, its PEM text, its path", function()
    accepted { server_cert = fingerprint }
    accepted { server_cert = fingerprint:upper():gsub("%x%x", "%0:"):sub(1, -2) }
    accepted { server_cert = server:read "server.crt" }
    accepted { server_cert = server.directory .. "/server.crt" }
  end)

  it("is refused when another is pinned, even with the same name and key", function()
    local other = server:certificate("other", "--subject server --san IP:127.0.0.1")
    local err = refused { server_cert = other .. ".crt" }
    assert.are.equal(fingerprint, err.fingerprint)
    assert.are.equal(server:read "server.crt", err.certificate)
    refused { server_cert = ("0"):rep(64) }
    os.execute(string.format(
      "openssl req -new -x509 -key %s/server.key -subj /CN=server -days 9 -out %s/again.crt 2>&1",
      server.directory, server.directory))
    refused { server_cert = server.directory .. "/again.crt" }
  end)

  it("is accepted when it is pinned, expired or not, whatever its name", function()
    server:certificate("expired", "--expired --san DNS:elsewhere")
    server:mode("serve", "expired")
    accepted { server_cert = server.directory .. "/expired.crt" }
    accepted { server_cert = server.directory .. "/expired.crt",
      url = "https://localhost:" .. string.format("%d", server.port) }
  end)

  it("of a CA is accepted by that CA alone, for its name, in its time", function()
    server:certificate("ca")
    server:certificate("otherca")
    server:certificate("good", "--by ca --san IP:127.0.0.1")
    server:certificate("misnamed", "--by ca --san DNS:elsewhere,IP:127.0.0.2 --subject 127.0.0.1")
    server:certificate("late", "--by ca --san IP:127.0.0.1 --expired")
    local ca = server.directory .. "/ca.crt"
    server:mode("serve", "good")
    accepted { ca = ca }
    accepted { ca = server:read "ca.crt" }
    local err = refused { ca = server.directory .. "/otherca.crt" }
    assert.are.equal(server:read "good.crt", err.certificate)
    refused()
    err = refused { ca = ca, url = "https://localhost:" .. string.format("%d", server.port) }
    assert.matches("a name that is in its certificate", err.hint, 1, true)
    server:mode("serve", "misnamed")
    err = refused { ca = ca }
    assert.matches("a name that is in its certificate", err.hint, 1, true)
    server:mode("serve", "late")
    err = refused { ca = ca }
    assert.matches("expired", err.message)
    assert.matches("it needs a new certificate", err.hint, 1, true)
    assert.are.equal(server:read "late.crt", err.certificate)
  end)

  it("of a CA isn't looked for where there is a CA that can't be read", function()
    server:certificate("ca")
    for text, message in pairs {
      [server:read "ca.crt" .. server:read("ca.crt"):sub(1, 300)] = "ca: one of its certificates can't be read",
      [server:read "ca.key"] = "ca: no certificate in PEM form is in it",
    } do
      local client, err = connect { ca = text }
      assert.is_nil(client)
      assert.are.equal("invalid", err.kind)
      assert.are.equal(message, err.message)
    end
    assert.are.equal(0, server:record().connections)
  end)

  it("that is exchanged under way is refused before the next request", function()
    server:certificate("exchanged", "--san IP:127.0.0.1")
    local client = assert(connect { server_cert = fingerprint })
    assert(client:request("GET", "/1.0"))
    server:mode("serve", "exchanged")
    server:drop()
    server:forget()
    local data, err = client.containers:create({ name = "secret" }):wait()
    assert.is_nil(data)
    -- Not unknown_outcome: nothing of the change has left.
    assert.are.equal("tls", err.kind, tostring(err))
    assert.are.equal(core.certificate(server:read "exchanged.crt").fingerprint, err.fingerprint)
    assert.are.equal("", server:record().plain)
    server:mode "serve"
    assert(client:request("GET", "/1.0")) -- the right one is back
    client:close()
  end)
end)

describe("a client certificate", function()
  it("that is too weak is told from a server that is refused", function()
    os.execute(string.format("openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=weak -days 9 -keyout %s/weak.key "
      .. "-out %s/weak.crt 2> %s/log", server.directory, server.directory, server.directory))
    local err = refused {
      server_cert = fingerprint, cert = server.directory .. "/weak.crt", key = server.directory .. "/weak.key",
    }
    assert.matches("the client certificate, or its signature, is too weak", err.message, 1, true)
    assert.matches("lxd.identity", err.hint, 1, true)
    assert.is_nil(err.certificate)
  end)
end)

describe("a handshake", function()
  it("takes TLS 1.2, and no older one", function()
    server:mode "twelve"
    accepted { server_cert = fingerprint }
    server:mode "old"
    local err = refused { server_cert = fingerprint }
    assert.is_nil(err.certificate)
  end)

  for _, mode in ipairs { "silent", "stall", "half" } do
    it("that goes no further ends when the time is up: " .. mode, function()
      server:mode(mode)
      local begun = core.now()
      local client, err = connect { server_cert = fingerprint, timeout = 0.3 }
      assert.is_nil(client)
      assert.are.equal("timeout", err.kind)
      assert.is_true(core.now() - begun < 20) -- 30 is what a request has unless told
    end)

    it("that goes no further holds nobody else up: " .. mode, function()
      server:mode(mode)
      lxd.run(function()
        local ended
        local stuck = lxd.spawn(function()
          local _, err = connect { server_cert = fingerprint, timeout = 1 }
          ended = true
          return err
        end)
        for _ = 1, 5 do
          lxd.sleep(0.02)
        end
        assert.is_nil(ended)
        assert.are.equal("timeout", stuck:join().kind)
      end)
    end)
  end

  for _, mode in ipairs { "cut", "reset" } do
    it("that is broken off says so: " .. mode, function()
      server:mode(mode)
      local err = refused { server_cert = fingerprint }
      assert.is_nil(err.certificate)
    end)
  end

  it("with a server that speaks plain HTTP says so", function()
    server:mode "plain"
    local err = refused { server_cert = fingerprint }
    assert.matches("HTTPS port", err.hint, 1, true)
  end)

  it("that succeeds and is followed by the end is a connection that was lost", function()
    server:mode "hangup"
    local client, err = connect { server_cert = fingerprint }
    assert.is_nil(client)
    assert.are.equal("connect", err.kind, tostring(err))
  end)

  it("is made once for any number of requests", function()
    local client = assert(connect { server_cert = fingerprint })
    for _ = 1, 30 do
      assert(client:request("GET", "/1.0"))
    end
    assert.are.equal(1, server:record().handshakes)
    client:close()
  end)

  -- Who only listens would otherwise never notice that a server has gone without a word.
  it("is followed by TCP's keep-alive", function()
    local client = assert(connect { server_cert = fingerprint })
    local timers = {} -- of our end; 2 is keep-alive (proc_net_tcp of Linux)
    for line in io.lines "/proc/self/net/tcp" do
      local port, state, timer = line:match "^%s*%d+: %x+:%x+ %x+:(%x+) (%x+) %x+:%x+ (%x+):"
      if state == "01" and tonumber(port, 16) == server.port then
        timers[#timers + 1] = timer
      end
    end
    assert.are.same({ "02" }, timers)
    client:close()
  end)
end)

describe("a secret", function()
  local identity = lxd.identity { name = "spec" }

  local function token_for(hex)
    return core.base64(string.format(
      '{"client_name":"spec","fingerprint":"%s","addresses":["127.0.0.1:%d"],"secret":"s3cret",'
        .. '"expires_at":"0001-01-01T00:00:00Z"}', hex, server.port))
  end

  it("in a token is kept from a server that isn't the token's", function()
    local token = token_for(("ab"):rep(32))
    local _, err = lxd.trust(server.url, { token = token, cert = identity.cert, key = identity.key })
    assert.are.equal("tls", err.kind)
    assert.are.equal(fingerprint, err.fingerprint)
    err = refused { token = token, cert = identity.cert, key = identity.key }
    assert.is_nil(tostring(err):find("s3cret", 1, true))
    _, err = connect { token = token, cert = identity.cert, key = identity.key, server_cert = fingerprint }
    assert.are.equal("tls", err.kind)
    local record = server:record()
    assert.are.equal("", record.plain)
  end)

  it("in a token goes to the token's server, even without a URL", function()
    local settings = { token = token_for(fingerprint), cert = identity.cert, key = identity.key }
    local client, err = lxd.connect(settings)
    -- This server trusts nobody.
    assert.is_nil(client)
    assert.are.equal("untrusted", err.kind)
    local heads = table.concat(server:record().requests, "\n")
    assert.matches("POST /1.0/certificates", heads, 1, true)
  end)

  it("that is a password is kept from every server that isn't pinned or of the CA", function()
    local settings = { password = "s3cret", cert = identity.cert, key = identity.key }
    local certificate, err = lxd.trust(server.url, settings)
    assert.is_nil(certificate)
    assert.are.equal("tls", err.kind)
    assert.are.equal(server:read "server.crt", err.certificate)
    assert.are.equal(fingerprint, err.fingerprint)
    assert.matches("server_cert", err.hint, 1, true)
    settings.url = server.url
    assert.are.equal(fingerprint, refused(settings).fingerprint)
    settings.server_cert = ("0"):rep(64)
    refused(settings)
    settings.server_cert, settings.ca = nil, identity.cert
    refused(settings)
  end)

  it("is in no error and no trace", function()
    local said = {}
    local function trace(...)
      for _, value in ipairs { ... } do
        said[#said + 1] = tostring(value)
      end
    end
    for _, settings in ipairs {
      { password = "s3cret", server_cert = fingerprint },
      { token = token_for(fingerprint) },
      { token = token_for(fingerprint) .. "s3cret" },
      { token = "s3cret" },
    } do
      settings.cert, settings.key, settings.trace = identity.cert, identity.key, trace
      local client, err = connect(settings)
      assert.is_nil(client)
      for _, value in pairs(err) do
        said[#said + 1] = tostring(value)
      end
      said[#said + 1] = tostring(err)
    end
    local _, err = connect { cert = identity.cert, key = "s3cret/base64+without/dots" }
    said[#said + 1] = tostring(err)
    _, err = connect { cert = identity.cert, key = "-----BEGIN s3cret" }
    said[#said + 1] = tostring(err)
    local all = table.concat(said, "\n")
    assert.is_nil(all:find("s3cret", 1, true))
    assert.is_nil(all:find(core.base64("s3cret"):sub(1, 8), 1, true))
    assert.is_nil(all:find(token_for(fingerprint):sub(-40), 1, true))
    assert.is_nil(all:find("PRIVATE KEY", 1, true))
  end)
end)
