-- SPDX-License-Identifier: MIT
-- What a wait costs in an event loop: lua loop.lua LOOP SOCKET NAME COUNT
-- GETs one after the other, each a wait.

local core = require "lualxd.core"
local lxd = require "lualxd"
local cjson = require "cjson"

local loop, socket, name, count = arg[1], arg[2], arg[3], tonumber(arg[4])

if loop == "luv" then
  require "luv" -- in the main program: luv calls back in what loads it
end

local runners = {
  blocking = function(f)
    f()
  end,
  tasks = lxd.run,
  cqueues = function(f)
    local controller = require("cqueues").new()
    controller:wrap(f)
    assert(controller:loop())
  end,
  luv = function(f)
    coroutine.wrap(f)()
    require("luv").run()
  end,
  copas = function(f)
    local copas, over = require "copas", false
    copas.addthread(function()
      f()
      over = true
    end)
    while not over do
      copas.step(1)
    end
  end,
}

local result
runners[loop](function()
  local client = assert(lxd.connect { socket = socket, loop = loop == "luv" and loop or nil })
  local container = client.containers(name)
  assert(container:get())
  local cpu, wall = os.clock(), core.now()
  for _ = 1, count do
    assert(container:get())
  end
  result = { cpu = (os.clock() - cpu) / count * 1e6, wall = (core.now() - wall) / count * 1e6 }
  client:close()
end)
print(cjson.encode(result))
