-- SPDX-License-Identifier: MIT
-- Creates and starts containers without the reconciler: lua create.lua SOCKET PREFIX COUNT PARALLEL

local lxd = require "lualxd"
local core = require "lualxd.core"

local client = assert(lxd.connect { socket = arg[1] })
local names = {}
for i = 1, tonumber(arg[3]) do
  names[i] = arg[2] .. i
end

local began = core.now()
assert(lxd.map(names, function(name)
  assert(client.containers:create {
    name = name,
    source = { type = "image", alias = "busybox" },
    config = { ["limits.memory"] = "64MiB" },
  }:wait())
  assert(client.containers(name):start():wait())
  return true
end, { parallel = tonumber(arg[4]) }))
print(('{"seconds": %.4f}'):format(core.now() - began))
