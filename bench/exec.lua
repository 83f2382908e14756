-- SPDX-License-Identifier: MIT
-- A command, its output thrown away, so many times: lua exec.lua SOCKET NAME COUNT COMMAND [ARGUMENT...]

local core = require "lualxd.core"
local lxd = require "lualxd"

local client = assert(lxd.connect { socket = arg[1] })
local count, bytes = tonumber(arg[3]), 0
local began = core.now()
for _ = 1, count do
  local result = assert(client.containers(arg[2]):exec({ (table.unpack or unpack)(arg, 4) }, {
    stdout = function(piece)
      bytes = bytes + #piece
    end,
  }))
  assert(result.status == 0)
end
local each = (core.now() - began) / count
client:close()
local file = assert(io.open "/proc/self/status")
local peak = file:read "*a":match "VmHWM:%s*(%d+)"
file:close()
print(string.format('{"each":%.6f,"bytes":%.0f,"peak":%s}', each, bytes, peak))
