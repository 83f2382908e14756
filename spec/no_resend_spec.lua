-- No change reaches the server twice behind the caller's back, and what became of one whose answer
-- was lost is told, or said to be unknown. libcurl by itself sends a request again when a kept
-- connection turns out to be closed; the imitation does what provokes that.

local core = require "lualxd.core"
local lxd = require "lualxd"
local imitation = require "spec.support.imitation"

local server, client

local function start(options)
  server = imitation.start(options)
  client = assert(lxd.connect { socket = server.socket, timeout = 0.3 })
end

after_each(function()
  client:close()
  server:stop()
end)

-- The requests of this method, without those of `with_container`.
local function sent(method)
  local found = {}
  for _, request in ipairs((server:record())) do
    if request.method == method and not request.body:find('"name":"web"', 1, true) then
      found[#found + 1] = request
    end
  end
  return found
end

local CHANGES = {
  POST = function()
    return client.containers:create { name = "new", source = { type = "image", alias = "busybox" } }
  end,
  PUT = function()
    return client.containers "web":put { config = { ["user.a"] = "1" } }
  end,
  state = function()
    return client.containers "web":start()
  end,
  rename = function()
    return client.containers "web":rename "other"
  end,
  file = function()
    return client.containers "web".files:write("/tmp/a", "abc")
  end,
}
local METHODS = { PUT = "PUT", state = "PUT" }

local function with_container()
  assert(client.containers:create {
    name = "web", source = { type = "image", alias = "busybox" },
  }:wait())
end

describe("a change on a kept connection", function()
  before_each(function()
    start()
    with_container()
  end)

  for name, change in pairs(CHANGES) do
    local method = METHODS[name] or "POST"

    for what, rule in pairs {
      ["takes it whole"] = { when = "body", close = true },
      ["takes its head"] = { when = "head", close = true },
      ["takes it, does it and"] = { steps = { { model = false }, { close = true } } },
      ["begins to answer"] = { steps = { { bytes = "HTTP/1.1 2" }, { close = true } } },
      ["answers half"] = { answer = { json = { type = "sync" }, cut = 60 } },
    } do
      it(("is sent once when the server %s and hangs up: %s"):format(what, name), function()
        rule.method = method
        server:rules(rule)
        local result, err = change():wait()
        assert.is_nil(result)
        assert.are.equal("unknown_outcome", err.kind, tostring(err))
        local requests = sent(method)
        assert.are.equal(1, #requests)
        assert.is_true(requests[1].number > 1) -- it was the kept connection, or this shows nothing
        -- The client works on, with a new connection.
        assert(client.containers:names())
      end)
    end

    it("is sent once when the server never answers: " .. name, function()
      server:rules { method = method, stall = true }
      local result, err = change():wait()
      assert.is_nil(result)
      assert.are.equal("unknown_outcome", err.kind, tostring(err))
      assert.are.equal(1, #sent(method))
    end)
  end

  it("is unknown when this process has failed after it was sent #builtin", function()
    local support = require "spec.core.support"
    local child = support.fork(function()
      local other = assert(lxd.connect { socket = server.socket, timeout = 2 })
      local web = other.containers "web"
      assert(support.posix.fail_call("epoll_ctl", 28)) -- ENOSPC: of the next connection nothing can be heard
      local _, second = web:put { config = { ["user.a"] = "1" } }, web.files:write("/tmp/a", "abc")
      local _, err = second:wait()
      return err.kind == "unknown_outcome" and 0 or 1
    end)
    local code = support.posix.waitpid(child)
    local deadline = core.now() + 10
    while code == 0 and #sent "POST" == 0 and core.now() < deadline do -- what was sent may not have been read yet
      support.posix.sleep(0.05)
    end
    assert.are.equal(#sent "POST" > 0 and 0 or 1, code)
  end)

  it("is the parent's alone where it has steps to go when the process forks #builtin", function()
    local support = require "spec.core.support"
    local web, ops = client.containers "web", {}
    for index = 1, 2 do -- the second waits for the first
      ops[index] = web:update(function(data) data.config["user.a"] = tostring(index) end)
    end
    local child = support.fork(function()
      local _, err = ops[2]:wait()
      local told = false
      function lxd.on_unwaited() -- of the first, which the parent will wait for
        told = true
      end
      ops = nil
      collectgarbage()
      return not told and err and err.kind == "failed" and err.message:find("parent", 1, true) and 0 or 1
    end)
    assert.are.equal(0, (support.posix.waitpid(child)))
    assert(lxd.wait_all(ops))
    local puts = 0
    for _, request in ipairs((server:record())) do
      puts = puts + (request.method == "PUT" and 1 or 0)
    end
    assert.are.equal(2, puts)
  end)

  it("is sent once, and done, when the server had closed the connection before", function()
    -- The connection ends after an answer, although it was to be kept; then comes a change.
    server:rules { method = "GET", times = 1, steps = { { sync = "[]" }, { close = true } } }
    assert(client.containers:names())
    server:await { open = 0 }
    assert(CHANGES.POST():wait())
    assert.are.equal(1, #sent "POST")
  end)

  it("isn't sent again when a new connection is closed, too", function()
    server:rules { when = "accept", close = true }
    server:rules { method = "GET", times = 1, steps = { { sync = "[]" }, { close = true } } }
    assert(client.containers:names())
    server:await { open = 0 }
    -- Accepted and closed unread: that the server didn't get it can't be known.
    local result, err = CHANGES.POST():wait()
    assert.is_nil(result)
    assert.truthy(err.kind == "unknown_outcome" or err.kind == "connect", tostring(err))
    assert.are.equal(0, #sent "POST")
  end)

  it("that never left is no unknown outcome", function()
    server:stop()
    local result, err = CHANGES.POST():wait()
    assert.is_nil(result)
    assert.are.equal("connect", err.kind, tostring(err))
    start()
  end)

  it("of a large body is sent once", function()
    server:rules { method = "POST", times = 1, steps = { { read = 1000 }, { close = true } } }
    local result, err = client.containers "web".files:write("/big", ("x"):rep(3000000)):wait()
    assert.is_nil(result)
    assert.are.equal("unknown_outcome", err.kind, tostring(err))
    assert.are.equal(1, #sent "POST")
  end)

  it("by client:request is sent once, too", function()
    for _, method in ipairs { "POST", "PUT", "PATCH" } do
      assert(client.containers:names())
      server:rules { method = method, times = 1, close = true }
      local result, err = client:request(method, "/1.0/containers/web", { json = { a = 1 } })
      assert.is_nil(result)
      assert.are.equal("unknown_outcome", err.kind, tostring(err))
      assert.are.equal(1, #sent(method))
    end
  end)

  it("without a body is sent once, too", function()
    for _, method in ipairs { "POST", "PUT", "PATCH" } do
      assert(client.containers:names())
      server:rules { method = method, times = 1, close = true }
      local result, err = client:request(method, "/1.0/containers/web")
      assert.is_nil(result)
      assert.are.equal("unknown_outcome", err.kind, tostring(err))
      assert.are.equal(1, #sent(method))
    end
  end)

  it("of many at once is sent once each", function()
    server:rules { method = "POST", on_connection = 2, close = true }
    local ops, other = {}, assert(lxd.connect { socket = server.socket, timeout = 10 })
    for i = 1, 40 do
      ops[i] = other.containers:create {
        name = "many" .. i, source = { type = "image", alias = "busybox" },
      }
    end
    local results, err = lxd.wait_all(ops)
    other:close()
    assert.is_nil(results)
    for _, one in pairs(err.errors) do
      assert.are.equal("unknown_outcome", one.kind, tostring(one))
    end
    local names = {}
    for _, request in ipairs(sent "POST") do
      local name = request.body:match '"name":"(many%d+)"'
      assert.is_nil(names[name], name .. " came twice")
      names[name] = true
    end
    -- Nothing is lost either: each was answered, or is told to be unknown.
    for i = 1, 40 do
      assert.is_true(names["many" .. i] and (err.results[i] ~= nil) ~= (err.errors[i] ~= nil))
    end
  end)
end)

describe("a deletion on a kept connection", function()
  before_each(function()
    start()
    with_container()
  end)

  for what, rule in pairs {
    ["that is done before the server hangs up"] = { steps = { { model = false }, { close = true } } },
    ["that wasn't done before the server hung up"] = { close = true },
  } do
    it(what .. " is sent once, and unknown", function()
      rule.method = "DELETE"
      server:rules(rule)
      local result, err = client.containers "web":delete():wait()
      assert.is_nil(result)
      assert.are.equal("unknown_outcome", err.kind, tostring(err))
      assert.are.equal(1, #sent "DELETE")
    end)
  end

  it("of what isn't there is not_found when it was sent once", function()
    local result, err = client.containers "none":delete():wait()
    assert.is_nil(result)
    assert.are.equal("not_found", err.kind)
    assert.are.equal(1, #sent "DELETE")
  end)
end)

describe("a change whose client is closed before its answer", function()
  it("is unknown: the server has got it", function()
    start()
    with_container()
    server:rules { method = "POST", stall = true }
    local other = assert(lxd.connect { socket = server.socket, timeout = 0.3 })
    local op = other.containers:create { name = "new", source = { type = "image", alias = "busybox" } }
    server:await { complete = 4 }
    other:close()
    local result, err = op:wait()
    assert.is_nil(result)
    assert.are.equal("unknown_outcome", err.kind, tostring(err))
  end)
end)

describe("a question on a kept connection", function()
  it("is asked again when the server hangs up", function()
    start()
    server:rules { method = "GET", path = "/containers", times = 1, close = true }
    local names = assert(client.containers:names())
    assert.are.same({}, { (table.unpack or unpack)(names) }) -- luacheck: ignore 143
    assert.are.equal(3, #sent "GET")
  end)
end)

-- The operation ends and is forgotten before anyone asks. What is left is the object.
describe("an operation that has vanished", function()
  before_each(function()
    start { mode = "operations" }
  end)

  -- Starts a change, lets it end (`finish`: how), forgets the operation and waits.
  local function vanished(op, finish)
    lxd.run(function()
      while not op.id do
        lxd.sleep(0.005)
      end
      return true
    end)
    if finish ~= false then
      server:finish(finish)
    end
    server:forget()
    return op:wait(5)
  end

  local function container(name)
    local op = client.containers:create {
      name = name, source = { type = "image", alias = "busybox" },
    }
    return vanished(op)
  end

  local function failed(kind, result, err)
    assert.is_nil(result)
    assert.are.equal(kind, err.kind, tostring(err))
    assert.is_nil(tostring(err):find "\n")
  end

  it("and created is found out from the object", function()
    local data = assert(container "a")
    assert.are.equal("Success", data.status)
    assert.are.equal(200, data.status_code)
    assert.are.equal("task", data.class)
  end)

  it("and failed to create what existed already is not taken for done", function()
    assert(container "a")
    failed("exists", container "a")
  end)

  it("and failed to create leaves nothing", function()
    local op = client.containers:create {
      name = "a", source = { type = "image", alias = "busybox" },
    }
    failed("failed", vanished(op, { code = 400, err = "no space" }))
  end)

  it("and started, stopped, renamed or deleted is found out from the object", function()
    assert(container "a")
    local item = client.containers "a"
    assert.are.equal("Success", assert(vanished(item:start())).status)
    assert.are.equal("Success", assert(vanished(item:stop())).status)
    assert.are.equal("Success", assert(vanished(item:rename "b")).status)
    assert.are.equal("Success", assert(vanished(client.containers "b":delete())).status)
  end)

  it("and failed to start, stop, rename or delete is not taken for done", function()
    assert(container "a")
    local item = client.containers "a"
    local failure = { code = 400, err = "no" }
    failed("failed", vanished(item:start(), failure))
    failed("failed", vanished(item:rename "b", failure))
    failed("failed", vanished(item:delete(), failure))
    assert(vanished(item:start()))
    failed("failed", vanished(item:stop(), failure))
  end)

  it("and changed what the object can't tell is unknown", function()
    assert(container "a")
    local item = client.containers "a"
    assert(vanished(item.snapshots:create { name = "s" }))
    failed("unknown_outcome", vanished(item:put { config = { ["user.a"] = "1" } }))
    failed("unknown_outcome", vanished(item:restore "s"))
    failed("unknown_outcome", vanished(item:restart()))
  end)

  it("is asked about once more when it is waited for again", function()
    assert(container "a")
    local op = client.containers "a":start()
    assert(vanished(op))
    assert.are.equal("Success", assert(op:wait()).status)
  end)

  it("but can't be looked for says so", function()
    assert(container "a")
    server:rules { method = "GET", path = "^/1.0/containers/a$",
      error = { 500, "database is on fire" } }
    failed("failed", vanished(client.containers "a":start()))
  end)
end)
