-- A script that lets nothing go on for a while, on a real LXD: it computes, or waits for something else. LXD (5.0.2,
-- lxd/events/common.go) pings whoever listens to events every 10 s, and gives up who leaves some of that unanswered.
local lxd = require "lualxd"
local server = require "spec.support.lxd"

local SECONDS = 50 -- 38 weren't enough for LXD, and more than a request may be without progress

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

describe("a script that is absent for longer than LXD waits", function()
  it("loses its events and is told so, and learns the truth of what it began", function()
    local instances = {}
    for index = 1, 4 do
      local name = server.name "c"
      assert(client.containers:create { name = name, source = server.source }:wait())
      instances[index] = client.containers(name)
    end
    lxd.run(function()
      local stream = assert(client:events { types = { "lifecycle" } })
      -- From the second on their ends are heard of by events, too.
      assert(lxd.wait_all { instances[1]:start(), instances[2]:start(), instances[3]:start() })
      local ops = { instances[4]:start() }
      for index = 1, 3 do
        ops[index + 1] = instances[index]:stop { force = true }
      end

      os.execute("sleep " .. SECONDS)

      assert(lxd.wait_all(ops))
      -- What happened before comes, then that there was more, then what happens now.
      local late, creation, gaps = server.name "p", nil, 0
      for event in stream:each() do
        if event.type == "gap" then
          gaps = gaps + 1
          creation = client.profiles:create { name = late }
        elseif event.metadata.source:find(late, 1, true) then
          stream:close()
        end
      end
      assert(creation:wait())
      assert.are.equal(1, gaps)
    end)
    for index, instance in ipairs(instances) do
      assert.are.equal(index == 4 and "Running" or "Stopped", assert(instance:get()).status)
    end
  end)
end)
