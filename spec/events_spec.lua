-- What happens on a real LXD, as it happens; and connections that are lost, through a relay that cuts them.
local imitation = require "spec.support.imitation"
local lxd = require "lualxd"
local relays = require "spec.support.relay"
local server = require "spec.support.lxd"

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

-- The next event, within 10 s.
local function next_event(stream)
  local event
  lxd.spawn(function()
    for _ = 1, 1000 do
      if event then
        return
      end
      lxd.sleep(0.01)
    end
    stream:close()
  end)
  event = stream:each()()
  return event or error "no event came"
end

local function action(name, source)
  return function(event)
    return event.type == "lifecycle" and event.metadata.action == name
      and event.metadata.source:find(source, 1, true) ~= nil
  end
end

local function in_task(f)
  return function()
    local ok, problem
    lxd.run(function()
      ok, problem = pcall(f)
    end)
    assert(ok, problem)
  end
end

describe("events", function()
  it("of a type that isn't one are invalid, whatever status LXD gives it", function()
    local stream, err = client:events { types = { "nope" } }
    assert.is_nil(stream)
    assert.are.equal("invalid", err.kind)
  end)

  it("come as they happen, of the types that were asked for", function()
    local name = server.name "p"
    local stream = assert(client:events { types = { "lifecycle" } })
    local op = client.profiles:create { name = name }
    local types = {}
    for event in stream:each() do
      types[event.type] = true
      if action("profile-created", name)(event) then
        assert.are.equal("string", type(event.timestamp))
        break
      end
    end
    assert(op:wait())
    assert.are.same({ lifecycle = true }, types)
    stream:close()
  end)

  it("of operations have their data, to the end", function()
    local name = server.name "c"
    local stream = assert(client:events { types = { "operation" } })
    local op = client.containers:create { name = name, source = server.source }
    local seen
    for event in stream:each() do
      local data = event.metadata
      if op.id == data.id and data.status == "Success" then
        seen = data
        break
      end
    end
    assert.are.equal(200, seen.status_code)
    assert.are.equal(seen.id, assert(op:wait()).id)
    stream:close()
  end)

  it("are those of the client's project, or of all", function()
    local project, name = server.name "project", server.name "p"
    assert(client.projects:create { name = project, config = { ["features.profiles"] = true } }:wait())
    finally(function()
      server.lxc("project delete %s", project)
    end)
    local here = assert(client:events { types = { "lifecycle" } })
    local there = assert(client:project(project):events { types = { "lifecycle" } })
    local all = assert(client:events { types = { "lifecycle" }, all_projects = true })
    -- LXD sends each event by itself: two that are close may come in either order (5.0.2, lxd/events).
    local inside = client:project(project).profiles(name)
    assert(client:project(project).profiles:create { name = name }:wait())
    assert(inside:delete():wait())
    lxd.sleep(0.1)
    local mark = server.name "p"
    assert(client.profiles:create { name = mark }:wait())
    local function upto(stream, last)
      local seen = {}
      for event in stream:each() do
        if event.metadata.source:find(name, 1, true) then
          seen[#seen + 1] = event.metadata.action
        end
        if event.metadata.source:find(last, 1, true) then
          stream:close()
        end
      end
      table.sort(seen)
      return seen
    end
    assert.are.same({}, upto(here, mark))
    local both = { "profile-created", "profile-deleted" }
    assert.are.same(both, upto(all, mark))
    client:project(project).profiles:create({ name = mark }):wait()
    assert.are.same(both, upto(there, mark))
    assert(client:project(project).profiles(mark):delete():wait())
  end)

  it("are refused by the server with a reason, and by us for an argument that makes no sense", function()
    local stream, err = client:events { types = { "bogus" } }
    assert.is_nil(stream)
    assert.matches("bogus", tostring(err))
    assert.has_error(function()
      client:events { typs = {} }
    end, "client:events: unknown option 'typs'; did you mean 'types'?")
    assert.has_error(function()
      client:events { types = {} }
    end, "client:events: option 'types' is empty")
    assert.has_error(function()
      client:events { types = { 1 } }
    end, "client:events: types[1] must be string, got number")
  end)

  it("end for who waits when the stream is closed", in_task(function()
    local stream = assert(client:events())
    local waiting = lxd.spawn(function()
      local count = 0
      for _ in stream:each() do
        count = count + 1
      end
      return "ended"
    end)
    lxd.sleep(0.02)
    stream:close()
    stream:close()
    assert.are.equal("ended", waiting:join())
  end))

  it("raise where the client was closed", in_task(function()
    local other = server.connect()
    local stream = assert(other:events())
    local waiting = lxd.spawn(function()
      return pcall(function()
        for _ in stream:each() do end -- luacheck: ignore 542
      end)
    end)
    lxd.sleep(0.02)
    other:close()
    local ok, err = waiting:join()
    assert.is_false(ok)
    assert.are.equal("cancelled", err.kind)
    assert.matches("the client was closed", tostring(err))
  end))

  it("take their connection along when nobody has them any more", function()
    local other = server.connect()
    local before = server.descriptors()
    for _ = 1, 5 do
      assert(other:events())
    end
    for _ = 1, 100 do
      collectgarbage()
      lxd.sleep(0.01)
      if server.descriptors() <= before then
        break
      end
    end
    assert.is_true(server.descriptors() <= before)
    other:close()
  end)
end)

describe("events of a connection that is lost", function()
  local relay, other

  before_each(function()
    relay = relays.start(server.socket)
    other = assert(lxd.connect { socket = relay.socket, timeout = 1 })
  end)

  after_each(function()
    other:close()
    relay:stop()
  end)

  it("go on with a gap once it is back", in_task(function()
    local stream = assert(other:events { types = { "lifecycle" } })
    relay:cut()
    local lost = server.name "p"
    assert(client.profiles:create { name = lost }:wait())
    lxd.spawn(function()
      lxd.sleep(0.3)
      relay:mend()
    end)
    local gap = next_event(stream)
    assert.are.same({ type = "gap", metadata = {} }, gap)
    local name = server.name "p"
    assert(client.profiles:create { name = name }:wait())
    local event = next_event(stream)
    assert.is_true(action("profile-created", name)(event))
    stream:close()
  end))

  it("raise when the server stays away", in_task(function()
    local stream = assert(other:events())
    relay:cut()
    local ok, err = pcall(function()
      for _ in stream:each() do end -- luacheck: ignore 542
    end)
    assert.is_false(ok)
    assert.are.equal("connect", err.kind)
    ok = pcall(stream:each())
    assert.is_false(ok)
  end))

  it("raise protocol where what comes is no event", in_task(function()
    for _, text in ipairs { "hello", "[]", '{"type":"operation"}', '{"metadata":{}}' } do
      local stream = assert(other:events { types = { "lifecycle" } })
      relay:inject("\129" .. string.char(#text) .. text)
      local ok, err = pcall(function()
        for _ in stream:each() do end -- luacheck: ignore 542
      end)
      assert.is_false(ok)
      assert.are.equal("protocol", err.kind)
      assert.matches("not an event", tostring(err))
    end
  end))
end)

-- LXD says that a stream is there a moment before it listens for it.
describe("events of a server that listens later than it says", function()
  local imitated, other

  before_each(function()
    imitated = imitation.start { mode = "operations", events = true }
    imitated:events { late = 0.5 }
    other = assert(lxd.connect { socket = imitated.socket })
  end)

  after_each(function()
    other:close()
    imitated:stop()
  end)

  local function tells(stream)
    local op = other.containers:create { name = "c1", source = server.source }
    assert.are.equal("operation", next_event(stream).type)
    stream:close()
    imitated:finish()
    assert(op:wait())
  end

  it("are those of all that begins when the stream is there", in_task(function()
    tells(assert(other:events()))
  end))

  it("are those of all that begins when a gap is told", in_task(function()
    local stream = assert(other:events())
    imitated:events { late = 0.5, cut = true }
    assert.are.equal("gap", next_event(stream).type)
    tells(stream)
  end))
end)

describe("examples/events.lua", function()
  it("prints what happens, a line each, until it has seen enough", function()
    local name = server.name "p"
    local pipe = io.popen("timeout 20 " .. (jit and "luajit" or "lua" .. _VERSION:match "%d.%d")
      .. " examples/events.lua profile-created " .. name .. " 2>&1")
    assert.matches("following", pipe:read "*l")
    assert(client.profiles:create { name = name }:wait())
    local line = pipe:read "*l"
    assert.matches("^%d%d:%d%d:%d%d profile%-created +/1%.0/profiles/" .. name:gsub("%-", "%%-"), line)
    assert.is_nil(pipe:read "*l")
    pipe:close()
  end)
end)
