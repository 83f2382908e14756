-- What is used doesn't grow with what was done: measured in a process of its own, see spec/growing.lua.
local server = require "spec.support.lxd"

teardown(server.clean)

local function assert_steady(...)
  local ok, out = server.shell(server.interpreter() .. " spec/growing.lua " .. table.concat({ ... }, " "))
  assert.is_true(ok, out)
end

describe("nothing grows", function()
  it("with 10,000 requests in a row", function()
    assert_steady "requests"
  end)

  describe("in the use of a container:", function()
    local client, name

    setup(function()
      client, name = server.connect(), server.name "c"
      assert(client.containers:create { name = name, source = server.source }:wait())
      assert(client.containers(name):start():wait())
    end)

    teardown(function()
      client:close()
    end)

    it("with 1,000 operations at once", function()
      assert_steady("operations", name)
    end)

    it("with 1 GiB into a command and 1 GiB out of it, at once", function()
      assert_steady("exec", name)
    end)
  end)
end)
