-- SPDX-License-Identifier: MIT
-- Memory of operations that wait for their end: lua pending.lua SOCKET COUNT
-- `held`: they run, the script has their objects; `waited`: a task waits for each.

local lxd = require "lualxd"
local cjson = require "cjson"
local memory = require "bench.memory"

local count = tonumber(arg[2])
local client = assert(lxd.connect { socket = arg[1] })

local function create(i)
  return client.containers:create {
    name = "pending" .. i,
    source = { type = "image", alias = "busybox" },
  }
end

-- A first one, so that what is there once (connections, buffers, code) isn't counted.
local first = create(0)
assert(lxd.run(function()
  while not first.id do
    lxd.sleep(0.01)
  end
  return true
end))

local result = { none = memory() }
local ops = {}
for i = 1, count do
  ops[i] = create(i)
end
result.sent = memory()
lxd.run(function()
  for i = 1, count do
    while not ops[i].id do
      lxd.sleep(0.01)
    end
  end
end)
result.held = memory()

lxd.run(function()
  local tasks = {}
  for i = 1, count do
    tasks[i] = lxd.spawn(function()
      return ops[i]:wait(2)
    end)
  end
  lxd.sleep(1)
  result.waited = memory()
  for i = 1, count do
    local _, err = tasks[i]:join()
    assert(err and err.kind == "timeout", tostring(err))
  end
end)
print(cjson.encode(result))
io.stdout:flush()
os.exit(true) -- the operations never end; nobody is to be told that they weren't waited for
