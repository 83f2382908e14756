-- HTTPS and trust against the real LXD: who is accepted, how one joins, what an error tells to do.
local core = require "lualxd.core"
local lxd = require "lualxd"
local server = require "spec.support.lxd"

local admin, url, fingerprint, certificate, directory, mine, address_before

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

local function sh(...)
  local ok, out = server.shell(string.format(...))
  return ok and out or error(out, 2)
end

setup(function()
  admin = assert(lxd.connect { socket = server.socket })
  address_before = admin.server.config["core.https_address"]
  local address = address_before
  if not address then
    address = "127.0.0.1:" .. sh([[python3 -c '%s']],
      'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'):match "%d+"
    assert(admin:patch { config = { ["core.https_address"] = address } }:wait())
  end
  url = "https://" .. address
  certificate = assert(admin:get()).environment.certificate
  fingerprint = core.certificate(certificate).fingerprint
  directory = sh "mktemp -d":match "[^\n]+"
  mine = {}
end)

teardown(function()
  for _, identity in ipairs(mine) do
    admin.certificates(identity.fingerprint):delete():wait()
  end
  admin:patch { config = {
    ["core.https_address"] = address_before or lxd.unset,
    ["core.trust_password"] = lxd.unset,
    ["core.remote_token_expiry"] = lxd.unset,
  } }:wait()
  admin:close()
  os.execute("rm -rf '" .. directory .. "'")
end)

-- A client certificate that the server forgets after the specs.
local function identity(name)
  local one = assert(lxd.identity { name = name or "spec" })
  mine[#mine + 1] = one
  return one
end

-- One that it trusts already.
local function trusted(more)
  local one = identity()
  local der = one.cert:gsub("%-%-%-%-%-[^\n]*\n", ""):gsub("\n", "")
  local data = { type = "client", name = "spec", certificate = der }
  for key, value in pairs(more or {}) do
    data[key] = value
  end
  assert(admin.certificates:create(data):wait())
  return one
end

local function connect(settings)
  settings.url, settings.server_cert = url, settings.server_cert or fingerprint
  return lxd.connect(settings)
end

local function joined(one)
  return admin.certificates(one.fingerprint):exists()
end

describe("lxd.connect over HTTPS", function()
  it("reaches a pinned server, over one connection of HTTP/2 for any number of requests", function()
    local one = trusted()
    local client = assert(connect { cert = one.cert, key = one.key })
    assert.are.equal("trusted", client.server.auth)
    assert(lxd.map({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 }, function()
      for _ = 1, 5 do
        assert(client.profiles "default":get())
      end
    end, { parallel = 8 }))
    assert.are.equal(1, client._scope.link.engine:connects())
    -- Header names are in lower case there, and nothing else speaks so.
    local answer = client._scope.link.engine
    local request = answer:submit { method = "GET", url = url .. "/1.0" }
    while request:state() ~= "done" do
      lxd.sleep(0.01)
    end
    local _, head = request:result()
    assert.matches("^content%-type: ", head)
    request:close()
    client:close()
  end)

  it("refuses a server that isn't pinned, and shows its certificate", function()
    local client, err = lxd.connect { url = url }
    assert.is_nil(client)
    assert.are.equal("tls", err.kind)
    assert.are.equal(certificate, err.certificate)
    assert.are.equal(fingerprint, err.fingerprint)
    client = assert(lxd.connect { url = url, server_cert = err.certificate })
    client:close()
    client = assert(lxd.connect { url = url, ca = certificate }) -- its name is in it
    client:close()
  end)

  it("gives a client that isn't trusted, whose errors say what to do", function()
    local client = assert(connect {})
    assert.are.equal("untrusted", client.server.auth)
    local list, err = client.containers:list()
    assert.is_nil(list)
    assert.are.equal("untrusted", err.kind)
    assert.matches("lxd.identity", err.hint, 1, true)
    client:close()
    local one = identity()
    client = assert(connect { cert = one.cert, key = one.key })
    list, err = client.containers:list()
    assert.is_nil(list)
    assert.are.equal("untrusted", err.kind)
    assert.matches(one.fingerprint:sub(1, 12), err.hint, 1, true)
    assert.matches("token", err.hint, 1, true)
    client:close()
  end)

  it("never shares a connection between credentials", function()
    local one, other = trusted(), identity()
    local a = assert(connect { cert = one.cert, key = one.key })
    local b = assert(connect { cert = other.cert, key = other.key })
    local c = assert(connect {})
    for _ = 1, 5 do
      assert.are.equal("trusted", assert(a:get()).auth)
      assert.are.equal("untrusted", assert(b:get()).auth)
      assert.are.equal("untrusted", assert(c:get()).auth)
    end
    a:close()
    b:close()
    c:close()
  end)

  it("says what to do about a certificate that is restricted to projects", function()
    local project = server.name "p"
    assert(admin.projects:create { name = project, config = { ["features.images"] = "false" } }:wait())
    local one = trusted { restricted = true, projects = { project } }
    local client = assert(connect { cert = one.cert, key = one.key })
    local list, err = client.containers:list()
    assert.is_nil(list)
    assert.are.equal("forbidden", err.kind)
    assert.matches("restricted", err.hint, 1, true)
    assert.matches(one.fingerprint:sub(1, 12), err.hint, 1, true)
    assert(client:project(project).containers:list())
    client:close()
    assert(admin.projects(project):delete():wait())
  end)

  it("says what to do about a client certificate that has expired", function()
    sh("spec/support/certificate '%s' expired --expired --san DNS:x", directory)
    local settings = { cert = directory .. "/expired.crt", key = directory .. "/expired.key" }
    local client = assert(connect(settings))
    assert.are.equal("untrusted", client.server.auth)
    local _, err = client.containers:list()
    assert.are.equal("untrusted", err.kind)
    assert.matches("expired on 2020-02-01", err.hint, 1, true)
    client:close()
    -- A token isn't spent on it.
    settings.token = assert(admin.certificates:token { name = "spec" })
    client, err = connect(settings)
    assert.is_nil(client)
    assert.are.equal("untrusted", err.kind)
    assert.matches("expired on 2020-02-01", err.message, 1, true)
    local one = identity()
    assert(lxd.trust(url, { token = settings.token, cert = one.cert, key = one.key }))
  end)

  it("takes texts and paths, and tells which of them makes no sense", function()
    local one = trusted()
    write(directory .. "/c.crt", one.cert)
    write(directory .. "/c.key", one.key)
    write(directory .. "/s.crt", certificate)
    local client = assert(lxd.connect {
      url = url .. "/", cert = directory .. "/c.crt", key = directory .. "/c.key",
      server_cert = directory .. "/s.crt",
    })
    assert.are.equal("trusted", client.server.auth)
    client:close()
    client = assert(lxd.connect { url = url:gsub("https", "HTTPS"), server_cert = fingerprint })
    client:close()
    local function problem(settings)
      local _, err = connect(settings)
      return err.kind, err.message
    end
    local kind, message = problem { cert = directory .. "/nowhere", key = one.key }
    assert.are.equal("not_found", kind)
    assert.matches("nowhere", message, 1, true)
    assert.are.equal("invalid", (problem { cert = "-----BEGIN nonsense", key = one.key }))
    assert.are.equal("invalid", (problem { cert = one.cert, key = one.cert }))
    kind, message = problem { cert = one.cert, key = identity().key }
    assert.are.equal("invalid", kind)
    assert.matches("isn't the key", message, 1, true)
    sh("openssl ec -in '%s/c.key' -aes128 -passout pass:x -out '%s/e.key'", directory, directory)
    kind, message = problem { cert = one.cert, key = directory .. "/e.key" }
    assert.are.equal("invalid", kind)
    assert.matches("encrypted", message, 1, true)
    assert.are.equal("invalid", (problem { server_cert = "-----BEGIN nonsense" }))
    assert.are.equal("not_found", (problem { server_cert = "abcdef" }))
    kind, message = problem { server_cert = directory .. "/s.crt\0" } -- not what is before the NUL
    assert.are.equal("invalid", kind)
    assert.matches("server_cert: neither PEM text nor a file", message, 1, true)
    kind, message = problem { cert = directory, key = one.key }
    assert.are.equal("failed", kind)
    assert.matches("cert: " .. directory .. ": Is a directory", message, 1, true)
    write(directory .. "/empty", "")
    assert.are.equal("invalid", (problem { cert = one.cert, key = directory .. "/empty" }))
    local _, err = connect { server_cert = fingerprint:sub(1, 63) }
    assert.matches("64 digits", err.hint, 1, true)
    _, err = lxd.connect { url = url, ca = "-----BEGIN nonsense" }
    assert.are.equal("invalid", err.kind)
  end)

  it("raises for options that don't go together", function()
    local one = identity()
    for text, settings in pairs {
      ["'socket' or 'url'"] = { socket = "x", url = url },
      ["'url' or 'remote'"] = { remote = "x", url = url },
      ["'cert' and 'key'"] = { url = url, cert = one.cert },
      ["'server_cert' or 'ca'"] = { url = url, ca = certificate, server_cert = certificate },
      ["'token' or 'password'"] = { url = url, token = "a", password = "b" },
      ["needs 'url'"] = { socket = "x", cert = one.cert, key = one.key },
      ["needs 'cert' and 'key'"] = { url = url, password = "x" },
      ["must begin with https"] = { url = "http://127.0.0.1:8443" },
      ["'password' is not UTF-8"] = { url = url, cert = one.cert, key = one.key, password = "\255" },
      ["https://host:8443"] = { url = "https://127.0.0.1:8443/1.0" },
      ["like https://host:8443"] = { url = "https://user@127.0.0.1:99999" },
    } do
      local ok, message = pcall(function()
        local client = lxd.connect(settings)
        return client
      end)
      assert.is_false(ok)
      assert.matches(text, message, 1, true)
      assert.matches("https_spec.lua", message, 1, true)
    end
    assert.has_error(function()
      lxd.trust(url, { cert = one.cert, key = one.key })
    end)
    assert.has_error(function()
      lxd.trust(url, { token = "x" })
    end)
  end)
end)

describe("lxd.identity", function()
  it("writes both files for their owner alone, and over none", function()
    local path = directory .. "/kept"
    local made = assert(lxd.identity { name = "kept", path = path })
    assert.are.equal(made.cert, read(path .. ".crt"))
    assert.are.equal(made.key, read(path .. ".key"))
    assert.are.equal("600\n600\n", sh("stat -c %%a '%s.crt' '%s.key'", path, path))
    local function refused(kind)
      local again, err = lxd.identity { path = path }
      assert.is_nil(again)
      assert.are.equal(kind, err.kind)
    end
    refused "exists"
    os.remove(path .. ".key")
    refused "exists"
    assert.is_nil(io.open(path .. ".key")) -- nothing is half made
    assert.are.equal(made.cert, read(path .. ".crt"))
    path = directory .. "/nowhere/kept"
    refused "not_found"
  end)

  it("takes no path without a name in it", function()
    for _, path in ipairs { "", directory .. "/" } do
      local ok, message = pcall(function()
        local made = lxd.identity { path = path }
        return made
      end)
      assert.is_false(ok)
      assert.matches("lxd.identity: option 'path' must end with a name", message, 1, true)
      assert.matches("https_spec.lua", message, 1, true)
    end
  end)
end)

describe("joining", function()
  it("by a token is done once, and told when it can't be", function()
    local one, other = identity(), identity()
    local token = assert(admin.certificates:token { name = "by-token" })
    assert.are.equal(certificate, lxd.trust(url, { token = token, cert = one.cert, key = one.key }))
    assert.is_true(joined(one))
    assert.are.equal("by-token", assert(admin.certificates(one.fingerprint):get()).name)
    -- Again, by who is trusted already: nothing to do.
    assert.are.equal(certificate, lxd.trust(url, { token = token, cert = one.cert, key = one.key }))
    local pem, err = lxd.trust(url, { token = token, cert = other.cert, key = other.key })
    assert.is_nil(pem)
    assert.are.equal("untrusted", err.kind)
    assert.matches("ask for a new one", err.hint, 1, true)
    assert.is_false(joined(other))
  end)

  it("by connect happens when the server doesn't trust us yet", function()
    local one = identity()
    local token = assert(admin.certificates:token { name = "by-connect" })
    for _ = 1, 2 do
      local client = assert(lxd.connect { token = token:gsub("..........", "%0\n"), cert = one.cert, key = one.key })
      assert.are.equal("trusted", client.server.auth)
      assert(client.containers:names())
      client:close()
    end
    local pinned = assert(connect { token = token, cert = one.cert, key = one.key })
    pinned:close()
  end)

  it("by a token of lxc works, and of ours with lxc", function()
    local one = identity()
    local token = server.lxc("config trust add --name from-lxc -q"):match "(%S+)%s*$"
    assert(lxd.trust(url, { token = token, cert = one.cert, key = one.key }))
    assert.is_true(joined(one))
    token = assert(admin.certificates:token { name = "for-lxc" })
    sh("LXD_CONF='%s/lxc' lxc remote add there '%s' </dev/null", directory, token)
    local there = core.certificate(read(directory .. "/lxc/client.crt"))
    mine[#mine + 1] = there
    assert.is_true(joined(there))
  end)

  it("by a token that has expired says so", function()
    assert(admin:patch { config = { ["core.remote_token_expiry"] = "1S" } }:wait())
    local token = assert(admin.certificates:token { name = "short" })
    assert(admin:patch { config = { ["core.remote_token_expiry"] = lxd.unset } }:wait())
    lxd.sleep(1.2)
    local one = identity()
    local pem, err = lxd.trust(url, { token = token, cert = one.cert, key = one.key })
    assert.is_nil(pem)
    assert.are.equal("untrusted", err.kind)
    assert.matches("has expired", err.hint, 1, true)
  end)

  it("by a token that expired in another time zone says so, too", function()
    local one = identity()
    local function hint(expires_at)
      local token = string.format('{"client_name":"x","fingerprint":"%s","addresses":[],"secret":"x",'
        .. '"expires_at":"%s"}', fingerprint, expires_at)
      return select(2, lxd.trust(url, { token = core.base64(token), cert = one.cert, key = one.key })).hint
    end
    local now = os.time()
    local function at(seconds, zone)
      return os.date("!%Y-%m-%dT%H:%M:%S.123456789", now + seconds) .. zone
    end
    for _, past in ipairs { at(-60, "Z"), at(9 * 3600 - 60, "+09:00"), at(-12600 - 60, "-03:30") } do
      assert.matches("has expired", hint(past), 1, true)
    end
    for _, future in ipairs { at(3600, "Z"), at(10 * 3600, "+09:00"), at(-9000, "-03:30"), "0001-01-01T00:00:00Z" } do
      assert.matches("used already", hint(future), 1, true)
    end
  end)

  it("by a token whose name isn't UTF-8 asks for no name", function()
    local one = identity()
    local token = '{"client_name":"\255","fingerprint":"' .. fingerprint .. '","addresses":[],"secret":"x"}'
    local pem, err = lxd.trust(url, { token = core.base64(token), cert = one.cert, key = one.key })
    assert.is_nil(pem)
    assert.are.equal("untrusted", err.kind)
    assert.has_error(function()
      admin.certificates:token { name = "\255" }
    end, "client.certificates:token: option 'name' is not UTF-8")
  end)

  it("by a token for some projects restricts", function()
    local one = identity()
    local token = assert(admin.certificates:token { name = "restricted", projects = { "default" } })
    assert(lxd.trust(url, { token = token, cert = one.cert, key = one.key }))
    local data = assert(admin.certificates(one.fingerprint):get())
    assert.is_true(data.restricted)
    assert.are.same({ "default" }, data.projects)
  end)

  it("by a password works with a pinned server, and says when it is wrong", function()
    local one = identity "by password"
    local _, err = lxd.trust(url, {
      password = "p4ssword", cert = one.cert, key = one.key, server_cert = fingerprint,
    })
    assert.are.equal("untrusted", err.kind)
    assert.matches("core.trust_password", err.hint, 1, true)
    assert(admin:patch { config = { ["core.trust_password"] = "p4ssword" } }:wait())
    _, err = lxd.trust(url, { password = "p4ssword", cert = one.cert, key = one.key })
    assert.are.equal("tls", err.kind)
    assert.is_false(joined(one))
    assert.are.equal(certificate, lxd.trust(url, {
      password = "p4ssword", cert = one.cert, key = one.key, ca = certificate,
    }))
    assert.is_true(joined(one))
    assert.are.equal("by password", assert(admin.certificates(one.fingerprint):get()).name)
    local other = identity()
    local client = assert(connect { password = "p4ssword", cert = other.cert, key = other.key })
    assert.are.equal("trusted", client.server.auth)
    client:close()
  end)

  it("needs a token", function()
    local one = identity()
    for _, text in ipairs { "", "x", "bm8gSlNPTg==", core.base64 "{}", core.base64 '{"fingerprint":"ab"}',
      core.base64 '[1]', ("A"):rep(200000), core.base64('{"fingerprint":"' .. fingerprint .. '","secret":5}') } do
      local pem, err = lxd.trust(url, { token = text, cert = one.cert, key = one.key })
      assert.is_nil(pem)
      assert.are.equal("invalid", err.kind, text:sub(1, 80))
    end
    local _, err = lxd.connect {
      token = core.base64('{"fingerprint":"' .. fingerprint .. '","secret":"x","addresses":["a b",7]}'),
      cert = one.cert, key = one.key,
    }
    assert.are.equal("invalid", err.kind)
  end)
end)

describe("a remote of lxc", function()
  local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")

  -- What a script says that connects to a remote, with lxc's configuration in a directory.
  local function script(environment, text)
    write(directory .. "/script.lua", 'local lxd = require "lualxd"\n' .. text)
    return sh("%s LUA_PATH='%s' LUA_CPATH='%s' %s %s/script.lua", environment, package.path, package.cpath,
      interpreter, directory)
  end

  setup(function()
    local token = assert(admin.certificates:token { name = "remote" })
    sh("mkdir -p '%s/home/.config/lxc'; HOME='%s/home' lxc remote add spec-remote '%s' </dev/null",
      directory, directory, token)
    mine[#mine + 1] = core.certificate(read(directory .. "/home/.config/lxc/client.crt"))
  end)

  it("is found by its name, with what lxc keeps of it", function()
    local connect_to = 'local c = assert(lxd.connect { remote = "spec-remote" }) print(c, c.server.auth)'
    local out = script("HOME='" .. directory .. "/home'", connect_to)
    assert.matches(url, out, 1, true)
    assert.matches("%strusted", out)
    out = script("LXD_CONF='" .. directory .. "/home/.config/lxc'", connect_to)
    assert.matches("%strusted", out)
    sh("mkdir -p '%s/snap/snap/lxd/common'; cp -r '%s/home/.config/lxc' '%s/snap/snap/lxd/common/config'",
      directory, directory, directory)
    out = script("HOME='" .. directory .. "/snap'", connect_to)
    assert.matches("%strusted", out)
  end)

  it("has its server pinned", function()
    sh("cp -r '%s/home' '%s/wrong'; spec/support/certificate '%s' wrong --san IP:127.0.0.1", directory, directory,
      directory)
    sh("cp '%s/wrong.crt' '%s/wrong/.config/lxc/servercerts/spec-remote.crt'", directory, directory)
    local out = script("HOME='" .. directory .. "/wrong'",
      'local c, err = lxd.connect { remote = "spec-remote" } print(c, err.kind, err.fingerprint)')
    assert.matches("nil%stls%s" .. fingerprint, out)
  end)

  it("comes with its project, and the local one with the local socket", function()
    sh("HOME='%s/home' lxc remote switch local; HOME='%s/home' lxc project switch spec-remote:default", directory,
      directory)
    local out = script("HOME='" .. directory .. "/home'", [[
      print(lxd.connect { remote = "spec-remote" })
      print(lxd.connect { remote = "spec-remote", project = "other" })
      print(lxd.connect { remote = "local" })]])
    assert.matches(", project default\n", out, 1, true)
    assert.matches(", project other\n", out, 1, true)
    assert.matches(server.socket, out, 1, true)
  end)

  it("may have any name that lxc takes", function()
    sh("cp -r '%s/home' '%s/names'", directory, directory)
    local before = "spec-remote"
    for _, name in ipairs { "it's", 'a"b', "123", "true", "we ird" } do
      local function quoted(text)
        return "'" .. text:gsub("'", [['\'']]) .. "'"
      end
      sh("HOME='%s/names' lxc remote rename %s %s", directory, quoted(before), quoted(name))
      local out = script("HOME='" .. directory .. "/names'",
        string.format("print(lxd.connect { remote = %q })", name))
      assert.matches(url, out, 1, true)
      before = name
    end
  end)

  it("isn't used without what lxc keeps of it, where that can't be read", function()
    sh("cp -r '%s/home' '%s/broken'", directory, directory)
    local there = directory .. "/broken/.config/lxc"
    local function problem()
      return script("HOME='" .. directory .. "/broken'",
        'local c, err = lxd.connect { remote = "spec-remote" } print(c, err.kind, err)')
    end
    for path, what in pairs { ["servercerts/spec-remote.crt"] = "server_cert: ", ["client.crt"] = "cert: " } do
      sh("cp -a '%s/%s' '%s/kept'; : > '%s/%s'", there, path, directory, there, path)
      local out = problem()
      assert.matches("nil%sinvalid%s", out)
      assert.matches(what .. there .. "/" .. path .. " is empty", out, 1, true)
      sh("rm '%s/%s'; mkdir '%s/%s'", there, path, there, path)
      out = problem()
      assert.matches("nil%sfailed%s", out)
      assert.matches(what .. there .. "/" .. path .. ": Is a directory", out, 1, true)
      sh("rmdir '%s/%s'; mv '%s/kept' '%s/%s'", there, path, directory, there, path)
    end
    sh("rm '%s/config.yml'; mkdir '%s/config.yml'", there, there)
    assert.matches("config.yml can't be read: Is a directory", problem(), 1, true)
  end)

  it("of the whole machine is found, too, after one's own", function()
    local mine_, all = directory .. "/own", directory .. "/all"
    sh("cp -r '%s/home' '%s'; mkdir -p '%s'; mv '%s/.config/lxc/servercerts' '%s'", directory, mine_, all, mine_, all)
    sh("mv '%s/.config/lxc/config.yml' '%s'; HOME='%s' lxc remote list", mine_, all, mine_)
    local environment = string.format("HOME='%s' LXD_GLOBAL_CONF='%s'", mine_, all)
    local out = script(environment, 'print(assert(lxd.connect { remote = "spec-remote" }).server.auth)')
    assert.matches("^trusted", out)
    write(all .. "/config.yml", "remotes:\n  local:\n    addr: unix:///nowhere\n")
    assert.matches(server.socket, script(environment, 'print(lxd.connect { remote = "local" })'), 1, true)
    out = script("LXD_GLOBAL_CONF='" .. all .. "' HOME=", 'print(select(2, lxd.connect { remote = "spec-remote" }))')
    assert.matches("neither $LXD_CONF nor $HOME tells", out, 1, true)
  end)

  it("may have been written by hand", function()
    sh("mkdir -p '%s/hand'", directory)
    local function written(text)
      write(directory .. "/hand/config.yml", text)
      return script("LXD_CONF='" .. directory .. "/hand'", [[
        for _, name in ipairs { "one", "two" } do print(lxd.connect { remote = name, timeout = 1 }) end]])
    end
    local out = written("remotes: # ours\n    one: # first\n        addr: unix://" .. server.socket
      .. " # here\n\n        project: a#b\n    two:\n      addr: 'unix://" .. server.socket .. "'\n")
    assert.matches("^[^\n]*" .. server.socket:gsub("%p", "%%%0") .. ", project a#b\n", out)
    assert.matches("\n[^\n]*" .. server.socket:gsub("%p", "%%%0") .. "\n$", out)
    for line, text in pairs {
      [3] = "remotes:\n  one:\n  addr: https://127.0.0.1\n",
      [4] = "remotes:\n  one:\n    addr: unix://\n   project: x\n",
      [5] = "remotes:\n  one:\n    addr: unix://\n    more:\n      deeper: x\n",
      [1] = "remotes: { one: { addr: unix:// } }\n",
    } do
      assert.matches("line " .. line, written(text), 1, true)
    end
  end)

  it("that isn't there, or is none for us, is an error that says so", function()
    local out = script("HOME='" .. directory .. "/home'", [[
      for _, name in ipairs { "nowhere", "images" } do
        local client, err = lxd.connect { remote = name }
        print(name, client, err.kind)
      end]])
    assert.matches("nowhere%snil%snot_found", out)
    assert.matches("images%snil%sunsupported", out)
    out = script("HOME='/nowhere'", 'print(select(2, lxd.connect { remote = "spec-remote" }))')
    assert.matches("no such remote", out)
  end)
end)

describe("examples/join.lua", function()
  it("joins with a token, and comes back with what it kept", function()
    local token = server.lxc("config trust add --name joined -q"):match "(%S+)%s*$"
    local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
    local here = sh "pwd":match "[^\n]+"
    local path = package.path:gsub("%./", here .. "/")
    local cpath = (";" .. package.cpath):gsub(";build/", ";" .. here .. "/build/")
    for _ = 1, 2 do
      local out = sh("cd '%s' && LUA_PATH='%s' LUA_CPATH='%s' %s %s/examples/join.lua '%s' laptop", directory, path,
        cpath, interpreter, here, token)
      assert.matches("joined\tlualxd.client: " .. url, out, 1, true)
      assert.matches("project\tdefault", out, 1, true)
    end
    local kept = core.certificate(read(directory .. "/laptop.crt"))
    mine[#mine + 1] = kept
    assert.are.equal("joined", assert(admin.certificates(kept.fingerprint):get()).name)
    assert.are.equal("600 600", sh("stat -c %%a '%s/laptop.key' '%s/laptop.crt'", directory, directory)
      :gsub("\n", " "):match "^(.-)%s*$")
    local client = assert(lxd.connect {
      url = url, cert = directory .. "/laptop.crt", key = directory .. "/laptop.key",
      server_cert = directory .. "/laptop.server.crt",
    })
    assert.are.equal("trusted", client.server.auth)
    client:close()
  end)
end)
