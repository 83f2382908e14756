-- lualxd with a server as old as they get: LXD 2.0, which has no API extension at all, as
-- spec/support/imitation answers for it. And that the imitation leaves nothing behind.

local lxd = require "lualxd"
local imitation = require "spec.support.imitation"

local function run(command)
  local pipe = assert(io.popen(command .. " 2>&1"))
  local out = pipe:read "*a"
  pipe:close()
  return out
end

describe("an LXD 2.0", function()
  local server, client

  setup(function()
    server = imitation.start { mode = "lxd2", operation_seconds = 0.02 }
  end)

  teardown(function()
    server:stop()
  end)

  before_each(function()
    server:reset()
    client = assert(lxd.connect { socket = server.socket })
  end)

  after_each(function()
    client:close()
  end)

  it("is known by having no extensions", function()
    assert.are.same({}, client.server.api_extensions)
    assert.are.equal("trusted", client.server.auth)
    assert.is_false(client:has "etag")
  end)

  it("has containers made, started, written to, kept, stopped and deleted", function()
    local web = client.containers "web"
    assert(client.containers:create {
      name = "web",
      source = { type = "image", alias = "busybox" },
      config = { ["limits.memory"] = "64MB", ["boot.autostart"] = true },
    }:wait())
    assert.are.same({ "web" }, { (table.unpack or unpack)(assert(client.containers:names())) })
    assert.are.equal("true", assert(web:get()).config["boot.autostart"])
    assert.are.equal("Success", assert(web:start():wait()).status)
    assert.are.equal("Running", assert(web:state()).status)
    assert(web.files:write("/tmp/a", "abc", { mode = "0600" }):wait())
    local bytes, info = assert(web.files:read "/tmp/a")
    assert.are.equal("abc", bytes)
    assert.are.equal(384, info.mode)
    assert(web.snapshots:create { name = "before" }:wait())
    assert.are.equal("web/before", assert(web.snapshots "before":get()).name)
    local _, err = web:delete():wait()
    assert.are.equal("state", err.kind)
    assert(web:stop { force = true }:wait())
    assert(web:delete():wait())
    _, err = web:get()
    assert.are.equal("not_found", err.kind)
  end)

  it("has containers changed without ETags", function()
    assert(client.containers:create {
      name = "web", source = { type = "image", alias = "busybox" }, config = { ["user.a"] = "1" },
    }:wait())
    local data, etag = assert(client.containers "web":get())
    assert.is_nil(etag)
    assert.are.equal("1", data.config["user.a"])
    assert(client.containers "web":patch {
      config = { ["user.a"] = lxd.unset, ["user.b"] = "2" },
    }:wait())
    data = assert(client.containers "web":get())
    assert.is_nil(data.config["user.a"])
    assert.are.equal("2", data.config["user.b"])
  end)

  it("says what it lacks before anything is sent", function()
    local before = #server:record()
    for extension, use in pairs {
      projects = function()
        return client.projects:names()
      end,
      instances = function()
        return client.instances:create { name = "x", source = { type = "none" } }:wait()
      end,
      storage = function()
        return client.storage_pools:list()
      end,
    } do
      local result, err = use()
      assert.is_nil(result)
      assert.are.equal("unsupported", err.kind)
      assert.are.equal(extension, err.extension)
    end
    local _, err = client:project "p".containers:names()
    assert.are.equal("projects", err.extension)
    assert.are.equal(before, #server:record())
  end)
end)

describe("an imitation", function()
  it("is gone with its directory when it is stopped", function()
    local server = imitation.start()
    server:stop()
    server:stop()
    assert.truthy(run("ls -d " .. server.directory):find("No such file", 1, true))
  end)

  it("is gone when whoever started it was killed, although a child has its pipe", function()
    local file = os.tmpname()
    local script = assert(io.open(file, "w"))
    script:write(([[
      package.path, package.cpath = %q, %q
      local server = require "spec.support.imitation".start()
      os.execute "sleep 2 >&- 2>&- &"
      print(server.directory)
      io.stdout:flush()
      os.execute "kill -9 $PPID"
    ]]):format(package.path, package.cpath))
    script:close()
    local index = 0
    while arg[index - 1] do
      index = index - 1
    end
    local directory = run(arg[index] .. " " .. file):match "^(%S+)"
    os.remove(file)
    assert.truthy(directory:find("^/"))
    -- It sees its parent go within 0.2 s.
    for _ = 1, 40 do
      if run("ls -d " .. directory):find("No such file", 1, true) then
        return
      end
      os.execute "sleep 0.05"
    end
    error("it is still there: " .. directory)
  end)
end)
