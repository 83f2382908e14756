-- What goes wrong under way: connections that end or go silent at any byte, a server that restarts under all that wait.
local core = require "lualxd.core"
local lxd = require "lualxd"
local relay = require "spec.support.relay"
local server = require "spec.support.lxd"

local function connect(through, timeout)
  return lxd.connect { socket = through.socket, timeout = timeout or 10 }
end

-- How many bytes the server says to `f` on its first connection: less than the first limit under which it works.
local STAGES = { 0, 1, 9, 17, 40, 80, 120, 129, 131, 160, 200, 300, 430, 1000, 4000, 8000 }

describe("a connection", function()
  local way

  before_each(function()
    way = relay.start(server.socket)
  end)

  after_each(function()
    way:stop()
  end)

  it("that ends at any byte of an answer is told, and the next one works", function()
    assert(connect(way)):close() -- opens what stays open
    collectgarbage()
    local before = server.descriptors()
    for _, bytes in ipairs(STAGES) do
      way:limit(bytes)
      local client, err = connect(way)
      if bytes < 4000 then
        assert.is_nil(client)
        assert.is_true(err.kind == "connect" or err.kind == "protocol", bytes .. ": " .. tostring(err))
      end
      if client then
        client:close()
      end
      way:limit()
      client = assert(connect(way))
      client:close()
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(server.descriptors() <= before)
  end)

  it("that ends at any byte of a handshake or a message is told", function()
    local client = assert(connect(way))
    for _, bytes in ipairs { 0, 1, 12, 50, 100, 128, 129, 130, 131 } do
      way:limit(bytes)
      local stream, err = client:events { types = { "operation" } }
      if stream then
        stream:close()
      else
        assert.is_true(err.kind == "connect" or err.kind == "protocol", bytes .. ": " .. tostring(err))
      end
    end
    way:limit()
    local stream = assert(client:events())
    stream:close()
    client:close()
  end)

  it("that goes silent at any byte is given up when the time is up", function()
    for _, bytes in ipairs { 0, 20, 140, 1000 } do
      way:stall(bytes)
      local before = core.now()
      local client, err = connect(way, 0.3)
      assert.is_nil(client)
      assert.are.equal("timeout", err.kind)
      local took = core.now() - before
      assert.is_true(took >= 0.25 and took < 3, took)
    end
    way:stall(20)
    local others = 0
    local results, err = lxd.map({ 1, 2, 3, 4 }, function(index)
      if index > 1 then
        others = others + 1
        lxd.sleep(0.01)
        return others
      end
      return connect(way, 0.3)
    end)
    assert.is_nil(results)
    assert.are.equal("timeout", err.errors[1].kind)
    assert.are.equal(3, others)
  end)
end)

describe("a server that restarts", function()
  local directory, own

  local function private(command)
    local ok, out = server.shell("env -u LXD_SOCKET -u LXD_DIR spec/support/private-lxd " .. command .. " "
      .. directory)
    assert(ok, out)
  end

  setup(function()
    local _, out = server.shell "mktemp -d"
    own = out:gsub("%s", "")
    server.shell("chmod 711 " .. own)
    directory = own .. "/lxd"
    private "start"
  end)

  teardown(function()
    private "stop"
    server.shell("rm -rf " .. own .. " " .. own .. "*")
  end)

  it("leaves no wait without an end, and none with a wrong one", function()
    local client = assert(lxd.connect { socket = directory .. "/unix.socket", timeout = 20 })
    assert(client.containers:create { name = "one", source = { type = "image", alias = "busybox" } }:wait())
    assert(client.containers "one":start():wait())
    local ops, outcomes, ran, exec_err = {}, {}, nil, nil
    lxd.run(function()
      lxd.spawn(function()
        ran, exec_err = client.containers "one":exec { "sleep", "600" }
      end)
      lxd.sleep(0.3)
      for i = 1, 20 do
        ops[i] = client.containers:create { name = "c" .. i, source = { type = "image", alias = "busybox" } }
      end
      for i = 1, 20 do
        lxd.spawn(function()
          local data, err = ops[i]:wait(60)
          outcomes[i] = { data = data, err = err }
        end)
      end
      lxd.sleep(0.2)
      private "restart"
    end)
    assert.is_nil(ran)
    assert.is_true(exec_err.kind == "unknown_outcome" or exec_err.kind == "connect" or exec_err.kind == "failed",
      tostring(exec_err))
    local told = 0
    for i = 1, 20 do
      local data, err = outcomes[i].data, outcomes[i].err
      local there = client.containers("c" .. i):exists()
      assert.is_true(data ~= nil or err ~= nil)
      if data then
        assert.is_true(there, "c" .. i .. " was said to be made")
      elseif err.kind ~= "unknown_outcome" then
        told = told + 1
        assert.is_false(there, "c" .. i .. ": " .. tostring(err))
      end
    end
    assert.is_true(told < 20)
    assert(client.containers "one":exec { "true" })
    client:close()
  end)
end)
