-- Reconciling a real LXD, each result looked at by a second way (curl, lxc): what the model
-- takes for granted.
local json = require "lualxd.json"
local lxd = require "lualxd"
local reconcile = require "lualxd.reconcile"
local server = require "spec.support.lxd"
local words = require "lualxd.words"

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

local function plan(source, settings, with)
  return assert(reconcile.plan(with or client, source, settings))
end

local function apply(source, settings)
  local report, err = reconcile.apply(client, source, settings)
  assert(report, tostring(err))
  for id, state in pairs(report.steps) do
    assert.are.equal("done", state, id)
  end
  local again = plan(source, settings)
  assert.is_true(again.empty, tostring(again))
  return report
end

local function look(name)
  return server.look("/1.0/instances/" .. name)
end

local ROOT = { type = "disk", path = "/", pool = "default" }

-- A stack of one container; its shutdown takes no time.
local function stack_of(name, fields)
  local entry = { image = server.image, profiles = {}, devices = { root = ROOT },
    config = { ["boot.host_shutdown_timeout"] = 0 } }
  for key, value in pairs(fields or {}) do
    entry[key] = value
  end
  return { stack = name, containers = { [name] = entry } }, entry
end

local function step_ids(list)
  local ids = {}
  for index, step in ipairs(list) do
    ids[index] = step.id
  end
  return ids
end

local function refused(source, settings)
  local planned, err = reconcile.plan(client, source, settings)
  assert.is_nil(planned)
  assert.are.equal("invalid", err.kind)
  return tostring(err)
end

describe("a stack on a real server", function()
  it("comes about as declared: profiles, containers, files, states, snapshots", function()
    local base, web = server.name "base", {}
    local source = { stack = base, profiles = { [base] = { devices = { root = ROOT },
      config = { ["limits.memory"] = "256MiB" }, description = "for the shop" } },
      containers = {} }
    for index = 1, 3 do
      web[index] = server.name "web"
      source.containers[web[index]] = { image = server.image, profiles = { base },
        config = { ["boot.autostart"] = true, ["limits.cpu"] = 1 }, state = "running",
        description = "number " .. index,
        files = { ["/etc/motd"] = { content = "hello\n", mode = "0644" },
          ["/srv/a/b/c"] = { content = words.secret "hush", mode = "0600", uid = 5, gid = 6 } },
        snapshots = { "pristine" },
        ready = { exec = { "test", "-e", "/srv/a/b/c" }, timeout = 30 } }
    end
    source.containers[web[3]].state = "frozen"
    source.containers[web[3]].ready = nil
    apply(source)
    local profile = server.look("/1.0/profiles/" .. base)
    assert.are.equal("256MiB", profile.config["limits.memory"])
    assert.are.equal("for the shop", profile.description)
    for index, name in ipairs(web) do
      local data = look(name)
      assert.are.equal(index == 3 and "Frozen" or "Running", data.status)
      assert.are.same({ base }, data.profiles)
      assert.are.equal("true", data.config["boot.autostart"])
      assert.are.equal("1", data.config["limits.cpu"])
      assert.are.equal("number " .. index, data.description)
      assert.truthy(server.look("/1.0/instances/" .. name .. "/snapshots/pristine"))
    end
    assert.are.equal("hello\n", server.lxc("file pull %s/etc/motd -", web[1]))
    assert.are.equal("600 5 6 hush", server.inside(web[1],
      [[stat -c "%a %u %g" /srv/a/b/c | tr "\n" " "; cat /srv/a/b/c]]))
    assert.are.equal("755 0", server.inside(web[1], "stat -c '%a %u' /srv/a/b"))
    -- The snapshot is of the container as declared.
    local copy = server.name "web"
    server.lxc("copy %s/pristine %s", web[1], copy)
    assert.are.equal("hush", server.lxc("file pull %s/srv/a/b/c -", copy))
  end)

  it("is repaired where it drifted, and nothing else is touched", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { state = "running" })
    entry.config["limits.memory"], entry.config["user.a"] = "256MiB", "1"
    apply(source)
    server.lxc("config set %s limits.memory=1GiB user.theirs=x limits.processes=99", name)
    server.lxc("config device add %s theirs disk source=/tmp path=/mnt", name)
    server.lxc("stop -f %s", name)
    local before = look(name)
    local planned = plan(source)
    assert.are.same({ "containers/" .. name .. ":update", "containers/" .. name .. ":start" },
      step_ids(planned.steps))
    assert.are.equal("drift", planned.steps[1].changes[1].why)
    assert.are.equal("drift", planned.steps[2].changes[1].why)
    assert(planned:apply())
    local after = look(name)
    assert.are.equal("256MiB", after.config["limits.memory"])
    assert.are.equal("Running", after.status)
    for _, key in ipairs { "user.theirs", "limits.processes", "volatile.uuid",
      "volatile.base_image", "user.lualxd.owner" } do
      assert.are.equal(before.config[key], after.config[key], key)
    end
    assert.are.same(before.devices.theirs, after.devices.theirs)
    assert.is_true(plan(source).empty)
    -- The same value in another spelling is no drift.
    server.lxc("config set %s limits.memory=262144KiB", name)
    assert.is_true(plan(source).empty)
  end)

  it("takes as many requests to find unchanged, however large it is", function()
    local names, source = {}, { stack = server.name "n", containers = {} }
    local function requests()
      local counting, list = server.tracing()
      local before = #list
      assert.is_true(plan(source, nil, counting).empty)
      counting:close()
      return #list - before
    end
    local counts = {}
    for _, more in ipairs { 1, 9 } do
      for _ = 1, more do
        names[#names + 1] = server.name "c"
        source.containers[names[#names]] = { image = server.image, profiles = {},
          devices = { root = ROOT }, snapshots = { "s" }, files = {
            ["/etc/x"] = { content = "x" } } }
      end
      apply(source)
      counts[#counts + 1] = requests()
    end
    assert.are.equal(counts[1], counts[2])
    assert.is_true(counts[1] <= 6, counts[1])
  end)

  it("goes when it is no longer declared, if that is allowed", function()
    local base, name = server.name "base", server.name "web"
    local source, entry = stack_of(name, { state = "running", profiles = { base } })
    source.profiles = { [base] = { devices = { root = ROOT } } }
    entry.devices = nil
    apply(source)
    local nothing = { stack = source.stack }
    assert.are.equal(2, #plan(nothing).orphans)
    assert.is_true(plan(nothing).empty)
    assert.are.equal(2, #plan(nothing, { prune = true }).blocked)
    apply(nothing, { prune = true, allow = 4 })
    assert.is_nil(look(name))
    assert.is_nil(server.look("/1.0/profiles/" .. base))
  end)
end)

describe("keys", function()
  it("that are released are unset unless somebody has changed them", function()
    local name = server.name "web"
    local source, entry = stack_of(name)
    entry.config["limits.cpu"], entry.config["limits.processes"] = 1, 50
    entry.devices.tmp = { type = "disk", source = "/tmp", path = "/mnt" }
    entry.description = "ours"
    apply(source)
    server.lxc("config set %s limits.processes=60", name)
    entry.config["limits.cpu"], entry.config["limits.processes"] = nil, nil
    entry.devices.tmp, entry.description = nil, nil
    apply(source)
    local data = look(name)
    assert.is_nil(data.config["limits.cpu"])
    assert.are.equal("60", data.config["limits.processes"])
    assert.is_nil(data.devices.tmp)
    assert.are.equal("", data.description)
  end)

  it("that are secret are in the object, and nowhere else", function()
    local name = server.name "web"
    local source, entry = stack_of(name)
    entry.config["user.pw"] = words.secret "hunter2"
    local planned = plan(source)
    assert.is_nil((tostring(planned) .. planned:json()):find "hunter2")
    apply(source)
    local data = look(name)
    assert.are.equal("hunter2", data.config["user.pw"])
    data.config["user.pw"], data.expanded_config = nil, nil
    assert.is_nil(json.encode(data):find "hunter2")
    -- What the server refuses it quotes.
    entry.config["limits.memory"] = words.secret "hunter3"
    local report, err = reconcile.apply(client, source)
    assert.is_nil(report)
    assert.truthy(tostring(err):find("(secret)", 1, true), tostring(err))
    assert.is_nil(tostring(err):find "hunter3")
    local refusal = err.report.errors["containers/" .. name .. ":update"]
    assert.is_nil(json.encode { refusal.message, refusal.operation }:find "hunter3")
    -- Only the server's words can have it in them.
    entry.config["user.pw"] = words.secret(refusal.kind)
    report, err = reconcile.apply(client, source)
    assert.is_nil(report)
    assert.are.equal(refusal.kind, err.report.errors["containers/" .. name .. ":update"].kind)
  end)
end)

describe("what takes effect at the next start", function()
  it("is stored, remembered across runs, and done when allowed", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { state = "running" })
    apply(source)
    entry.config["security.privileged"] = true
    local planned = plan(source)
    assert.are.equal("next_start", planned.steps[1].changes[1].effect)
    assert.are.same({ "containers/" .. name .. ":restart" }, step_ids(planned.blocked))
    assert(planned:apply())
    local before = look(name)
    assert.are.equal("true", before.config["security.privileged"])
    assert.are_not.equal("0", server.inside(name, "awk '{print $2}' /proc/self/uid_map"):match "%d+$")
    planned = plan(source)
    assert.are.equal(0, #planned.steps)
    assert.are.equal("finish", planned.blocked[1].changes[1].why)
    apply(source, { allow = 3 })
    local after = look(name)
    assert.are_not.equal(before.last_used_at, after.last_used_at)
    assert.matches("^ *0 +0 ", server.inside(name, "cat /proc/self/uid_map"))
    assert.is_true(plan(source).empty)
  end)

  it("is over as well when somebody else restarts", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { state = "running" })
    apply(source)
    entry.config["environment.A"] = "b"
    assert(reconcile.apply(client, source))
    assert.is_false(plan(source).empty)
    server.lxc("restart -f %s", name)
    assert.is_true(plan(source).empty)
  end)

  it("comes from a profile, too", function()
    local base, name = server.name "base", server.name "web"
    local source, entry = stack_of(name, { state = "running", profiles = { base } })
    source.profiles = { [base] = { devices = { root = ROOT } } }
    entry.devices = nil
    apply(source)
    local started = look(name).last_used_at
    source.profiles[base].config = { ["environment.A"] = "b" }
    assert(reconcile.apply(client, source))
    assert.are.same({ "containers/" .. name .. ":restart" }, step_ids(plan(source).blocked))
    apply(source, { allow = 3 })
    assert.are_not.equal(started, look(name).last_used_at)
    assert.are.equal("b", server.inside(name, [[tr "\0" "\n" < /proc/1/environ | sed -n s/^A=//p]]))
  end)
end)

describe("the architecture", function()
  it("is that of the declaration, not of the image, by any of its names", function()
    local name = server.name "arch"
    local source, entry = stack_of(name, { architecture = "i386", state = "running" })
    apply(source)
    assert.are.equal("i686", look(name).architecture)
    assert.are.equal("i686", server.inside(name, "uname -m"))
    entry.architecture = "i686"
    assert.are.equal(0, #plan(source, { allow = 3 }).blocked)
    entry.architecture = "amd64"
    apply(source, { allow = 3 })
    assert.are.equal("x86_64", look(name).architecture)
    apply({ stack = name }, { prune = true, allow = 4 })
  end)
end)

describe("a root disk", function()
  it("goes to another pool by replacing what is in it", function()
    local name, pool = server.name "root", server.name "pool"
    server.lxc("storage create %s dir", pool)
    local source, entry = stack_of(name, { files = { ["/srv/a"] = { content = "hello" } } })
    apply(source)
    entry.devices = { root = { type = "disk", path = "/", pool = pool } }
    local planned = plan(source)
    assert.are.equal(0, #planned.steps)
    assert.are.equal(4, planned.blocked[#planned.blocked].danger)
    apply(source, { allow = 4 })
    assert.are.equal(pool, look(name).devices.root.pool)
    assert.are.equal("hello", server.lxc("file pull %s/srv/a -", name))
    apply({ stack = name }, { prune = true, allow = 4 })
    server.lxc("storage delete %s", pool)
  end)
end)

describe("states", function()
  it("are changed from each to each", function()
    local name = server.name "web"
    local source, entry = stack_of(name)
    local expected = { running = "Running", stopped = "Stopped", frozen = "Frozen" }
    for _, state in ipairs { "running", "frozen", "running", "stopped", "frozen", "stopped",
      "running" } do
      entry.state = state
      apply(source, { allow = 3 })
      assert.are.equal(expected[state], look(name).status)
    end
    entry.state = "stopped"
    assert.are.equal(3, plan(source).blocked[1].danger)
    entry.state = nil
    apply(source)
    assert.are.equal("Running", look(name).status)
  end)

  it("are reached against a container that won't shut down", function()
    local name = server.name "deaf"
    local source, entry = stack_of(name, { state = "running",
      config = { ["boot.host_shutdown_timeout"] = 1 }, files = { ["/sbin/deaf"] = {
        content = "#!/bin/sh\ntrap '' PWR TERM INT USR1 USR2\nwhile :; do sleep 1; done\n",
        mode = "0755" } } })
    entry.config["raw.lxc"] = "lxc.init.cmd = /sbin/deaf"
    apply(source)
    local started = look(name).last_used_at
    entry.config["environment.A"] = "b"
    apply(source, { allow = 3 })
    assert.are_not.equal(started, look(name).last_used_at)
    entry.state = "stopped"
    apply(source, { allow = 3 })
    assert.are.equal("Stopped", look(name).status)
  end)

  it("of an ephemeral container end with it", function()
    local name = server.name "eph"
    local source, entry = stack_of(name, { ephemeral = true, state = "running" })
    apply(source)
    assert.is_true(look(name).ephemeral)
    entry.ephemeral = false
    apply(source)
    assert.is_false(look(name).ephemeral)
    entry.ephemeral = true
    apply(source)
    entry.state = "stopped" -- the server deletes it then
    assert(reconcile.apply(client, source, { allow = 3 }))
    assert.are.equal("Running", look(name).status)
    apply(source, { allow = 4 })
    assert.are.equal("Stopped", look(name).status)
    assert.is_true(look(name).ephemeral)
    apply({ stack = source.stack }, { prune = true, allow = 4 })
    assert.is_nil(look(name))
  end)

  it("wait for ready, and say why it isn't", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { state = "running",
      ready = { exec = { "sh", "-c", "test -e /ok || { : > /ok; exit 3; }" }, timeout = 20 } })
    apply(source)
    entry.state = "stopped"
    entry.ready = nil
    apply(source, { allow = 3 })
    entry.state = "running"
    local function unready(command, timeout, reason)
      entry.ready = { exec = command, timeout = timeout }
      local report, err = reconcile.apply(client, source)
      assert.is_nil(report)
      assert.truthy(tostring(err):find(string.format("not ready within %g s: %s", timeout, reason), 1, true),
        tostring(err))
    end
    unready({ "false" }, 3, "the command ended with 1")
    unready({ "/later" }, 3, "the command ended with 127") -- it may come yet
    unready({ "sleep", "77" }, 0.5, "the command hasn't ended")
    -- What it said before counts, not that it was still running.
    unready({ "sh", "-c", "test ! -e /once || exec sleep 77; : > /once; exit 3" }, 3, "the command ended with 3")
    -- It isn't forgotten: the next run looks again.
    assert.are.same({ "containers/" .. name .. ":exec" }, step_ids(plan(source).steps))
    entry.ready.exec = { "true" }
    apply(source)
  end)
end)

describe("files", function()
  it("get their mode and owner when they change, too", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { state = "running", files = {
      ["/etc/motd"] = { content = "one", mode = "0644" } } })
    apply(source)
    entry.files["/etc/motd"] = { content = "two", mode = "0600", uid = 7 }
    apply(source)
    assert.are.equal("600 7 two", server.inside(name, [[stat -c "%a %u" /etc/motd | tr "\n" " "; cat /etc/motd]]))
    server.lxc("exec %s -- sh -c 'echo x > /etc/motd'", name)
    assert.is_true(plan(source).empty)
    apply(source, { verify = "files" })
    assert.are.equal("two", server.lxc("file pull %s/etc/motd -", name))
    server.lxc("exec %s -- rm /etc/motd", name)
    apply(source, { verify = "files" })
    assert.are.equal("two", server.lxc("file pull %s/etc/motd -", name))
  end)

  it("may hold any bytes", function()
    local name, bytes = server.name "web", {}
    for byte = 0, 255 do
      bytes[#bytes + 1] = string.char(byte)
    end
    local source = stack_of(name, { files = { ["/bytes"] = {
      content = table.concat(bytes):rep(100) } } })
    apply(source, { verify = "files" })
    assert.are.equal(require "lualxd.core".sha256(table.concat(bytes):rep(100)),
      server.lxc("file pull %s/bytes - | sha256sum", name):match "^%x+")
  end)
end)

describe("snapshots", function()
  it("are found again, whatever they are called", function()
    local name = server.name "web"
    local source = stack_of(name, { snapshots = { "50%", "a%41b", "x.y", "ü", ("z"):rep(50) } })
    apply(source)
    assert.are.equal(5, #server.look("/1.0/instances/" .. name .. "/snapshots"))
  end)
end)

describe("ownership", function()
  it("isn't taken from anybody, and isn't copied", function()
    local name, copy = server.name "web", server.name "web"
    server.lxc("init %s %s -c user.a=theirs", server.image, name)
    local source, entry = stack_of(name)
    entry.config = { ["user.a"] = "ours" }
    entry.profiles, entry.devices = nil, nil
    local planned = plan(source, { allow = 4, prune = true })
    assert.are.equal(0, #planned.steps)
    assert(planned:apply())
    assert.are.equal("theirs", look(name).config["user.a"])
    apply(source, { adopt_existing = true })
    assert.are.equal("ours", look(name).config["user.a"])
    server.lxc("copy %s %s", name, copy)
    assert.truthy(look(copy).config["user.lualxd.owner"])
    local before = look(copy)
    apply({ stack = source.stack }, { prune = true, allow = 4 })
    assert.is_nil(look(name))
    assert.are.same(before, look(copy))
    server.lxc("delete %s", copy)
  end)

  it("of another stack is an error that names it", function()
    local name = server.name "web"
    local source = stack_of(name)
    apply(source)
    local other = stack_of(name)
    other.stack = "another"
    assert.are.equal("containers." .. name .. ": belongs to the stack \"" .. name .. "\"",
      refused(other))
  end)

  it("survives a snapshot's return", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { snapshots = { "s" } })
    apply(source)
    entry.config["user.a"] = "1"
    apply(source)
    server.lxc("restore %s s", name)
    local planned = plan(source)
    assert.are.equal("user.a", planned.steps[1].changes[1].path:match "config%.(.*)")
    apply(source)
  end)
end)

describe("what isn't there", function()
  it("is told by plan, with everything else that is wrong", function()
    local name = server.name "web"
    local source, entry = stack_of(name, { image = "no-such-image", profiles = { "no-such" } })
    entry.devices = { root = { type = "disk", path = "/", pool = "no-such-pool" },
      eth0 = { type = "nic", network = "no-such-net" } }
    entry.project = nil
    local text = refused(source)
    for _, what in ipairs { "image: no image \"no-such-image\"", "profiles: no profile \"no-such\"",
      "root.pool: no storage pool \"no-such-pool\"", "eth0.network: no network \"no-such-net\"" } do
      assert.truthy(text:find(what, 1, true), text)
    end
    assert.is_nil(look(name))
    entry.project = "no-such-project"
    assert.matches("no project \"no%-such%-project\"", refused(source))
  end)

  it("is a cluster member, on a server that is none", function()
    local source = stack_of(server.name "web", { target = "elsewhere" })
    local report, err = reconcile.apply(client, source)
    assert.is_nil(report)
    assert.matches("[Tt]arget only allowed when clustered", tostring(err))
  end)

  it("is an image's fingerprint", function()
    local name = server.name "web"
    local fingerprint = server.look("/1.0/images/aliases/" .. server.image).target
    local source, entry = stack_of(name, { image = fingerprint:sub(1, 12) })
    apply(source)
    assert.are.equal(fingerprint, look(name).config["volatile.base_image"])
    entry.image = { fingerprint = ("0"):rep(64) }
    assert.matches("image: no image", refused(source))
  end)
end)

describe("projects", function()
  local project

  setup(function()
    project = server.name "proj"
    server.lxc("project create %s -c features.images=false -c features.profiles=true", project)
  end)

  teardown(function()
    server.lxc("project delete %s", project)
  end)

  it("have objects of their own, seen with those of others", function()
    local here, there, base = server.name "web", server.name "web", server.name "base"
    local source, entry = stack_of(here)
    source.profiles = { [base] = { project = project, devices = { root = ROOT } } }
    source.containers[there] = { image = server.image, project = project, profiles = { base },
      snapshots = { "s" }, state = "running" }
    entry.snapshots = { "s" }
    local planned = plan(source)
    assert.are.equal("containers/" .. there .. "@" .. project .. ":create",
      planned.steps[#planned.steps - 2].id)
    apply(source)
    assert.are.equal("Running",
      server.look("/1.0/instances/" .. there .. "?project=" .. project).status)
    assert.is_nil(look(there))
    -- A client of that project sees the same, and only that.
    local scoped = client:project(project)
    local own = { stack = source.stack, profiles = { [base] = { devices = { root = ROOT } } },
      containers = { [there] = source.containers[there] } }
    assert.is_true(assert(reconcile.plan(scoped, own, { prune = true, allow = 4 })).empty)
    -- What was declared from here is found in a project that is no longer named.
    source.profiles, source.containers[there] = nil, nil
    assert.are.equal(2, #plan(source).orphans)
    apply(source, { prune = true, allow = 4 })
    assert.is_nil(server.look("/1.0/instances/" .. there .. "?project=" .. project))
  end)

  it("aren't mixed up with names that look like theirs", function()
    local name = server.name "base"
    local source = { stack = name, profiles = { [name] = { project = project },
      [name .. "@" .. project] = {}, [name .. ":create"] = {} } }
    local report = apply(source)
    local base = "profiles/" .. name
    assert.are.same({ [base .. "@" .. project .. ":create"] = "done",
      [base .. "%40" .. project .. ":create"] = "done", [base .. "%3Acreate:create"] = "done" },
      report.steps)
    assert.truthy(server.look("/1.0/profiles/" .. name .. "?project=" .. project))
    assert.truthy(server.look("/1.0/profiles/" .. name .. "@" .. project))
    apply({ stack = name }, { prune = true, allow = 4 })
    assert.is_nil(server.look("/1.0/profiles/" .. name .. "?project=" .. project))
    assert.is_nil(server.look("/1.0/profiles/" .. name .. "@" .. project))
  end)

  it("that aren't there are told, of a client's scope, too", function()
    local name = server.name "nowhere"
    local planned, err = reconcile.plan(client:project(name), { stack = name, profiles = { [name] = {} } })
    assert.is_nil(planned)
    assert.are.equal("profiles." .. name .. ".project", err.errors[1].path)
    assert.truthy(err.errors[1].message:find("no project \"" .. name .. "\" is on the server", 1, true))
  end)

  it("keep stacks of one name apart", function()
    local name = server.name "web"
    local scoped = client:project(project)
    local source = stack_of(name)
    assert(reconcile.apply(scoped, source))
    assert.are.equal(0, #plan({ stack = name }).orphans)
    assert.is_true(plan({ stack = name }, { prune = true, allow = 4 }).empty)
    assert(reconcile.apply(scoped, { stack = name }, { prune = true, allow = 4 }))
    assert.is_nil(server.look("/1.0/instances/" .. name .. "?project=" .. project))
  end)
end)

describe("others who write at the same time", function()
  it("lose nothing, and what they change of ours is set right", function()
    local name = server.name "web"
    local source, entry = stack_of(name)
    apply(source)
    entry.config["user.a"] = "1"
    local meddled = 0
    local meddling = server.connect { trace = function(method, path)
      if method == "GET" and path == "/1.0/containers/" .. name and meddled < 3 then
        meddled = meddled + 1
        server.lxc("config set %s user.theirs=%d user.a=no", name, meddled)
      end
    end }
    assert(reconcile.apply(meddling, source))
    meddling:close()
    assert.are.equal(3, meddled)
    assert.are.equal("3", look(name).config["user.theirs"])
    assert.are.equal("1", look(name).config["user.a"])
    assert.is_true(plan(source).empty)
  end)

  it("and make what we want to make are found out", function()
    local name = server.name "web"
    local source = stack_of(name)
    local planned = plan(source)
    server.lxc("init %s %s", server.image, name)
    local report, err = planned:apply()
    assert.is_nil(report)
    assert.truthy(tostring(err):find("is not this stack's", 1, true), tostring(err))
    assert.is_nil(look(name).config["user.lualxd.owner"])
    server.lxc("delete %s", name)
    -- Two runs of one stack at once: one object, and both are content.
    local results = lxd.map({ plan(source), plan(source) }, function(each)
      return each:apply()
    end)
    assert.are.equal(2, #results)
    assert.is_true(plan(source).empty)
  end)
end)
