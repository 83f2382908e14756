-- Files and images against a real LXD, checked by `lxc exec`.
local imitation = require "spec.support.imitation"
local server = require "spec.support.lxd"
local lxd = require "lualxd"

local client, name, files

setup(function()
  client = server.connect()
  name = server.name "c"
  assert(client.containers:create { name = name, source = server.source }:wait())
  assert(client.containers(name):start():wait())
  files = client.containers(name).files
end)

teardown(function()
  client:close()
  server.clean()
end)

local function inside(command)
  return server.inside(name, command)
end

describe("files", function()
  it("are written with their owner and mode, also when they exist", function()
    assert(files:write("/etc/one", "1", { uid = 5, gid = 6, mode = "0600" }):wait())
    assert.are.equal("600 5 6", inside 'stat -c "%a %u %g" /etc/one')
    assert(files:write("/etc/one", "22", { uid = 0, mode = 420 }):wait())
    assert.are.equal("644 0", inside 'stat -c "%a %u" /etc/one')
    assert.are.equal("22", (files:read "/etc/one"))
    local info = files:stat "/etc/one"
    assert.are.equal(420, info.mode)
    assert.are.equal(2, info.size)
    assert.are.equal("file", info.type)
  end)

  it("keep what isn't named when they are written anew", function()
    assert(files:write("/etc/kept", "1", { uid = 5, gid = 6, mode = "0640" }):wait())
    assert(files:write("/etc/kept", "2", { mode = "0600" }):wait())
    assert.are.equal("600 5 6", inside 'stat -c "%a %u %g" /etc/kept')
    assert(files:write("/etc/kept", "3", { uid = 7 }):wait())
    assert.are.equal("600 7 6", inside 'stat -c "%a %u %g" /etc/kept')
    assert(files:write("/etc/kept", "4"):wait())
    assert.are.equal("600 7 6", inside 'stat -c "%a %u %g" /etc/kept')
  end)

  -- LXD drops these bits without a word.
  it("are refused a mode that LXD can't set, before anything is changed", function()
    for _, mode in ipairs { "4755", "1777", 1023 } do
      local _, err = files:write("/etc/special", "x", { mode = mode }):wait()
      assert.are.equal("unsupported", err.kind)
      _, err = files:mkdir("/etc/special", { mode = mode }):wait()
      assert.are.equal("unsupported", err.kind)
    end
    assert.are.equal("not_found", select(2, files:stat "/etc/special").kind)
    assert(files:write("/etc/none", "x", { mode = 0 }):wait())
    assert.are.equal("0", inside 'stat -c "%a" /etc/none')
    for option, value in pairs { mode = -1, uid = -1, gid = -5 } do
      assert.has_error(function()
        files:write("/etc/special", "x", { [option] = value })
      end, ("files:write: option '%s' can't be %d"):format(option, value))
    end
  end)

  it("go through whole, byte for byte, from a string, a function and a handle", function()
    local bytes = ""
    for i = 0, 255 do
      bytes = bytes .. string.char(i)
    end
    assert(files:write("/tmp/bytes", bytes):wait())
    assert.are.equal(bytes, (files:read "/tmp/bytes"))
    local left = 300
    assert(files:write("/tmp/pieces", function()
      left = left - 1
      return left >= 0 and ("x"):rep(9999) or nil
    end):wait())
    assert.are.equal("2999700", inside "wc -c < /tmp/pieces")
    local path = os.tmpname()
    local file = assert(io.open(path, "w+b"))
    file:write(bytes:rep(1000))
    file:seek("set", 0)
    assert(files:write("/tmp/handle", file):wait())
    file:close()
    os.remove(path)
    assert.are.equal(bytes:rep(1000), (files:read "/tmp/handle"))
    assert(files:write("/tmp/empty", ""):wait())
    assert.are.equal("", (files:read "/tmp/empty"))
    assert.are.equal(0, files:stat "/tmp/empty".size)
  end)

  it("are appended to, listed, linked, followed and deleted", function()
    assert(files:mkdir("/tmp/d", { mode = "0700" }):wait())
    assert.are.equal("700", inside 'stat -c "%a" /tmp/d')
    assert(files:write("/tmp/d/a", "a"):wait())
    assert(files:append("/tmp/d/a", "b"):wait())
    assert(files:symlink("/tmp/d/l", "/tmp/d/a"):wait())
    assert.are.same({ "a", "l" }, files:list "/tmp/d")
    assert.are.equal("ab", (files:read "/tmp/d/l"))
    assert.are.equal("symlink", files:stat "/tmp/d/l".type)
    assert(files:delete "/tmp/d/a":wait())
    local _, err = files:read "/tmp/d/a"
    assert.are.equal("not_found", err.kind)
    _, err = files:append("/tmp/d/a", "b"):wait()
    assert.are.equal("not_found", err.kind)
    _, err = files:read "/tmp/d"
    assert.are.equal("invalid", err.kind)
  end)

  it("fail by wait when their source does", function()
    local _, err = files:write("/tmp/x", function()
      error "no more"
    end):wait()
    assert.matches("no more", tostring(err))
    for _, wrong in ipairs { 5, {} } do
      _, err = files:write("/tmp/x", function()
        return wrong
      end):wait()
      assert.are.equal("failed", err.kind)
      assert.matches("must return a string or nil, got " .. type(wrong), tostring(err))
    end
    assert.has_error(function()
      files:write("relative", "x")
    end)
    assert.has_error(function()
      files:write("/x", "x", { mode = "rw" })
    end)
  end)

  it("stream until the one who reads forgets about it", function()
    assert(files:write("/tmp/forgotten", ("y"):rep(8000000)):wait())
    local path = "/1.0/containers/" .. name .. "/files"
    local function begin()
      local response = assert(client:request("GET", path, {
        query = { path = "/tmp/forgotten" }, stream = true,
      }))
      assert(response.body())
    end
    begin()
    collectgarbage()
    collectgarbage()
    assert.are.equal(0, (client._scope.link.engine:count()))
  end)

  it("stream until the one who reads has enough", function()
    assert(files:write("/tmp/enough", ("y"):rep(8000000)):wait())
    local path = "/1.0/containers/" .. name .. "/files"
    local response = assert(client:request("GET", path, { query = { path = "/tmp/enough" }, stream = true }))
    assert(response.body())
    response:close()
    assert.are.equal(0, (client._scope.link.engine:count()))
    assert.is_nil((response.body()))
    response:close()
    assert.are.equal("default", assert(client.profiles "default":get()).name)
  end)

  it("stream until somebody else has enough", function()
    local served = imitation.start()
    finally(function()
      served:stop()
    end)
    served:rules { path = "/slow", steps = {
      { bytes = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst" }, { gate = "never" },
    } }
    local other = assert(lxd.connect { socket = served.socket })
    lxd.run(function()
      local response = assert(other:request("GET", "/1.0/slow", { stream = true }))
      assert.are.equal("first", response.body())
      local reader = lxd.spawn(response.body)
      response:close()
      assert.is_nil(reader:join())
    end)
    other:close()
  end)

  it("stream as the body of any request", function()
    assert(files:write("/tmp/stream", ("y"):rep(500000)):wait())
    local path, query = "/1.0/containers/" .. name .. "/files", { path = "/tmp/stream" }
    local got = 0
    assert(client:request("GET", path, { query = query, stream = function(piece)
      got = got + #piece
    end }))
    assert.are.equal(500000, got)
    got = 0
    for piece in assert(client:request("GET", path, { query = query, stream = true })).body do
      got = got + #piece
    end
    assert.are.equal(500000, got)
  end)

  it("have a head that can be asked for alone", function()
    local path = "/1.0/containers/" .. name .. "/files"
    local response = assert(client:request("HEAD", path, { query = { path = "/etc/inittab" } }))
    assert.are.equal(200, response.status)
    assert.are.equal("file", response.headers["x-lxd-type"])
    local missing, err = client:request("HEAD", path, { query = { path = "/etc/nowhere" } })
    assert.is_nil(missing)
    assert.are.equal("not_found", err.kind)
  end)
end)

describe("images:import", function()
  it("makes an image of a file and names it; one that is there counts as done", function()
    local path, alias, again = os.tmpname(), server.name "a", server.name "a"
    finally(function()
      os.remove(path)
    end)
    server.lxc("image export %s %s", server.image, path)
    os.remove(path)
    -- lxc adds what the image's own name ends with.
    local _, found = server.shell("ls " .. path .. "*")
    path = found:match "%S+"
    local told, later = {}, {}
    local op = client.images:import(path, { alias = alias, progress = function(progress)
      told[#told + 1] = progress
    end }):progress(function(progress)
      later[#later + 1] = progress.stage
    end)
    local data = assert(op:wait())
    assert.are.equal(server.look("/1.0/images/aliases/" .. server.image).target,
      data.metadata.fingerprint)
    assert.are.equal(data.metadata.fingerprint, server.look("/1.0/images/aliases/" .. alias).target)
    assert.are.equal("upload", told[1].stage)
    assert.is_number(told[1].percent)
    assert.is_number(told[1].speed)
    assert.are.equal("upload", later[1])
    local unasked = {}
    assert(client.images:import(path, { alias = again }):progress(function(progress)
      unasked[#unasked + 1] = progress.stage
    end):wait())
    assert.are.equal("upload", unasked[1])
    assert(lxd.wait_all { client.images.aliases(alias):delete(), client.images.aliases(again):delete() })
  end)

  it("tells by wait what is wrong with the file here", function()
    local _, err = client.images:import("/nowhere/at/all"):wait()
    assert.are.equal("not_found", err.kind)
    assert.matches("/nowhere/at/all", tostring(err))
  end)
end)
