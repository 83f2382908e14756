-- lualxd with a server as old as they get: LXD 2.0, which has no API extension at all, as
-- spec/support/imitation answers for it. And that the imitation leaves nothing behind.

local cjson = require "cjson"
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

  -- It knows neither the parameter nor the header, and would do something else.
  it("isn't asked for what it would take for something else", function()
    local before = #server:record()
    local web, vm = client.containers "web", client.virtual_machines "web"
    local list = client.containers
    for _, row in ipairs {
      { "projects", client:project "p".containers "web":stop() },
      { "projects", client:project "p".containers "web":delete { force = true } },
      { "projects", client:project "p".containers "web".files:write("/a", "b") },
      { "projects", web:copy("copy", { project = "p" }) },
      { "clustering", client:target "node2".containers:create { name = "x", source = { type = "none" } } },
      { "clustering", web:move(nil, { target = "node2" }) },
      { "instance_pool_move", web:move(nil, { pool = "p" }) },
      { "instance_project_move", web:move(nil, { project = "p" }) },
      { "instances", client.instances "web":start() },
      { "instances", client.instances "web".snapshots:create { name = "s0" } },
      { "virtual-machines", vm.files:write("/a", "b") },
      { "directory_manipulation", web.files:mkdir "/a" },
      { "file_symlinks", web.files:symlink("/a", "b") },
      { "file_delete", web.files:delete "/a" },
      { "file_append", web.files:append("/a", "b") },
      { "image_compression_algorithm", web:publish { compression_algorithm = "none" } },
      { "console", web:clear_console_log() },
    } do
      local extension, op = row[1], row[2]
      local result, err = op:wait()
      assert.is_nil(result, extension)
      assert.are.equal("unsupported", err.kind, tostring(err))
      assert.are.equal(extension, err.extension)
    end
    for _, row in ipairs {
      { "api_filtering", list.list, list, { filter = "name eq web" } },
      { "api_filtering_extended", client.profiles.list, client.profiles, { filter = "name eq web" } },
      { "instance_all_projects", list.list, list, { all_projects = true } },
      { "container_full", list.list, list, { recursion = 2 } },
      { "certificate_token", client.certificates.token, client.certificates, { name = "x" } },
      { "console", web.console, web },
      { "console", web.console_log, web },
      { "instances", client.instances "web".exec, client.instances "web", { "true" } },
    } do
      local extension, f = row[1], row[2]
      local result, err = f(row[3], row[4])
      assert.is_nil(result, extension)
      assert.are.equal("unsupported", err.kind, tostring(err))
      assert.are.equal(extension, err.extension)
    end
    assert.are.equal(before, #server:record())
  end)

  it("has maps patched that it gives as null", function()
    server:rules({ method = "GET", path = "^/1.0/profiles/p$",
      sync = { name = "p", description = "", config = cjson.null, devices = cjson.null } })
    client.profiles "p":patch {
      config = { ["user.a"] = lxd.unset, ["user.b"] = 1 },
      devices = { eth0 = { type = "none", name = lxd.unset } },
    }:wait()
    local requests = server:record()
    assert.are.same({
      name = "p", description = "", config = { ["user.b"] = "1" }, devices = { eth0 = { type = "none" } },
    }, cjson.decode(requests[#requests].body))
  end)
end)

-- An older LXD compares If-Match with its ETag as it is, and writes that without quotes.
describe("an ETag", function()
  local server, client

  before_each(function()
    server = imitation.start()
    client = assert(lxd.connect { socket = server.socket })
  end)

  after_each(function()
    client:close()
    server:stop()
  end)

  for _, written in ipairs { 'abc', '"abc"' } do
    it("goes back as it came: " .. written, function()
      server:rules({ method = "GET", path = "^/1.0/profiles/p$", answer = { headers = { ETag = written },
        json = { type = "sync", status_code = 200, metadata = { name = "p", description = "" } } } })
      local data, etag = assert(client.profiles "p":get())
      assert.are.equal("abc", etag)
      client.profiles "p":put(data, etag):wait()
      client.profiles "p":patch { description = "x" }:wait()
      local seen = {}
      for _, request in ipairs((server:record())) do
        if request.method == "PUT" then
          seen[#seen + 1] = request.headers["if-match"]
        end
      end
      assert.are.same({ written, written }, seen)
    end)
  end
end)

-- What no LXD answers, in words that it uses otherwise.
describe("an odd answer", function()
  local server, client

  before_each(function()
    server = imitation.start { mode = "operations" }
    client = assert(lxd.connect { socket = server.socket, timeout = 2 })
  end)

  after_each(function()
    client:close()
    server:stop()
  end)

  local function operation(fields)
    local data = { id = "00000000-0000-4000-8000-000000000000", class = "task", status = "Failure", status_code = 400,
      created_at = "2026-01-01T00:00:00Z", metadata = {} }
    for name, value in pairs(fields) do
      data[name] = value
    end
    server:rules { path = "/wait", sync = data }
    server:rules { method = "POST", async = { id = data.id, class = "task", status_code = 103, status = "Running" } }
    return client.containers:create { name = "c", source = { type = "image", alias = "busybox" } }
  end

  it("whose error is no text is a failure with words of our own", function()
    local data, err = operation { err = { a = 1 } }:wait()
    assert.is_nil(data)
    assert.are.equal("failed", err.kind)
  end)

  it("that is false has worked, as an empty one has", function()
    server:rules { method = "PUT", path = "/profiles/p", sync = "false" }
    assert.is_true(client.profiles "p":put({}):wait())
  end)

  it("whose code is no integer is told as it is", function()
    local data, err = operation { err = "broken", status_code = 400.5 }:wait()
    assert.is_nil(data)
    assert.matches("broken", tostring(err))
  end)

  it("whose progress has no stage is no progress", function()
    local told = {}
    local op = operation { status_code = 200, metadata = { progress = { percent = "3" } } }
    assert(op:progress(function(progress)
      told[#told + 1] = progress
    end):wait())
    assert.are.same({}, told)
  end)

  it("takes no waiting along when a trace raises", function()
    local traced = assert(lxd.connect { socket = server.socket, trace = function()
      error "in trace"
    end })
    assert(traced.containers:names())
    traced:close()
  end)

  it("whose reader raises doesn't hold its connection", function()
    server:rules { method = "GET", path = "/big", steps = {
      { bytes = "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" }, { endless = "x" },
    } }
    local two = assert(lxd.connect { socket = server.socket, timeout = 2, connections = 2 })
    for _ = 1, 3 do
      local ok, problem = pcall(two.request, two, "GET", "/1.0/big", { stream = function()
        error("enough", 0)
      end })
      assert.is_false(ok)
      assert.are.equal("enough", problem)
    end
    assert(two.containers:names())
    two:close()
  end)
end)

describe("an imitation", function()
  it("is gone with its directory when it is stopped", function()
    local server = imitation.start()
    server:stop()
    server:stop()
    assert.truthy(run("ls -d " .. server.directory):find("No such file", 1, true))
  end)

  it("is gone when whoever started it was killed, although a child has its pipe #builtin", function()
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
