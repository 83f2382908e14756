-- SPDX-License-Identifier: MIT
-- Waits for operations of so many seconds, all at once: lua wait.lua SOCKET NAME COUNT SECONDS
-- The same in nginx: see nginx.conf.

local lxd = require "lualxd"

local client = assert(lxd.connect { socket = arg[1] })
local ops = {}
for i = 1, tonumber(arg[3]) do
  ops[i] = i
end
assert(lxd.map(ops, function()
  local response = assert(client:request("POST", "/1.0/instances/" .. arg[2] .. "/exec", {
    json = { command = { "sleep", arg[4] }, environment = {}, interactive = false, ["wait-for-websocket"] = false },
  }))
  return assert(response.operation:wait())
end, { parallel = #ops }))
client:close()
