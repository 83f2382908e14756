-- The promise of a change, against a real LXD.
local core = require "lualxd.core"
local imitation = require "spec.support.imitation"
local lxd = require "lualxd"
local server = require "spec.support.lxd"

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

local function create(name)
  return client.containers:create { name = name or server.name "c", source = server.source }
end

-- Runs a script in another process of the same Lua; gives what it printed.
local function script(text, prefix)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
  local ok, out = server.shell((prefix or "") .. interpreter .. " " .. path)
  os.remove(path)
  return out, ok
end

describe("operation:wait", function()
  it("gives the final object of an async change, and true for a sync one", function()
    local name = server.name "c"
    local op = create(name)
    local data = assert(op:wait())
    assert.are.equal("Success", data.status)
    assert.are.equal(200, data.status_code)
    assert.are.equal(op.id, data.id)
    assert.are.equal("Success", op:status())
    assert.is_true(client.profiles:create { name = server.name "p" }:wait())
  end)

  it("gives the same answer twice, and the same error", function()
    local op = create()
    assert.are.equal(op:wait(), op:wait())
    op = client.profiles "nowhere":delete()
    local _, first = op:wait()
    local _, second = op:wait()
    assert.are.equal(first, second)
    assert.are.equal("not_found", first.kind)
    assert.are.equal("Failure", op:status())
  end)

  it("tells what request began what failed in the background", function()
    local name = server.name "c"
    local _, err = client.containers:create {
      name = name, source = { type = "image", alias = "no-such-image" },
    }:wait()
    assert.are.equal("POST /1.0/containers", err.request)
    assert(create(name):wait())
    _, err = client.containers(name):restore("no-such-snapshot"):wait()
    assert.are.equal("not_found", err.kind)
    assert.are.equal("PUT /1.0/containers/" .. name, err.request)
  end)

  it("takes no end of patience for an answer", function()
    local name = server.name "c"
    assert(create(name):wait())
    assert(client.containers(name):start():wait())
    -- An init that has just begun doesn't hear the signal yet, and LXD sends one only.
    assert(client.containers(name):exec { "sh", "-c",
      "until grep -q 'SigCgt:.*[1-9a-f]' /proc/1/status; do sleep 0.01; done" })
    -- The shutdown takes a moment: the container's init has to end.
    local op = client.containers(name):stop { timeout = 20 }
    local data, err = op:wait(0.001)
    assert.is_nil(data)
    assert.are.equal("timeout", err.kind)
    assert(op:wait())
    assert.are.equal("Stopped", server.look("/1.0/containers/" .. name).status)
  end)

  it("follows a change that was accepted through client:request", function()
    local name = server.name "c"
    local response = assert(client:request("POST", "/1.0/containers", {
      json = { name = name, source = server.source },
    }))
    assert.are.equal(202, response.status)
    assert(response.operation:wait())
    assert(server.look("/1.0/containers/" .. name))
  end)

  it("fails when its client was closed, instead of waiting for ever", function()
    local other = server.connect()
    local response = assert(other:request("POST", "/1.0/containers", {
      json = { name = server.name "c", source = server.source },
    }))
    other:close()
    local data, err = response.operation:wait(5)
    assert.is_nil(data)
    assert.are.equal("cancelled", err.kind)
  end)

  it("is answered for many at once over few connections", function()
    local engine = client._scope.link.engine
    local before, ops = engine:connects(), {}
    for i = 1, 12 do
      ops[i] = create()
    end
    local results = assert(lxd.wait_all(ops))
    assert.are.equal(12, #results)
    assert.is_true(engine:connects() - before <= 9) -- 8 for requests, one for events
  end)
end)

describe("an operation that has vanished", function()
  -- LXD forgets an operation 5 s after its end: one pause for all of these.
  local ops, names, old = {}, {}, nil

  setup(function()
    client:close() -- it may listen to events, and know
    client = server.connect()
    client._scope.link.feedless = true -- as where the server tells no events
    for _, stem in ipairs { "existing", "started", "stopped", "deleted", "renamed", "restarted", "updated" } do
      names[stem] = server.name "c"
      assert(create(names[stem]):wait())
    end
    for _, stem in ipairs { "stopped", "restarted" } do
      assert(client.containers(names[stem]):start():wait())
    end
    names.created, names.target = server.name "c", server.name "c"
    local function item(stem)
      return client.containers(names[stem])
    end
    old = client.containers(names.updated):get()
    ops.created = create(names.created)
    ops.existing = create(names.existing)
    ops.started = item "started":start()
    ops.stopped = item "stopped":stop { force = true }
    ops.deleted = item "deleted":delete()
    ops.renamed = item "renamed":rename(names.target)
    ops.restarted = item "restarted":restart { force = true }
    ops.snapshot = item "existing".snapshots:create { name = "s" }
    ops.updated = item "updated":put(old)
    local started = core.now()
    repeat
      lxd.sleep(0.25)
      local all_gone = true
      for _, op in pairs(ops) do
        all_gone = all_gone and op.id and client.operations(op.id):exists() == false
      end
    until all_gone or core.now() - started > 30
  end)

  it("is found out from the object", function()
    for _, stem in ipairs { "created", "started", "stopped", "deleted", "renamed", "snapshot" } do
      local data, err = ops[stem]:wait()
      assert(data, stem .. ": " .. tostring(err))
      assert.are.equal("Success", data.status)
      assert.are.equal(ops[stem].id, data.id)
    end
  end)

  it("is not taken for a success because an object of that name is there", function()
    local data, err = ops.existing:wait()
    assert.is_nil(data)
    assert.are.equal("exists", err.kind)
  end)

  it("is unknown where the object can't tell", function()
    for _, stem in ipairs { "restarted", "updated" } do
      local data, err = ops[stem]:wait()
      assert.is_nil(data)
      assert.are.equal("unknown_outcome", err.kind, stem)
    end
  end)
end)

describe("lxd.wait_all", function()
  it("waits for all, whatever fails", function()
    local good = server.name "c"
    local results, err = lxd.wait_all {
      client.profiles "nowhere":delete(),
      create(good),
      client.containers "nowhere":start(),
    }
    assert.is_nil(results)
    assert.are.equal("many", err.kind)
    assert.matches("^2 of 3 failed; first: delete profile nowhere", tostring(err))
    assert.are.equal("not_found", err.errors[1].kind)
    assert.is_nil(err.errors[2])
    assert.are.equal("not_found", err.errors[3].kind)
    assert.are.equal("Success", err.results[2].status)
    assert.are.same({}, lxd.wait_all {})
  end)
end)

describe("operation:progress", function()
  it("is told of the stages while something waits", function()
    local seen = {}
    local op = create():progress(function(progress)
      seen[#seen + 1] = progress
    end)
    assert(op:wait())
    assert.is_true(#seen >= 1)
    local last = seen[#seen]
    assert.are.equal("create_instance_from_image_unpack", last.stage)
    assert.are.equal(100, last.percent)
    assert.is_number(last.speed)
  end)

  it("raises the function's error where the change is waited for, and the change goes on", function()
    local op = create():progress(function()
      error "in the function"
    end)
    local ok, message = pcall(op.wait, op)
    assert.is_false(ok)
    assert.matches("in the function", message)
    assert(op:wait())
  end)
end)

describe("operation:cancel", function()
  it("tells when the server won't", function()
    local op = create()
    local ok, err = op:cancel()
    -- LXD 5.0 lets nobody cancel the creation of a container.
    assert.is_nil(ok)
    assert.is_table(err)
    assert(op:wait())
  end)

  it("refuses when there is nothing to cancel", function()
    local op = client.profiles:create { name = server.name "p" }
    assert(op:wait())
    local ok, err = op:cancel()
    assert.is_nil(ok)
    assert.are.equal("state", err.kind)
  end)
end)

describe("a change that nobody waited for", function()
  it("goes on while anything waits, and is told of if it failed", function()
    local told = {}
    lxd.on_unwaited = function(err)
      told[#told + 1] = err
    end
    finally(function()
      lxd.on_unwaited = nil
    end)
    local name = server.name "p"
    client.profiles:create { name = name }
    local function fail()
      local failing = client.profiles "nowhere":delete()
      while failing:status() == "Pending" do
        lxd.sleep(0.01)
      end
    end
    fail()
    lxd.sleep(0.1)
    collectgarbage()
    collectgarbage()
    assert(server.look("/1.0/profiles/" .. name))
    assert.are.equal(1, #told)
    assert.matches("delete profile nowhere", tostring(told[1]))
  end)

  it("is silent when its failure was waited for", function()
    local told = 0
    lxd.on_unwaited = function()
      told = told + 1
    end
    finally(function()
      lxd.on_unwaited = nil
    end)
    client.profiles "nowhere":delete():wait()
    collectgarbage()
    collectgarbage()
    assert.are.equal(0, told)
  end)
end)

describe("the end of a script", function()
  local HEAD = 'local lxd = require "lualxd"; local client = assert(lxd.connect()); '

  it("sends what is unsent, many changes and those of several steps too", function()
    local stem = server.name "e"
    local name = server.name "c"
    assert(create(name):wait())
    local out, ok = script(HEAD .. string.format([[
      for i = 1, 20 do client.profiles:create { name = "%s-" .. i } end
      client.containers "%s":patch { description = "at the end" }
    ]], stem, name))
    assert.is_true(ok, out)
    assert.are.equal("", out)
    local ops = {}
    for i = 1, 20 do
      assert(server.look("/1.0/profiles/" .. stem .. "-" .. i), i)
      ops[i] = client.profiles(stem .. "-" .. i):delete()
    end
    assert(lxd.wait_all(ops))
    assert.are.equal("at the end", server.look("/1.0/containers/" .. name).description)
  end)

  it("sends it also when the script dies of an error or closes the client", function()
    local one, other = server.name "p", server.name "p"
    local _, ok = script(HEAD .. string.format('client.profiles:create { name = "%s" } error "x"', one))
    assert.is_false(ok)
    assert(server.look("/1.0/profiles/" .. one))
    _, ok = script(HEAD .. string.format(
      'client.profiles:create { name = "%s" } client:close()', other))
    assert.is_true(ok)
    assert(server.look("/1.0/profiles/" .. other))
  end)

  it("takes as long as the client's time-out at most", function()
    local imitated = imitation.start { mode = "operations" }
    imitated:rules { method = "POST", steps = { { delay = 0.6 }, { async = true } } }
    local started = core.now()
    local _, ok = script(string.format([[
      local client = assert(require("lualxd").connect { socket = %q, timeout = 1, connections = 1 })
      for i = 1, 6 do client.profiles:create { name = "p" .. i } end
    ]], imitated.socket))
    assert.is_true(ok)
    assert.is_true(core.now() - started < 3.5) -- all six take 3.6
    assert.are.equal(2, #(imitated:record()) - 1)
    imitated:stop()
  end)

  it("names a failure on standard error", function()
    local out, ok = script(HEAD .. 'client.profiles "nowhere":delete()')
    assert.is_true(ok)
    assert.matches("^lualxd: nobody waited for a change that failed: delete profile nowhere: [^\n]*\n$", out)
  end)
end)

describe("client:close", function()
  it("leaves no descriptor, and changes after it fail by wait", function()
    collectgarbage()
    collectgarbage()
    collectgarbage()
    local before = server.descriptors()
    local other = server.connect()
    assert(other.profiles:names())
    other:close()
    other:close()
    assert.are.equal(before, server.descriptors())
    local _, err = other.profiles:names()
    assert.are.equal("cancelled", err.kind)
    _, err = other.profiles "x":delete():wait()
    assert.are.equal("cancelled", err.kind)
  end)

  it("is done by the collector, too", function()
    collectgarbage()
    collectgarbage()
    local before = server.descriptors()
    for _ = 1, 20 do
      assert(server.connect().profiles:names())
    end
    collectgarbage()
    collectgarbage()
    assert.are.equal(before, server.descriptors())
  end)

  it("ends the operations that are waited for", function()
    local other = server.connect()
    local name = server.name "c"
    assert(other.containers:create { name = name, source = server.source }:wait())
    assert(other.containers(name):start():wait())
    local op = assert(other:request("POST", "/1.0/containers/" .. name .. "/exec", {
      json = { command = { "sleep", "2" }, ["wait-for-websocket"] = false },
    })).operation
    local _, err = lxd.run(function()
      local waiting = lxd.spawn(op.wait, op)
      lxd.sleep(0.1)
      other:close()
      return waiting:join()
    end)
    assert.are.equal("cancelled", err.kind)
  end)
end)
