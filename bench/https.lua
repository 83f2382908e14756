-- SPDX-License-Identifier: MIT
-- GETs over HTTPS: lua https.lua URL CERT KEY SERVER_CERT NAME COUNT
-- `cold`: a new client for each, `kept`: one after the other on one.

local core = require "lualxd.core"
local lxd = require "lualxd"
local cjson = require "cjson"

local count = tonumber(arg[6])

local function connect()
  return assert(lxd.connect { url = arg[1], cert = arg[2], key = arg[3], server_cert = arg[4] })
end

local client = connect()
local container = client.containers(arg[5])
assert(container:get())
local began = core.now()
for _ = 1, count do
  assert(container:get())
end
local kept = (core.now() - began) / count
client:close()

local few = math.max(3, math.floor(count / 20))
began = core.now()
for _ = 1, few do
  client = connect() -- itself a GET, of /1.0
  client:close()
end
print(cjson.encode { kept = kept * 1e3, cold = (core.now() - began) / few * 1e3 })
