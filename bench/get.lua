-- SPDX-License-Identifier: MIT
-- What a GET of a container costs with lualxd: lua get.lua SOCKET NAME COUNT

local lxd = require "lualxd"
local core = require "lualxd.core"

local client = assert(lxd.connect { socket = arg[1] })
local item = client.containers(arg[2])
local count = tonumber(arg[3])

for _ = 1, count / 10 do
  assert(item:get())
end
collectgarbage()
local cpu, wall = os.clock(), core.now()
for _ = 1, count do
  assert(item:get())
end
cpu, wall = (os.clock() - cpu) / count * 1e6, (core.now() - wall) / count * 1e6
print(('{"cpu": %.3f, "wall": %.3f}'):format(cpu, wall))
