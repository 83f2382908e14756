-- SPDX-License-Identifier: MIT
-- What lua-cjson alone costs for the bytes of an answer: lua decode.lua FILE COUNT

local cjson = require "cjson"

local file = assert(io.open(arg[1], "rb"))
local bytes = file:read "*a"
file:close()
local count = tonumber(arg[2])

for _ = 1, count / 10 do
  cjson.decode(bytes)
end
collectgarbage()
local cpu = os.clock()
for _ = 1, count do
  cjson.decode(bytes)
end
cpu = (os.clock() - cpu) / count * 1e6
print(('{"cpu": %.3f, "bytes": %d}'):format(cpu, #bytes))
