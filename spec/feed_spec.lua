-- Many operations of a real LXD waited for at once: on one connection of events, and without it.
local core = require "lualxd.core"
local feed = require "lualxd.feed"
local imitation = require "spec.support.imitation"
local lxd = require "lualxd"
local relays = require "spec.support.relay"
local server = require "spec.support.lxd"
local turns = require "lualxd.turns"

local name

setup(function()
  local client = server.connect()
  name = server.name "c"
  assert(client.containers:create { name = name, source = server.source }:wait())
  assert(client.containers(name):start():wait())
  client:close()
end)

teardown(server.clean)

-- An operation that ends by itself: a command, run without WebSockets.
local function sleep(client, seconds)
  local response = assert(client:request("POST", "/1.0/instances/" .. name .. "/exec", {
    json = { command = lxd.array { "sleep", seconds }, environment = {} },
  }))
  return response.operation
end

local function count(requests, pattern)
  local found = 0
  for _, line in ipairs(requests) do
    found = found + (line:find(pattern) and 1 or 0)
  end
  return found
end

-- Has a client listen to the events.
local function listening(client)
  local tries = 0
  repeat -- they may be over before it is there
    tries = tries + 1
    assert(lxd.wait_all { sleep(client, "0.3"), sleep(client, "0.3") })
    local feed_now = client._scope.link.feed
  until feed_now and feed_now.since or tries > 20
  local link = client._scope.link
  assert.is_number(link.feed.since)
  while link.engine:count() > 0 do -- what had begun before it was there is looked at
    lxd.sleep(0.01)
  end
end

local function begin(client, amount, seconds)
  local ops = {}
  for index = 1, amount do
    ops[index] = sleep(client, seconds)
  end
  return ops
end

describe("operations that are waited for at once", function()
  it("wait without a request of their own", function()
    local client, requests = server.tracing()
    listening(client)
    local before = #requests
    local results = assert(lxd.wait_all(begin(client, 20, "0.5")))
    for index = 1, 20 do
      assert.are.equal("Success", results[index].status)
      assert.are.equal(0, results[index].metadata["return"])
    end
    assert.are.equal(20, #requests - before)
    client:close()
  end)

  it("may have ended before anyone asks, and long ago", function()
    local client, requests = server.tracing()
    listening(client)
    local op = sleep(client, "0")
    lxd.sleep(5.5)
    local before = #requests
    assert.is_false(client.operations(op.id):exists())
    assert.are.equal("Success", assert(op:wait()).status)
    assert.are.equal(before + 1, #requests)
    client:close()
  end)

  it("may have ended and been forgotten before anyone waits for the first", function()
    local client = server.connect()
    local ops = begin(client, 3, "0.5")
    lxd.sleep(6)
    for _, op in ipairs(ops) do
      assert.is_false(client.operations(op.id):exists())
      assert.are.equal("Success", op:status())
      assert.are.equal(0, assert(op:wait()).metadata["return"])
    end
    client:close()
  end)

  it("were begun before anyone listened: each is looked at once", function()
    local client, requests = server.tracing()
    local ops = begin(client, 20, "0.6")
    local started = core.now()
    assert(lxd.wait_all(ops))
    assert.is_true(core.now() - started < 20)
    assert.is_true(count(requests, "/wait") <= 7)
    client:close()
  end)

  it("are waited for by requests when the connection is lost, and again by events when it is back", function()
    local relay = relays.start(server.socket)
    local client, requests = server.tracing { socket = relay.socket, timeout = 5 }
    listening(client)
    local ops = begin(client, 6, "1")
    local problem
    lxd.run(function()
      lxd.spawn(function()
        lxd.sleep(0.2)
        relay:cut()
        lxd.sleep(0.2)
        relay:mend()
      end)
      local results, err = lxd.wait_all(ops)
      problem = not results and err or nil
    end)
    assert.is_nil(problem)
    listening(client)
    local before = #requests
    assert(lxd.wait_all(begin(client, 5, "0.1")))
    assert.are.equal(5, #requests - before)
    client:close()
    relay:stop()
  end)

  it("may be over before the connection is back", function()
    local relay = relays.start(server.socket)
    local client = server.connect { socket = relay.socket, timeout = 15 }
    listening(client)
    local ops = begin(client, 6, "2")
    lxd.run(function()
      local waiting = lxd.spawn(lxd.wait_all, ops)
      lxd.sleep(0.1)
      relay:cut()
      lxd.sleep(2.5)
      for _, op in ipairs(ops) do
        assert.are_not.equal("Success", op:status())
      end
      relay:mend()
      local results = assert(waiting:join())
      for index = 1, 6 do
        assert.are.equal(0, results[index].metadata["return"])
      end
    end)
    client:close()
    relay:stop()
  end)

  it("tell their progress by events", function()
    local client, requests = server.tracing()
    listening(client)
    local before = #requests
    local op = sleep(client, "0.8"):progress(function() end)
    assert(op:wait())
    assert.are.equal(1, #requests - before)
    client:close()
  end)

  it("are left by a wait that runs out of time, and found by the next", function()
    local client = server.connect()
    listening(client)
    local op = sleep(client, "0.4")
    local data, err = op:wait(0.05)
    assert.is_nil(data)
    assert.are.equal("timeout", err.kind)
    assert.are.equal("Success", assert(op:wait(5)).status)
    assert.is_nil(next(client._scope.link.riders))
    client:close()
  end)

  it("end for who waits when the client is closed", function()
    local client = server.connect()
    listening(client)
    local op = sleep(client, "2")
    local data, err
    lxd.run(function()
      lxd.spawn(function()
        lxd.sleep(0.1)
        client:close()
      end)
      data, err = op:wait()
    end)
    assert.is_nil(data)
    assert.are.equal("cancelled", err.kind)
  end)
end)

describe("an operation that nobody waits for", function()
  it("is known to have failed, once events are listened to", function()
    local told = {}
    lxd.on_unwaited = function(err)
      told[#told + 1] = err
    end
    finally(function()
      lxd.on_unwaited = nil
    end)
    local client = server.connect()
    listening(client)
    -- It is collected no earlier than it is known to have failed: held until then, by a frame that is gone then.
    local function fail()
      local failing = client:request("POST", "/1.0/instances/" .. name .. "/exec", {
        json = { command = lxd.array { "/nowhere" }, environment = {} },
      })
      local deadline = core.now() + 10
      while failing.operation:status() ~= "Failure" and core.now() < deadline do
        lxd.sleep(0.05)
      end
      assert.are.equal("Failure", failing.operation:status())
    end
    local ops = begin(client, 2, "0.3")
    fail()
    assert(lxd.wait_all(ops))
    for _ = 1, 100 do
      collectgarbage()
      if #told > 0 then
        break
      end
      lxd.sleep(0.02)
    end
    assert.are.equal(1, #told)
    assert.matches("Command not found", tostring(told[1]))
    client:close()
  end)
end)

describe("the operations of an imitation", function()
  local imitated, client

  before_each(function()
    imitated = imitation.start { mode = "operations", events = true }
    client = assert(lxd.connect { socket = imitated.socket })
  end)

  after_each(function()
    client:close()
    imitated:stop()
  end)

  local function create(index)
    return client.containers:create { name = "c" .. index, source = server.source }
  end

  it("are looked at after a while where no event comes", function()
    local look = feed.LOOK
    feed.LOOK = 0.4
    finally(function()
      feed.LOOK = look
    end)
    local ops = { create(1), create(2), create(3):progress(function() end) }
    local results
    lxd.run(function()
      local waiting = lxd.spawn(lxd.wait_all, ops)
      lxd.sleep(0.2)
      assert.is_number(client._scope.link.feed.since)
      imitated:finish { silently = true }
      results = waiting:join()
    end)
    assert.are.equal(3, #results)
  end)

  local function eventually(f)
    local deadline = core.now() + 20
    while not f() do
      assert(core.now() < deadline, "it doesn't come about")
      lxd.sleep(0.05)
    end
  end

  -- LXD says that the connection is there a moment before it listens for it.
  it("are looked at where they ended before anyone listened, and nobody waits", function()
    imitated:events { late = 0.5 }
    local ops = { create(1), create(2) }
    lxd.sleep(0.2)
    assert.is_nil(feed.since(client._scope.link))
    imitated:finish()
    assert.are.equal("Running", ops[1]:status())
    eventually(function()
      return ops[1]:status() == "Success" and ops[2]:status() == "Success"
    end)
  end)

  it("are listened for after a while, though it is only one and nobody waits", function()
    local alone = feed.ALONE
    feed.ALONE = 0.2
    finally(function()
      feed.ALONE = alone
    end)
    local op = create(1)
    eventually(function()
      return feed.since(client._scope.link)
    end)
    imitated:finish()
    eventually(function()
      return op:status() == "Success"
    end)
  end)

  it("leave no connection behind when nothing happens any more, nor a client that nobody has", function()
    local idle, before = feed.IDLE, server.descriptors()
    feed.IDLE = 0.2
    finally(function()
      feed.IDLE = idle
    end)
    local dropped = assert(lxd.connect { socket = imitated.socket })
    local ops = {}
    for index = 1, 3 do
      ops[index] = dropped.containers:create { name = "d" .. index, source = server.source }
    end
    local link = dropped._scope.link
    eventually(function()
      return feed.since(link)
    end)
    imitated:finish()
    assert(lxd.wait_all(ops))
    eventually(function()
      return not link.feed
    end)
    dropped, ops, link = nil, nil, nil -- luacheck: ignore 311
    eventually(function()
      collectgarbage()
      return server.descriptors() <= before
    end)
  end)

  it("are told by a server that doesn't ping, too", function()
    imitated:events { pings = false }
    local ops = { create(1), create(2) }
    eventually(function()
      return feed.since(client._scope.link)
    end)
    imitated:finish()
    eventually(function()
      return ops[1]:status() == "Success" and ops[2]:status() == "Success"
    end)
  end)

  it("are known to have ended where that was told before they were answered, and nobody waits", function()
    local ops = { create(1), create(2) }
    lxd.sleep(0.2)
    imitated:rules { method = "POST", slow = 0.3 }
    ops[3] = create(3)
    lxd.sleep(0.1)
    imitated:finish { code = 400, err = "no such luck" }
    lxd.sleep(0.4)
    assert.are.equal("Failure", ops[3]:status())
    local _, err = lxd.wait_all(ops)
    assert.matches("^3 of 3 failed", tostring(err))
    assert.matches("no such luck", tostring(err.errors[3]))
  end)

  it("are looked at where they were begun before the connection was there and are known only since", function()
    local ops = { create(1), create(2) }
    lxd.sleep(0.2)
    local link = client._scope.link
    assert.are.equal("Running", ops[2]:status())
    local rider = feed.expect(link, "no-such-operation", feed.since(link) - 1)
    lxd.sleep(0.2)
    assert.are.equal("not_found", rider.gone.kind)
  end)
end)

describe("the connection of events", function()
  it("may be gone again before a task that it began has its turn", function()
    local events, http = require "lualxd.events", require "lualxd.http"
    local real = { start = events.start, next = events.next, stop = events.stop, ask = http.ask }
    local met = 0
    function events.start()
      lxd.sleep(0.05)
      return {}
    end
    function events.next(stream)
      met = met + 1
      if met == 1 then
        stream.lost()
      end
      lxd.sleep(0.1)
    end
    function events.stop() end
    function http.ask()
      lxd.sleep(0)
      return nil, { kind = "connect" }
    end
    local link = { riders = {}, engine = true, has = function() return false end }
    link.waits = turns.new(link, 1)
    -- Each level drives the others in a coroutine of the script's, inside the one before.
    local function nest(levels)
      if levels == 0 then
        feed.expect(link, "a", core.now(), "a")
        feed.expect(link, "b", core.now(), "b")
        lxd.sleep(0.1)
        return
      end
      lxd.run(function()
        coroutine.wrap(function() nest(levels - 1) end)()
      end)
    end
    local ok, problem = pcall(nest, 40)
    lxd.sleep(0.3) -- until the reader has ended
    events.start, events.next, events.stop, http.ask = real.start, real.next, real.stop, real.ask
    assert.is_true(ok, problem)
    assert.are.equal(1, met)
  end)
end)
