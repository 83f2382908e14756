-- examples/walkthrough.lua runs as it stands; what it did and said is checked by a second way.
local server = require "spec.support.lxd"

describe("examples/walkthrough.lua", function()
  it("does what it says, in its order", function()
    local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
    local ok, out = server.shell(interpreter .. " examples/walkthrough.lua " .. server.image)
    assert.is_true(ok, out)
    local info = server.look "/1.0"
    local at = 1
    for _, text in ipairs {
      "API versions%s+/1.0\n",
      "server%s+lxd " .. info.environment.server_version:gsub("%.", "%%."),
      "operation%s+%x+%-",
      "this one%s+",
      "create_instance_from_image_unpack 100 %%",
      "created%s+xenial: Success",
      "gone from the server",
      "started%s+Success",
      "status%s+Running, %d+ processes",
      "/etc/hosts%s+127.0.0.1",
      "/tmp/a%s+abc\n",
      "snapshot%s+my%-snapshot",
      "delete%s+delete container xenial: Instance is running .-stop it first",
      "afterwards%s+not_found\n",
    } do
      local from, to = out:find(text, at)
      assert(from, text .. " not found after\n" .. out:sub(1, at - 1))
      at = to
    end
    assert.is_nil(server.look "/1.0/containers/xenial")
    assert.is_nil(server.look "/1.0/containers/blah")
  end)

  it("ends with what the server says when it refuses", function()
    local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
    local ok, out = server.shell("timeout 60 " .. interpreter .. " examples/walkthrough.lua no-such-image")
    assert.is_false(ok)
    assert.matches("create container blah: Image alias not found", out)
    assert.is_nil(server.look "/1.0/containers/blah")
  end)
end)
