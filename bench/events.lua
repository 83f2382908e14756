-- SPDX-License-Identifier: MIT
-- From the server's event to the coroutine that waited for it: lua events.lua SOCKET COUNT [CONTAINER]
-- Without a container it's an imitation's operations, which end when it is told; with one, commands in it, a few at
-- once. Times are by the clock that both sides have.

local cjson = require "cjson"
local lxd = require "lualxd"
local memory = require "bench.memory"
local socket = require "socket"

local path, count, container = arg[1], tonumber(arg[2]), arg[3]
local requests = 0
local client = assert(lxd.connect {
  socket = path,
  trace = function()
    requests = requests + 1
  end,
})

-- Seconds since an RFC 3339 time of today or yesterday, in UTC.
local function since(stamp, now)
  local hours, minutes, seconds = stamp:match "T(%d+):(%d+):([%d.]+)Z"
  return (now - (hours * 3600 + minutes * 60 + seconds)) % 86400
end

local function imitated()
  local ops, delays, result = {}, {}, {}
  local function create(index)
    return client.containers:create { name = "events" .. index, source = { type = "image", alias = "busybox" } }
  end
  -- Two have the events listened to.
  local early = { create(-1), create(0) }
  lxd.sleep(0.5)
  result.none = memory()
  for index = 1, count do
    ops[index] = create(index)
  end
  for index = 1, count do
    while not ops[index].id do
      lxd.sleep(0.01)
    end
  end
  local all = lxd.spawn(lxd.wait_all, ops)
  lxd.sleep(0.5)
  result.together = memory()
  for index = 1, count do
    lxd.spawn(function()
      local data = assert(ops[index]:wait())
      delays[index] = since(data.updated_at, socket.gettime())
    end)
  end
  lxd.sleep(0.5)
  result.waited = memory()
  local before = requests
  print "ready"
  io.stdout:flush()
  for _, list in ipairs { early, ops } do
    for _, op in ipairs(list) do
      assert(op:wait())
    end
  end
  assert(all:join())
  result.requests, result.delays = requests - before, delays
  return result
end

local function real()
  -- When the server said so is in its event only, so these are listened to beside.
  local said, resumed, delays = {}, {}, {}
  local stream = assert(client:events { types = { "operation" }, all_projects = true })
  local reader = lxd.spawn(function()
    for event in stream:each() do
      local operation = event.metadata
      if operation.status_code >= 200 then
        said[operation.id] = said[operation.id] or event.timestamp
      end
    end
  end)
  local list = {}
  for index = 1, count do
    list[index] = index
  end
  assert(lxd.map(list, function()
    local response = assert(client:request("POST", "/1.0/instances/" .. container .. "/exec", {
      json = { command = lxd.array { "true" }, environment = {} },
    }))
    assert(response.operation:wait())
    resumed[response.operation.id] = socket.gettime()
    return true
  end, { parallel = 4 }))
  lxd.sleep(0.2)
  stream:close()
  reader:join()
  for id, now in pairs(resumed) do
    -- One whose end overtook the answer that named it was never waited for.
    delays[#delays + 1] = said[id] and since(said[id], now) or nil
  end
  return { delays = delays }
end

local result = lxd.run(container and real or imitated)
client:close()
print(cjson.encode(result))
