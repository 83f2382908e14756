-- The plan as data and as text: what it says of one situation each. The server is the model;
-- that the real one behaves like it is shown by live_spec.lua.
local json = require "lualxd.json"
local model = require "spec.reconcile.model"
local reconcile = require "lualxd.reconcile"
local words = require "lualxd.words"

local server

before_each(function()
  server = model.new()
end)

local function plan(source, settings)
  return assert(reconcile.plan(server:client(), source, settings))
end

local function apply(source, settings)
  return assert(reconcile.apply(server:client(), source, settings))
end

local function refused(source, settings)
  local planned, err = reconcile.plan(server:client(), source, settings)
  assert.is_nil(planned)
  assert.are.equal("invalid", err.kind)
  local lines = {}
  for index, mistake in ipairs(err.errors) do
    lines[index] = mistake.path .. ": " .. mistake.message
  end
  return lines
end

local function ids(steps)
  local list = {}
  for index, step in ipairs(steps) do
    list[index] = step.id
  end
  return list
end

local function step(planned, id)
  for _, list in ipairs { planned.steps, planned.blocked } do
    for _, found in ipairs(list) do
      if found.id == id then
        return found
      end
    end
  end
end

local function web(fields)
  local entry = { image = "busybox" }
  for key, value in pairs(fields or {}) do
    entry[key] = value
  end
  return { stack = "shop", containers = { web1 = entry } }
end

describe("a plan", function()
  it("says in order what is to be done, and what each step needs", function()
    local source = {
      stack = "shop",
      profiles = { base = { config = { ["limits.memory"] = "256MiB" } } },
      containers = {
        db = { image = "busybox", profiles = { "base" }, state = "running" },
        web = { image = "busybox", profiles = { "default", "base" }, state = "running",
          after = { "db" }, files = { ["/etc/motd"] = { content = "hi" } },
          ready = { exec = { "true" } }, snapshots = { "a", "b" } },
      },
    }
    local planned = plan(source)
    assert.are.same({
      "profiles/base:create",
      "containers/db:create", "containers/db:start",
      "containers/web:create", "containers/web:push", "containers/web:start",
      "containers/web:exec", "containers/web:snapshot:a", "containers/web:snapshot:b",
    }, ids(planned.steps))
    assert.are.same({ "profiles/base:create" }, step(planned, "containers/db:create").needs)
    assert.are.same({ "containers/db:start", "profiles/base:create" },
      step(planned, "containers/web:create").needs)
    assert.are.same({ "containers/web:exec" }, step(planned, "containers/web:snapshot:a").needs)
    assert.are.same({ action = "start", kind = "containers", project = "default", name = "web",
      id = "containers/web:start", danger = 1, needs = { "containers/web:push" },
      changes = { { path = "state", from = "stopped", to = "running", why = "declared",
        effect = "none" } } }, step(planned, "containers/web:start"))
    assert.is_false(planned.empty)
    assert.are.same({}, planned.blocked)
  end)

  it("changes nothing, and is empty once it is applied", function()
    local source = web { state = "running" }
    plan(source)
    for _, request in ipairs(server.log) do
      assert.matches("^GET ", request)
    end
    apply(source)
    assert.is_true(plan(source).empty)
  end)

  it("asks for lists only, however many objects there are", function()
    local function requests(count)
      local source = { stack = "shop", containers = {} }
      for index = 1, count do
        source.containers["c" .. index] = { image = "busybox", snapshots = { "s" }, devices = {
          root = { type = "disk", path = "/", pool = "default" } } }
      end
      apply(source)
      server.log = {}
      assert.is_true(plan(source).empty)
      return #server.log
    end
    local few = requests(1)
    assert.are.equal(few, requests(50))
    assert.is_true(few <= 6)
  end)

  it("tells a change in the declaration from one on the server", function()
    local source = web { config = { ["limits.memory"] = "256MiB", ["limits.cpu"] = 1,
      ["user.a"] = "x" }, state = "running" }
    apply(source)
    local config = server.containers.web1.config
    config["limits.memory"] = "1GiB"
    source.containers.web1.config["limits.cpu"] = 2
    source.containers.web1.config["user.a"] = nil
    local changes = step(plan(source), "containers/web1:update").changes
    assert.are.same({
      { path = "config.limits.cpu", from = "1", to = "2", why = "declared", effect = "live" },
      { path = "config.limits.memory", from = "1GiB", to = "256MiB", why = "drift",
        effect = "live" },
      { path = "config.user.a", from = "x", why = "released", effect = "none" },
    }, changes)
  end)

  it("says nothing of values that are spelled otherwise", function()
    local source = web { config = { ["limits.memory"] = "1GiB", ["security.nesting"] = true } }
    apply(source)
    server.containers.web1.config["limits.memory"] = "1073741824"
    server.containers.web1.config["security.nesting"] = "yes"
    assert.is_true(plan(source).empty)
    source.containers.web1.config["limits.memory"] = "1024MiB"
    assert.is_true(plan(source).empty)
    source.containers.web1.architecture = "amd64"
    apply(source)
    source.containers.web1.architecture = "x86_64" -- as the server says it
    assert.is_true(plan(source).empty)
  end)

  it("takes over what is as declared already, and gives back what isn't ours any more", function()
    local source = web { config = { ["user.a"] = "1" } }
    apply(source)
    server.containers.web1.config["user.b"] = "2"
    source.containers.web1.config["user.b"] = "2"
    local planned = plan(source)
    assert.are.equal(0, step(planned, "containers/web1:update").danger)
    assert.are.same({ { path = "config.user.b", from = "2", to = "2", why = "declared",
      effect = "none" } }, step(planned, "containers/web1:update").changes)
    apply(source)
    assert.is_true(plan(source).empty)
    server.containers.web1.config["user.b"] = "other"
    source.containers.web1.config["user.b"] = nil
    apply(source)
    assert.are.equal("other", server.containers.web1.config["user.b"])
    assert.is_true(plan(source).empty)
  end)
end)

describe("devices", function()
  local disk = { type = "disk", source = "/tmp", path = "/mnt" }

  it("are compared key by key: what isn't named in one stays", function()
    local source = web { devices = { tmp = disk } }
    apply(source)
    local live = server.containers.web1.devices
    live.tmp.readonly = "true"
    live.other = { type = "disk", source = "/a", path = "/a" }
    assert.is_true(plan(source).empty)
    live.tmp.path = "/elsewhere"
    apply(source)
    assert.are.same({ type = "disk", source = "/tmp", path = "/mnt", readonly = "true" }, live.tmp
      and server.containers.web1.devices.tmp)
    assert.truthy(server.containers.web1.devices.other)
  end)

  it("go as a whole when undeclared, unless somebody has changed them", function()
    local source = web { devices = { ["a.b"] = disk, c = disk } }
    apply(source)
    server.containers.web1.devices.c.readonly = "true"
    source.containers.web1.devices = {}
    apply(source)
    assert.is_nil(server.containers.web1.devices["a.b"])
    assert.truthy(server.containers.web1.devices.c)
    assert.is_true(plan(source).empty)
  end)

  it("lose only the released key while they stay declared", function()
    local source = web { devices = { tmp = { type = "disk", source = "/tmp", path = "/mnt",
      readonly = true } } }
    apply(source)
    source.containers.web1.devices.tmp.readonly = nil
    apply(source)
    assert.are.same(disk, server.containers.web1.devices.tmp)
  end)

  it("of another type keep nothing of the old one", function()
    local source = web { devices = { x = { type = "nic", network = "br0", hwaddr = "00:1" } } }
    apply(source)
    server.containers.web1.devices.x.mtu = "1400"
    source.containers.web1.devices.x = disk
    apply(source)
    assert.are.same(disk, server.containers.web1.devices.x)
    assert.is_true(plan(source).empty)
  end)

  it("need a type where there is none yet", function()
    assert.are.same({ "containers.web1.devices.root.type: required: what sort of device this is"
      .. " (disk, nic, …)" }, refused(web { devices = { root = { size = "1GiB" } } }))
  end)

  it("set to lxd.unset are taken away, whoever made them", function()
    apply(web {})
    server.containers.web1.devices.tmp = model.copy(disk)
    local source = web { devices = { tmp = words.unset } }
    assert.are.same(disk, step(plan(source), "containers/web1:update").changes[1].from)
    apply(source)
    assert.is_nil(server.containers.web1.devices.tmp)
  end)
end)

describe("the pool of a root disk", function()
  it("is changed only by replacing what is in it", function()
    server = model.new { pools = { "default", "fast" } }
    local root = { type = "disk", path = "/", pool = "default" }
    local source = web { state = "running", devices = { root = root }, snapshots = { "s" } }
    apply(source)
    root.pool = "fast"
    local planned = plan(source)
    assert.are.same({}, planned.steps)
    assert.are.same({ "containers/web1:update", "containers/web1:replace" }, ids(planned.blocked))
    local change = { path = "devices.root.pool", from = "default", to = "fast", why = "declared",
      effect = "replace" }
    assert.are.same({ change }, step(planned, "containers/web1:update").changes)
    assert.are.same({ change }, step(planned, "containers/web1:replace").changes)
    assert.are.equal(4, step(planned, "containers/web1:replace").danger)
    planned = plan(source, { allow = 4 })
    assert.are.same({ "containers/web1:replace", "containers/web1:start",
      "containers/web1:snapshot:s" }, ids(planned.steps))
    assert(planned:apply())
    assert.are.equal("fast", server.containers.web1.devices.root.pool)
    assert.is_true(plan(source).empty)
    root.pool = "default"
    source.containers.web1.image = nil
    planned = plan(source, { allow = 4 })
    assert.are.same({}, planned.steps)
    assert.matches("no image says what to make it from", step(planned, "containers/web1:replace").blocked)
  end)

  it("counts where it was a profile's", function()
    server = model.new { pools = { "default", "fast" } }
    apply(web {})
    local planned = plan(web { devices = { root = { type = "disk", path = "/", pool = "fast" } } },
      { allow = 4 })
    assert.are.same({ "containers/web1:replace" }, ids(planned.steps))
    local own = web { devices = { root = { type = "disk", path = "/", pool = "default" } } }
    assert.are.same({ "containers/web1:update" }, ids(plan(own).steps))
  end)
end)

describe("the words", function()
  it("auto fits any value, ignore counts at creation only, unset takes away", function()
    local source = web { config = { ["user.a"] = words.auto, ["user.b"] = words.ignore "first",
      ["user.c"] = words.unset, ["user.d"] = words.ignore }, state = words.ignore "running" }
    apply(source)
    local config = server.containers.web1.config
    assert.are.equal("first", config["user.b"])
    assert.are.equal("Running", server.containers.web1.status)
    config["user.a"], config["user.b"], config["user.d"] = "x", "second", "y"
    server.containers.web1.status = "Stopped"
    assert.is_true(plan(source).empty)
    config["user.c"] = "z"
    apply(source)
    config = server.containers.web1.config
    assert.are.same({ "x", "second", "y" },
      { config["user.a"], config["user.b"], config["user.d"] })
    assert.is_nil(config["user.c"])
  end)

  it("ignore holds what is more than a value, too", function()
    local fast = { type = "disk", path = "/srv", source = "/srv", readonly = false }
    local source = web { image = words.ignore(("ab"):rep(32)), profiles = words.ignore { "default", "base" },
      devices = { srv = words.ignore(fast), log = words.ignore } }
    source.profiles = { base = {} }
    apply(source)
    local live = server.containers.web1
    assert.are.same({ "default", "base" }, live.profiles)
    assert.are.same({ type = "disk", path = "/srv", source = "/srv", readonly = "false" }, live.devices.srv)
    assert.are.equal(0, #plan(source).steps)
    -- All of it is somebody else's from now on, who may do away with what it named.
    live.profiles, live.devices = { "default" }, { log = { type = "disk", path = "/log", source = "/log" } }
    live.config["volatile.base_image"] = ("cd"):rep(32)
    source.profiles = { base = words.absent }
    apply(source, { allow = 4 })
    assert.are.same({ "default" }, server.containers.web1.profiles)
    assert.is_nil(server.containers.web1.devices.srv)
    assert.truthy(server.containers.web1.devices.log)
    assert.is_nil(server.profiles.base)
    assert.is_true(plan(source, { replace_on_image = true }).empty)
    assert.same({ "containers.web2.profiles: profile \"base\" is declared absent" }, refused { stack = "shop",
      profiles = source.profiles, containers = { web2 = source.containers.web1 } })
  end)

  it("ignore and auto leave alone what was declared before", function()
    local source = web { profiles = { "default", "base" }, devices = {
      srv = { type = "disk", path = "/srv", source = "/srv" } } }
    source.profiles = { base = {} }
    apply(source)
    source.containers.web1.profiles, source.containers.web1.devices.srv = words.auto, words.ignore
    assert.is_true(plan(source).empty)
    server.containers.web1.profiles = { "default" }
    server.containers.web1.devices.srv.path = "/other"
    assert.is_true(plan(source).empty)
  end)

  it("secret is nowhere but in the object itself", function()
    local source = web { config = { ["user.pw"] = words.secret "hunter2" },
      files = { ["/etc/pw"] = { content = words.secret "swordfish" } },
      devices = { d = { type = "disk", source = "/tmp", path = "/mnt",
        ["ceph.user_name"] = words.secret "xyzzy42" } } }
    local function hidden(text)
      for _, secret in ipairs { "hunter2", "hunter3", "swordfish", "xyzzy42" } do
        assert.is_nil(text:find(secret, 1, true), text)
      end
    end
    local function walk(value, seen)
      if type(value) == "string" then
        hidden(value)
      elseif type(value) == "table" and not seen[value] then
        seen[value] = true
        for key, inner in pairs(value) do
          walk(key, seen)
          walk(inner, seen)
        end
      end
    end
    local function check(settings)
      local planned = plan(source, settings)
      hidden(tostring(planned))
      hidden(planned:json())
      walk(planned, {})
      return planned
    end
    check()
    apply(source)
    assert.are.equal("hunter2", server.containers.web1.config["user.pw"])
    for _, key in ipairs { "owner", "last", "todo" } do
      hidden(server.containers.web1.config["user.lualxd." .. key] or "")
    end
    assert.is_true(check().empty)
    server.containers.web1.config["user.pw"] = "hunter3"
    assert.is_false(check().empty)
    apply(source)
    source.containers.web1.config["user.pw"] = nil
    source.containers.web1.devices.d = nil
    assert.are.equal(2, #step(check(), "containers/web1:update").changes)
    source.containers.web1.devices = { d = words.unset }
    check()
    -- A word of the server's about it, too.
    source = web { config = { ["user.pw"] = words.secret "hunter2" } }
    server.meddle = function(_, what)
      if what:find "^PUT" or what:find "^POST" then
        error(require "lualxd.error".new("invalid", { message = "Invalid value: hunter2" }), 0)
      end
    end
  end)

  it("secret isn't quoted where what it names isn't there", function()
    local planned = plan(web { image = { alias = "x", server = words.secret "https://hunter2" } })
    assert.is_nil((tostring(planned) .. planned:json()):find "hunter2")
    local secret = words.secret "hunter2"
    assert.are.same({
      "containers.web1.devices.eth0.network: no network (secret) is on the server",
      "containers.web1.devices.eth1.parent: no network (secret) is on the server",
      "containers.web1.devices.root.pool: no storage pool (secret) is on the server",
    }, refused(web { devices = { root = { type = "disk", path = "/", pool = secret },
      eth0 = { type = "nic", network = secret },
      eth1 = { type = "nic", nictype = "bridged", parent = secret } } }))
    assert.are.same({ "containers.web1.image.alias: expected a string, got lxd.secret" },
      refused(web { image = { alias = secret } }))
  end)

  it("absent deletes, if it is ours and that is allowed", function()
    apply(web {})
    local source = { stack = "shop", containers = { web1 = words.absent, web2 = words.absent } }
    local planned = plan(source)
    assert.are.same({}, planned.steps)
    assert.are.equal("danger 4; needs allow = 4",
      step(planned, "containers/web1:delete").blocked)
    apply(source, { allow = 4 })
    assert.is_nil(server.containers.web1)
    assert.is_true(plan(source).empty)
  end)
end)

describe("ownership", function()
  local function stranger(config)
    assert(server:client().containers:create { name = "web1", config = config or {},
      source = { type = "image", alias = "busybox" } }:wait())
  end

  it("of an object that is nobody's has to be declared", function()
    stranger()
    local source = web { config = { ["user.a"] = "1" }, state = "running" }
    local planned = plan(source)
    assert.are.same({}, planned.steps)
    assert.are.same({ "containers/web1:adopt", "containers/web1:update", "containers/web1:start" },
      ids(planned.blocked))
    assert.matches("adopt = true", planned.blocked[1].blocked)
    assert.matches("waits for containers/web1:adopt", planned.blocked[2].blocked)
    apply(source)
    assert.is_nil(server.containers.web1.config["user.a"])
    source.containers.web1.adopt = true
    apply(source)
    assert.are.equal("1", server.containers.web1.config["user.a"])
    assert.is_true(plan(source).empty)
  end)

  it("may be taken for a whole call", function()
    stranger { ["user.a"] = "1" }
    local source = web { config = { ["user.a"] = "1" } }
    local planned = plan(source, { adopt_existing = true })
    assert.are.same({ "containers/web1:adopt" }, ids(planned.steps))
    assert.are.equal(0, planned.steps[1].danger)
    assert(planned:apply())
    assert.is_true(plan(source).empty)
  end)

  it("of another stack is an error that names it", function()
    apply(web {})
    local source = web {}
    source.stack = "other"
    assert.are.same({ "containers.web1: belongs to the stack \"shop\"" }, refused(source))
    assert.are.same({ "containers.web1: belongs to the stack \"shop\"" },
      refused(source, { adopt_existing = true }))
  end)

  it("isn't copied with an object", function()
    apply(web {})
    server.containers.web2 = model.copy(server.containers.web1)
    local source = web {}
    source.containers.web2 = { image = "busybox" }
    local planned = plan(source, { prune = true, allow = 4 })
    assert.are.same({ "containers/web2:adopt" }, ids(planned.blocked))
    assert.matches("is a copy", planned.blocked[1].blocked)
    source.containers.web2 = nil
    assert.is_true(plan(source, { prune = true, allow = 4 }).empty)
  end)

  it("of what is no longer declared: listed, or deleted, users first", function()
    local source = web { profiles = { "default", "base" } }
    source.profiles = { base = {} }
    apply(source)
    local planned = plan { stack = "shop" }
    assert.is_true(planned.empty)
    assert.are.same({
      { kind = "profiles", project = "default", name = "base", keep = false },
      { kind = "containers", project = "default", name = "web1", keep = false },
    }, planned.orphans)
    planned = plan({ stack = "shop" }, { prune = true })
    assert.are.same({ "containers/web1:delete", "profiles/base:delete" }, ids(planned.blocked))
    planned = plan({ stack = "shop" }, { prune = true, allow = 4 })
    assert.are.same({ "containers/web1:delete" }, planned.steps[2].needs)
    assert(planned:apply())
    assert.is_nil(server.containers.web1)
    assert.is_nil(server.profiles.base)
  end)

  it("of what is kept is never the end of it", function()
    apply(web { keep = true })
    local planned = plan({ stack = "shop" }, { prune = true, allow = 4 })
    assert.is_true(planned.empty)
    assert.is_true(planned.orphans[1].keep)
    planned = plan({ stack = "shop", containers = { web1 = words.absent } }, { allow = 4 })
    assert.matches("keep = true", planned.blocked[1].blocked)
    server.images.busybox = ("cd"):rep(32)
    planned = plan(web { keep = true }, { allow = 4, replace_on_image = true })
    assert.matches("keep = true", planned.blocked[1].blocked)
    assert.are.same({}, planned.steps)
    -- The declaration decides: without keep it goes.
    apply(web {})
    apply({ stack = "shop" }, { prune = true, allow = 4 })
    assert.is_nil(server.containers.web1)
  end)

  it("doesn't delete what others use, and leaves a profile before it goes", function()
    local source = web { profiles = { "default", "base" } }
    source.profiles = { base = {} }
    apply(source)
    source.profiles, source.containers.web1.profiles = nil, { "default" }
    local planned = plan(source, { prune = true, allow = 4 })
    assert.are.same({ "containers/web1:update", "profiles/base:delete" }, ids(planned.steps))
    assert.are.same({ "containers/web1:update" }, planned.steps[2].needs)
    assert(server:client().containers:create { name = "alien", profiles = { "base" },
      source = { type = "image", alias = "busybox" } }:wait())
    planned = plan(source, { prune = true, allow = 4 })
    assert.are.equal("in use by alien", planned.blocked[1].blocked)
  end)

  it("of the profile named default is given back, not pruned", function()
    local source = { stack = "shop", profiles = { default = { adopt = true,
      config = { ["limits.cpu"] = 2 } } } }
    apply(source)
    assert.are.equal("2", server.profiles.default.config["limits.cpu"])
    local planned = plan({ stack = "shop" }, { prune = true })
    assert.are.same({ "profiles/default:release" }, ids(planned.steps))
    assert(planned:apply())
    assert.are.same({}, server.profiles.default.config)
    assert.are.same({ type = "disk", path = "/", pool = "default" },
      server.profiles.default.devices.root)
    planned = plan { stack = "shop", profiles = { default = words.absent } }
    assert.are.equal(2, #planned.blocked)
  end)
end)

describe("danger", function()
  it("gates: what is above it, and what waits for that, is blocked", function()
    local source = web { state = "running", config = {}, ready = { exec = { "true" } } }
    apply(source)
    source.containers.web1.config["security.privileged"] = true
    source.containers.web1.snapshots = { "s" }
    local planned = plan(source)
    assert.are.same({ "containers/web1:update" }, ids(planned.steps))
    assert.are.equal("next_start", planned.steps[1].changes[1].effect)
    assert.are.same({ "containers/web1:restart", "containers/web1:exec",
      "containers/web1:snapshot:s" }, ids(planned.blocked))
    assert.are.equal("danger 3; needs allow = 3", planned.blocked[1].blocked)
    assert(planned:apply())
    -- Stored, and not forgotten, however often one looks.
    planned = plan(source)
    assert.are.same({}, planned.steps)
    assert.are.equal("finish", planned.blocked[1].changes[1].why)
    apply(source, { allow = 3 })
    assert.is_true(plan(source).empty)
    assert.are.equal("true", server.containers.web1.runs_with["security.privileged"])
    assert.truthy(server.containers.web1.snapshots.s)
  end)

  it("of a restart is over when somebody else has restarted it", function()
    local source = web { state = "running", config = {} }
    apply(source)
    source.containers.web1.config["raw.lxc"] = "a = b"
    apply(source)
    assert.is_false(plan(source).empty)
    assert(server:client().containers("web1"):restart():wait())
    assert.is_true(plan(source).empty)
  end)

  it("of a restart is run once more when another run's got in between", function()
    for _, state in ipairs { "running", "frozen" } do
      server = model.new()
      local source = web { state = state, config = {} }
      apply(source)
      source.containers.web1.config["raw.lxc"] = "a = b"
      local request = server.request
      server.request = function(self, what, f)
        if what:find "^STATE restart" or what:find "^STATE unfreeze" then
          self.containers.web1.status = "Stopped"
          return nil, require "lualxd.error".new("state", { message = "already stopped" })
        end
        return request(self, what, f)
      end
      apply(source, { allow = 3 })
      assert.are.equal(state, server.containers.web1.status:lower())
      assert.is_true(plan(source).empty)
    end
  end)

  it("of a restart that an interrupted run began is over before anything is written", function()
    local source = web { state = "running" }
    apply(source)
    source.containers.web1.config = { ["security.privileged"] = true }
    assert(plan(source):apply()) -- and it would be restarted then
    server.operations = { { id = "1", status_code = 103, resources = { instances = { "/1.0/instances/web1" } } } }
    source.containers.web1.files = { ["/etc/a"] = { content = "x" } }
    server.log = {}
    assert(plan(source, { allow = 3 }):apply())
    local at = {}
    for index, what in ipairs(server.log) do
      at[what] = at[what] or index
    end
    local waited = at["GET /1.0/operations/1/wait"]
    assert.is_true(waited ~= nil and waited < at["FILE web1/etc/a"])
  end)

  it("of a start is tried again where an interrupted run still restarts it", function()
    local source = web { state = "running" }
    apply(source)
    server.containers.web1.status = "Stopped"
    local request, refused_once = server.request, false
    server.request = function(self, what, f)
      if what:find "^STATE start" and not refused_once then
        refused_once = true -- it runs, is stopped then, and started in the end or not
        return nil, require "lualxd.error".new("state", { message = "already running" })
      end
      return request(self, what, f)
    end
    apply(source)
    assert.are.equal("Running", server.containers.web1.status)
  end)

  it("counts for what somebody changes between plan and apply, in a profile, too", function()
    local NIC = { type = "nic", network = "br0" }
    local source = web { state = "running", profiles = { "default", "base" } }
    source.profiles = { base = { config = { ["limits.memory"] = "1GiB" }, devices = { eth0 = NIC } } }
    apply(source)
    source.profiles.base.config["user.a"] = "1"
    local metadata, live = plan(source, { allow = 0 }), plan(source, { allow = 1 })
    server.profiles.base.config["limits.memory"] = "2GiB"
    local report, err = metadata:apply()
    assert.is_nil(report)
    assert.matches("of danger 1", tostring(err))
    assert.are.equal("2GiB", server.profiles.base.config["limits.memory"])
    server.profiles.base.devices.eth0.mtu = "1400" -- not ours, and it stays
    assert(live:apply())
    assert.are.equal("1GiB", server.profiles.base.config["limits.memory"])
    source.profiles.base.config["user.a"] = "2"
    live = plan(source, { allow = 1 })
    server.profiles.base.devices.eth0.network = "br1"
    report, err = live:apply()
    assert.is_nil(report)
    assert.matches("of danger 2", tostring(err))
    assert.are.equal("br1", server.profiles.base.devices.eth0.network)
    assert.are.equal("1400", server.profiles.base.devices.eth0.mtu)
    apply(source)
    assert.are.equal("br0", server.profiles.base.devices.eth0.network)
  end)

  it("of a restart is remembered for what somebody changes in a profile meanwhile", function()
    local source = web { state = "running", profiles = { "default", "base" } }
    source.profiles = { base = { config = { ["security.privileged"] = false } } }
    apply(source)
    source.profiles.base.config["user.a"] = "1"
    local planned = plan(source)
    server.profiles.base.config["security.privileged"] = "true"
    assert(server:client().containers("web1"):restart():wait()) -- it runs with that now
    assert.are.equal("done", assert(planned:apply()).steps["profiles/base:update"])
    assert.are.equal("false", server.profiles.base.config["security.privileged"])
    assert.are.same({ "containers/web1:restart" }, ids(plan(source).blocked))
    apply(source, { allow = 3 })
    assert.are.equal("false", server.containers.web1.runs_with["security.privileged"])
  end)

  it("counts where the value that the container sees changes, and nowhere else", function()
    local source = web { state = "running", profiles = { "default", "base" },
      config = { ["security.privileged"] = true } }
    source.profiles = { base = {} }
    apply(source)
    -- From the container to its profile: nothing changes for it.
    source.profiles.base.config = { ["security.privileged"] = true }
    source.containers.web1.config = {}
    local planned = plan(source)
    assert.are.same({ "profiles/base:update", "containers/web1:update" }, ids(planned.steps))
    assert.are.equal("none", planned.steps[1].changes[1].effect)
    assert.are.equal("none", planned.steps[2].changes[1].effect)
    assert(planned:apply())
    assert.is_true(plan(source).empty)
    -- In the profile: it does.
    source.profiles.base.config = { ["security.privileged"] = false }
    planned = plan(source)
    assert.are.equal("next_start", planned.steps[1].changes[1].effect)
    assert.are.same({ "containers/web1:restart" }, ids(planned.blocked))
    assert(planned:apply())
    assert.are.same({ "containers/web1:restart" }, ids(plan(source).blocked))
    apply(source, { allow = 3 })
    assert.is_true(plan(source).empty)
  end)

  it("of stopping is 3, of starting 1, of metadata 0", function()
    apply(web { state = "running" })
    local planned = plan(web { state = "stopped", description = "x", config = { ["user.a"] = 1 } })
    assert.are.equal(0, step(planned, "containers/web1:update").danger)
    assert.are.equal(3, step(planned, "containers/web1:stop").danger)
    assert.are.equal(3, step(plan(web { state = "frozen" }), "containers/web1:stop").danger)
    apply(web { state = "stopped" }, { allow = 3 })
    assert.are.equal("Stopped", server.containers.web1.status)
    assert.are.equal(1, step(plan(web { state = "running" }), "containers/web1:start").danger)
    apply(web { state = "frozen" })
    assert.are.equal("Frozen", server.containers.web1.status)
    apply(web { state = "running" })
    assert.are.equal("Running", server.containers.web1.status)
  end)

  it("of stopping what is ephemeral is that of losing it", function()
    local source = web { state = "running", ephemeral = true, files = { ["/a"] = {
      content = "x" } } }
    apply(source)
    source.containers.web1.state = "stopped"
    local planned = plan(source, { allow = 3 })
    assert.are.same({}, planned.steps)
    assert.are.same({ "containers/web1:replace" }, ids(planned.blocked))
    assert.are.equal(4, planned.blocked[1].danger)
    assert.are.same({ path = "state", from = "running", to = "stopped", why = "declared",
      effect = "replace" }, planned.blocked[1].changes[1])
    assert.matches("replace +running %-> stopped +data loss, BLOCKED", tostring(planned))
    source.containers.web1.image = nil
    assert.matches("no image", plan(source, { allow = 4 }).blocked[1].blocked)
    source.containers.web1.image, source.containers.web1.keep = "busybox", true
    assert.matches("keep = true", plan(source, { allow = 4 }).blocked[1].blocked)
    -- What is made ephemeral and stopped at once goes, too; what ceases to be doesn't.
    source.containers.web1.keep, source.containers.web1.ephemeral = nil, false
    assert.are.same({ "containers/web1:update", "containers/web1:stop" },
      ids(plan(source, { allow = 3 }).steps))
    source.containers.web1.ephemeral = true
    apply(source, { allow = 4 })
    assert.are.equal("Stopped", server.containers.web1.status)
    assert.are.equal("x", server.containers.web1.files["/a"].content)
    assert.is_true(plan(source).empty)
  end)

  it("of stopping is looked at again before it is done", function()
    apply(web { state = "running" })
    local source = web { state = "stopped" }
    local planned = plan(source, { allow = 3 })
    server.containers.web1.ephemeral = true
    local report, err = planned:apply()
    assert.is_nil(report)
    assert.matches("stopping deletes it", tostring(err))
    assert.are.equal("Running", server.containers.web1.status)
  end)

  it("of an unfinished start is told from drift", function()
    apply(web { state = "running" })
    server.containers.web1.status = "Stopped"
    assert.are.equal("drift", step(plan(web { state = "running" }),
      "containers/web1:start").changes[1].why)
    server.containers.web1.last_used_at = "1970-01-01T00:00:00Z"
    assert.are.equal("finish", step(plan(web { state = "running" }),
      "containers/web1:start").changes[1].why)
    apply(web {})
    assert.are.equal("declared", step(plan(web { state = "running" }),
      "containers/web1:start").changes[1].why)
  end)
end)

describe("the image", function()
  it("whose alias has moved is spoken of, and replaced only when asked to", function()
    apply(web { state = "running" })
    server.images.busybox = ("cd"):rep(32)
    local planned = plan(web { state = "running" })
    assert.is_true(planned.empty)
    assert.matches("busybox is cdcdcdcdcdcd by now", tostring(planned))
    planned = plan(web { state = "running" }, { replace_on_image = true })
    assert.are.same({ "containers/web1:replace" }, ids(planned.blocked))
    assert.are.equal(4, planned.blocked[1].danger)
    server.containers.web1.config["user.theirs"] = "kept"
    server.containers.web1.config["volatile.eth0.hwaddr"] = "00:16:3e:11:22:33"
    apply(web { state = "running" }, { replace_on_image = true, allow = 4 })
    local live = server.containers.web1
    assert.are.equal(("cd"):rep(32), live.config["volatile.base_image"])
    assert.are.equal("kept", live.config["user.theirs"])
    assert.are.equal("00:16:3e:11:22:33", live.config["volatile.eth0.hwaddr"])
    assert.are.equal("Running", live.status)
    assert.is_true(plan(web { state = "running" }, { replace_on_image = true }).empty)
  end)

  it("declared by fingerprint is compared by it, and other work goes on meanwhile", function()
    apply(web {})
    server.images.new = ("cd"):rep(32)
    local source = web { image = ("cd"):rep(6), config = { ["user.a"] = "1" }, snapshots = { "s" } }
    local planned = plan(source)
    assert.are.same({ "containers/web1:update" }, ids(planned.steps))
    assert.are.same({ "containers/web1:replace", "containers/web1:snapshot:s" },
      ids(planned.blocked))
    assert.is_true(plan(web { image = ("ab"):rep(6) }).empty)
    assert.is_true(plan(web { image = { fingerprint = ("AB"):rep(32) } }).empty)
    apply(source, { allow = 4 })
    assert.are.equal(("cd"):rep(32), server.containers.web1.config["volatile.base_image"])
    assert.is_true(plan(source).empty)
  end)

  it("keeps the state of what it replaces where none is declared", function()
    apply(web { state = "running" })
    server.images.busybox = ("cd"):rep(32)
    apply(web {}, { replace_on_image = true, allow = 4 })
    assert.are.equal("Running", server.containers.web1.status)
  end)

  it("that isn't there is told before anything is done, with everything else", function()
    local source = { stack = "shop", containers = {
      a = { image = "busybux", profiles = { "defalt" } },
      b = {},
      c = { image = ("12"):rep(8), devices = { root = { type = "disk", path = "/",
        pool = "defaul" }, eth0 = { type = "nic", network = "br1" } } },
      d = { image = { server = "https://x", alias = "whatever" } },
    } }
    assert.are.same({
      "containers.a.image: no image \"busybux\" is on the server; did you mean busybox?",
      "containers.a.profiles: no profile \"defalt\" is declared or on the server; did you mean"
        .. " default?",
      "containers.b.image: required: there is no container b yet",
      "containers.c.devices.eth0.network: no network \"br1\" is on the server; did you mean br0?",
      "containers.c.devices.root.pool: no storage pool \"defaul\" is on the server; did you mean"
        .. " default?",
      "containers.c.image: no image \"1212121212121212\" is on the server",
    }, refused(source))
    for _, request in ipairs(server.log) do
      assert.matches("^GET ", request)
    end
  end)

  it("isn't needed for what is there", function()
    apply(web {})
    assert.is_true(plan({ stack = "shop", containers = { web1 = {} } }).empty)
  end)
end)

describe("files", function()
  it("are compared by what is on the object, and read only when asked to", function()
    local source = web { files = { ["/etc/motd"] = { content = "hello", mode = "0644" } } }
    apply(source)
    server.log = {}
    assert.is_true(plan(source).empty)
    server.containers.web1.files["/etc/motd"].content = "changed by hand"
    assert.is_true(plan(source).empty)
    for _, request in ipairs(server.log) do
      assert.is_nil(request:find "GET file")
    end
    local planned = plan(source, { verify = "files" })
    assert.are.same({ { path = "files./etc/motd", from = "other content",
      to = "5 bytes, mode 0644", why = "drift", effect = "none" } }, planned.steps[1].changes)
    assert(planned:apply())
    assert.are.equal("hello", server.containers.web1.files["/etc/motd"].content)
    assert.is_true(plan(source, { verify = "files" }).empty)
    server.containers.web1.files["/etc/motd"].mode = 256
    assert.is_false(plan(source, { verify = "files" }).empty)
    server.containers.web1.files = {}
    assert.is_false(plan(source, { verify = "files" }).empty)
  end)

  it("go where another run is making the directories, too", function()
    local request = server.request
    server.request = function(self, what, f)
      local result, err = request(self, what, f)
      if what:find "^MKDIR" then
        return nil, require "lualxd.error".new("exists", { message = "file exists" })
      end
      return result, err
    end
    apply(web { files = { ["/a/b/c"] = { content = "x" } } })
    assert.are.equal("x", server.containers.web1.files["/a/b/c"].content)
  end)

  it("are pushed one by one, and left there when undeclared", function()
    local source = web { files = { ["/a"] = { content = "1" }, ["/b"] = { content = "2" } } }
    apply(source)
    source.containers.web1.files["/b"].content = "3"
    local planned = plan(source)
    assert.are.equal(1, #planned.steps[1].changes)
    assert(planned:apply())
    source.containers.web1.files["/a"] = nil
    apply(source)
    assert.are.equal("1", server.containers.web1.files["/a"].content)
    assert.is_true(plan(source).empty)
  end)
end)

describe("snapshots", function()
  it("are taken where they are missing, and never again", function()
    apply(web { snapshots = { "a" } })
    local first = server.containers.web1.snapshots.a
    assert.are.same({ "containers/web1:snapshot:b" },
      ids(plan(web { snapshots = { "a", "b" } }).steps))
    apply(web { snapshots = { "a", "b" } })
    apply(web {})
    assert.are.equal(first, server.containers.web1.snapshots.a)
    assert.truthy(server.containers.web1.snapshots.b)
  end)

  it("hold a container that is as declared", function()
    apply(web {})
    apply(web { config = { ["user.a"] = "1" }, snapshots = { "s" }, state = "running" })
    local snapshot = server.containers.web1.snapshots.s
    assert.are.equal("1", snapshot.config["user.a"])
    assert.are.equal("Running", snapshot.status)
    assert.is_nil(snapshot.config["user.lualxd.todo"])
  end)
end)

describe("a creation that the server didn't bring to its end", function()
  local source

  before_each(function()
    source = web { state = "running", files = { ["/a"] = { content = "x" } } }
    server.die_at = 2 -- created, and no more
    pcall(apply, source)
    server.die_at = nil
    server.containers.web1.config["volatile.apply_template"] = nil
  end)

  it("is begun again if that is allowed: it may have lost what it had", function()
    local created = server.containers.web1
    local planned = plan(source)
    assert.are.same({}, planned.steps)
    assert.are.same({ "containers/web1:replace", "containers/web1:push", "containers/web1:start" },
      ids(planned.blocked))
    assert.are.same({ path = "image", from = "half made", why = "finish",
      to = ("ab"):rep(6),
      effect = "replace" }, planned.blocked[1].changes[1])
    apply(source, { allow = 4 })
    assert.are_not.equal(created, server.containers.web1)
    assert.are.equal("Running", server.containers.web1.status)
    assert.is_true(plan(source).empty)
  end)

  it("is left alone while it is under way, and when it ends after all", function()
    local created = server.containers.web1
    local planned = plan(source, { allow = 4 })
    server.operations = { { id = "1", status_code = 103,
      resources = { instances = { "/1.0/instances/web1" } } } }
    assert.are.same({ "containers/web1:push", "containers/web1:start" }, ids(plan(source).steps))
    server.operations = nil
    created.config["volatile.apply_template"] = "create"
    assert(planned:apply())
    assert.are.equal(created, server.containers.web1)
    assert.is_true(plan(source).empty)
  end)

  it("isn't seen in what has run, or isn't ours", function()
    local config = server.containers.web1.config
    config["user.lualxd.owner"] = nil
    local planned = plan(source, { adopt_existing = true })
    assert.are.same({ "containers/web1:adopt", "containers/web1:push", "containers/web1:start" },
      ids(planned.steps))
    assert(planned:apply())
    server.containers.web1.status = "Stopped"
    assert.are.same({ "containers/web1:start" }, ids(plan(source).steps))
  end)
end)

describe("a state that an interrupted run owed", function()
  it("isn't owed any more once it came about", function()
    local source = web { config = { ["security.privileged"] = true } }
    apply(source)
    local config = server.containers.web1.config
    assert(server:client().containers("web1"):start():wait())
    config["user.lualxd.todo"] = "start"
    local planned = plan(source)
    assert.are.same({ "containers/web1:update" }, ids(planned.steps))
    assert.are.same({ { path = "state", from = "running", to = "running", why = "finish",
      effect = "none" } }, planned.steps[1].changes)
    assert(planned:apply())
    assert(server:client().containers("web1"):stop():wait())
    assert.is_true(plan(source).empty)
  end)

  -- Applies, and dies at the first change of a state.
  local function die(source, settings)
    function server:request(what, f)
      if what:find("^STATE") then
        error("died before " .. what, 0)
      end
      return getmetatable(self).request(self, what, f)
    end
    assert.is_false(pcall(reconcile.apply, server:client(), source, settings))
    server.request = nil
  end

  it("is known of what was made anew, where none is declared", function()
    for _, state in ipairs { "running", "frozen" } do
      server = model.new()
      apply(web { state = state })
      server.images.new = ("cd"):rep(32)
      local source = web { image = ("cd"):rep(32) }
      die(source, { allow = 4 })
      assert.are.equal("Stopped", server.containers.web1.status)
      local start = step(plan(source), "containers/web1:start")
      assert.are.same({ { path = "state", from = "stopped", to = state, why = "finish",
        effect = "none" } }, start.changes)
      apply(source)
      assert.are.equal(state, server.containers.web1.status:lower())
      assert.is_true(plan(source).empty)
    end
  end)

  it("is known where it counts at creation only", function()
    local source = web { state = words.ignore "running" }
    die(source)
    apply(source)
    assert.are.equal("Running", server.containers.web1.status)
    assert.is_true(plan(source).empty)
    assert(server:client().containers("web1"):stop():wait())
    assert.is_true(plan(source).empty)
  end)
end)

describe("an apply", function()
  it("reports each step, and goes on where it can", function()
    local source = web { state = "running" }
    source.containers.web2 = { image = "busybox", state = "running" }
    source.containers.web3 = { image = "busybox", after = "web1" }
    local original = server.request
    server.request = function(self, what, f)
      if what == "STATE start /1.0/containers/web1" then
        return nil, require "lualxd.error".new("failed", { message = "no room" })
      end
      return original(self, what, f)
    end
    local events = {}
    local report, err = plan(source):apply { progress = function(event)
      events[event.step.id] = (events[event.step.id] or "") .. event.state .. " "
      assert.are.equal(event.state == "failed", event.err ~= nil)
    end }
    assert.is_nil(report)
    assert.are.equal("many", err.kind)
    assert.are.equal("1 of 5 steps failed; first: containers/web1:start: no room", tostring(err))
    assert.are.same({
      ["containers/web1:create"] = "done", ["containers/web1:start"] = "failed",
      ["containers/web2:create"] = "done", ["containers/web2:start"] = "done",
      ["containers/web3:create"] = "skipped",
    }, err.report.steps)
    assert.are.equal("running done ", events["containers/web2:start"])
    assert.are.equal("running failed ", events["containers/web1:start"])
    assert.are.equal("skipped ", events["containers/web3:create"])
    server.request = nil
    apply(source)
    assert.is_true(plan(source).empty)
  end)

  it("deletes last, and not if something failed", function()
    apply(web {})
    local source = { stack = "shop", containers = { new = { image = "busybox" } } }
    local original = server.request
    server.request = function(self, what, f)
      if what == "POST containers/new" then
        return nil, require "lualxd.error".new("failed", { message = "no room" })
      end
      return original(self, what, f)
    end
    local _, err = reconcile.apply(server:client(), source, { prune = true, allow = 4 })
    assert.are.equal("skipped", err.report.steps["containers/web1:delete"])
    assert.truthy(server.containers.web1)
    server.request = nil
    apply(source, { prune = true, allow = 4 })
    assert.is_nil(server.containers.web1)
  end)

  it("plans anew what was changed under its hands", function()
    local source = web { config = { ["user.a"] = "1" } }
    apply(source)
    source.containers.web1.config["user.a"] = "2"
    local planned = plan(source)
    server.containers.web1 = nil -- gone since
    assert(planned:apply())
    assert.are.equal("2", server.containers.web1.config["user.a"])
    source.containers.web1.config["user.a"] = "3"
    planned = plan(source)
    server.containers.web1.config["user.lualxd.owner"] = nil -- nobody's since
    local report, err = planned:apply()
    assert.is_nil(report)
    assert.matches("no longer this stack's", tostring(err))
    assert.are.equal("2", server.containers.web1.config["user.a"])
  end)

  it("goes on with what waited for that, unless something else went wrong", function()
    local source = web { config = { ["user.a"] = "1" } }
    source.containers.old = { image = "busybox" }
    apply(source)
    source.containers.web1.config["user.a"] = "2"
    source.containers.old = nil
    source.containers.web2 = { image = "busybox", after = { "web1" }, snapshots = { "s" } }
    local planned = plan(source, { prune = true, allow = 4 })
    server.containers.web1 = nil -- gone since
    local report = assert(planned:apply())
    for id, state in pairs(report.steps) do
      assert.are.equal("done", state, id)
    end
    assert.truthy(server.containers.web2.snapshots.s)
    assert.is_nil(server.containers.old)
    assert.is_true(plan(source, { prune = true }).empty)

    source.containers.web1.config["user.a"] = "3"
    source.containers.web2 = nil
    source.containers.web3 = { image = "busybox", after = { "web1" } }
    source.containers.bad = { image = "busybox" }
    planned = plan(source, { prune = true, allow = 4 })
    server.containers.web1 = nil
    function server:request(what, f)
      if what == "POST containers/bad" then
        return nil, require "lualxd.error".new("failed", { message = "no room" })
      end
      return getmetatable(self).request(self, what, f)
    end
    local _, err = planned:apply()
    server.request = nil
    assert.are.equal("skipped", err.report.steps["containers/web2:delete"])
    assert.truthy(server.containers.web2)
    assert.truthy(server.containers.web3)
  end)

  it("may come late, and twice", function()
    local source = web { state = "running", files = { ["/a"] = { content = "x" } },
      snapshots = { "s" } }
    local planned = plan(source)
    assert(planned:apply())
    local live = model.copy(server.containers)
    assert(planned:apply())
    assert.are.same(live.web1.config["user.lualxd.owner"],
      server.containers.web1.config["user.lualxd.owner"])
    assert.is_true(plan(source).empty)
  end)

  it("refuses wrong options loudly", function()
    local client = server:client()
    for _, settings in ipairs { { alow = 3 }, { allow = 5 }, { allow = "3" }, { verify = "all" },
      { prune = 1 }, { parallel = 2 } } do
      assert.has_error(function()
        reconcile.plan(client, { stack = "s" }, settings)
      end)
    end
    assert.has_error(function()
      reconcile.plan(client, nil)
    end)
    assert.has_error(function()
      reconcile.apply(client, { stack = "s" }, { parallel = 0 })
    end)
    assert.has_error(function()
      plan({ stack = "s" }):apply { paralel = 1 }
    end)
  end)
end)

describe("the text of a plan", function()
  local source

  before_each(function()
    source = {
      stack = "shop",
      profiles = { base = { config = { ["limits.memory"] = "256MiB" },
        devices = { root = { type = "disk", path = "/", pool = "default" } } } },
      containers = {},
    }
    for index = 1, 3 do
      source.containers["web" .. index] = { image = "busybox", profiles = { "base" },
        config = { ["boot.autostart"] = true }, state = "running", snapshots = { "pristine" },
        files = { ["/etc/motd"] = { content = "hello\n", mode = "0644" } },
        ready = { exec = { "test", "-e", "/etc/motd" }, timeout = 30 } }
    end
  end)

  it("tells what is alike once", function()
    assert.are.equal([[
Stack shop

  profile base
    + create
        config.limits.memory   256MiB
        devices.root           disk, path /, pool default

  containers web1, web2, web3
    + create
        config.boot.autostart  true
        image                  busybox (abababababab)
        profiles               base
    + push /etc/motd           6 bytes, mode 0644
    > start
    ? ready                    test -e /etc/motd
    + snapshot pristine

Plan: 4 to create, 3 to push files to, 3 to start, 3 to snapshot.]], tostring(plan(source)))
    apply(source)
    assert.are.equal("Stack shop\n\nNothing to do: all 4 declared objects are as they should be.",
      tostring(plan(source)))
  end)

  it("has what a change does and why beside it, and what is blocked with the reason", function()
    apply(source)
    server.profiles.base.config["limits.memory"] = "1GiB"
    server.containers.web2.status = "Stopped"
    source.containers.web1.config = { ["security.privileged"] = true }
    source.containers.web3 = nil
    assert.are.equal([[
Stack shop

  profile base
    ~ update
        config.limits.memory        1GiB -> 256MiB     live, drift

  container web1
    ~ update
        config.boot.autostart       true -> (none)     released
        config.security.privileged  (none) -> true     at next start
    #> restart                                         downtime, ]]
      .. [[BLOCKED: danger 3; needs allow = 3
    ? ready                         test -e /etc/motd  ]]
      .. [[BLOCKED: waits for its restart, which is blocked

  container web2
    > start                                            drift
    ? ready                         test -e /etc/motd

  no longer declared  (prune = true deletes what isn't kept)
    container web3

Plan: 2 to update, 1 to start. 2 steps are blocked.]], tostring(plan(source)))
  end)

  it("of nothing but a wait says so", function()
    apply(source)
    server.containers.web1.config["user.lualxd.todo"] = "ready"
    assert.matches("\n\nPlan: 1 to wait for%.$", tostring(plan(source)))
  end)

  it("tells what changes from what is only taken over", function()
    source = web { config = { ["user.long"] = ("x"):rep(60) .. "1", ["user.pw"] = words.secret "a" } }
    apply(source)
    source.containers.web1.config = { ["user.long"] = ("x"):rep(60) .. "2",
      ["user.pw"] = words.secret "b", ["user.gone"] = words.unset }
    assert.are.equal(("x"):rep(45) .. "... -> " .. ("x"):rep(45) .. "...",
      tostring(plan(source)):match "user%.long +(x.-)\n")
    assert.matches("user%.pw +%(secret%) %-> %(secret, changed%)\n", tostring(plan(source)))
    assert.matches("user%.gone +is so already, ours from now on\n", tostring(plan(source)))
    apply(source)
    source.containers.web1.config["user.gone"] = nil
    assert.matches("user%.gone +left as it is, no longer ours\n", tostring(plan(source)))
  end)

  it("keeps values on their line, whatever is in them", function()
    apply(source)
    source.containers.web1.config["user.text"] = "one\ntwo\nthree\27[31m" .. ("ü"):rep(100)
    local text = tostring(plan(source))
    assert.is_nil(text:find "[%z\1-\9\11-\31]")
    assert.truthy(text:find("(none) -> one\\ntwo\\nthree\\x1b[31müüü", 1, true))
    assert.truthy(text:find "ü%.%.%. %(2 lines%)\n")
  end)

  it("is coloured only when asked to", function()
    local planned = plan(source)
    assert.is_nil(planned:text():find "\27")
    assert.truthy(planned:text { color = true }:find "\27%[32m    %+ create")
    assert.are.equal(tostring(planned), (planned:text { color = true }:gsub("\27%[%d*m", "")))
  end)

  it("as JSON has everything, in a fixed order", function()
    apply(source)
    server.profiles.base.config["limits.memory"] = "1GiB"
    local planned = plan(source)
    assert.are.equal('{"blocked":[],"empty":false,"format":1,"notes":[],"orphans":[],'
      .. '"stack":"shop","steps":[{"action":"update","changes":[{"effect":"live","from":"1GiB",'
      .. '"path":"config.limits.memory","to":"256MiB","why":"drift"}],"danger":1,'
      .. '"id":"profiles/base:update","kind":"profiles","name":"base","needs":[],'
      .. '"project":"default"}]}', planned:json())
    assert.are.same(planned.steps[1].changes, json.decode(planned:json()).steps[1].changes)
  end)
end)
