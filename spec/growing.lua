-- Does one thing again and again, in a process that does nothing else, and says what more it holds than after the
-- first times: `growing.lua requests`, or `growing.lua operations|exec CONTAINER`. Ends with 0 if nothing has grown.
local lxd = require "lualxd"
local server = require "spec.support.lxd"

local what, container = arg[1], arg[2]
local client = server.connect { timeout = 60 }

local highest = 0

-- KiB that the process holds.
local function resident()
  local file = assert(io.open "/proc/self/statm")
  local pages = file:read "*l":match "^%d+ (%d+)"
  file:close()
  highest = math.max(highest, pages * 4)
  return pages * 4
end

local function usage()
  for _ = 1, 3 do
    collectgarbage()
  end
  resident()
  return { lua = collectgarbage "count", descriptors = server.descriptors() }
end

local function ask(count)
  for _ = 1, count do
    assert(client.profiles "default":get())
  end
end

local function begin()
  local response = assert(client:request("POST", "/1.0/instances/" .. container .. "/exec", {
    json = { command = lxd.array { "true" }, environment = {} },
  }))
  return response.operation
end

-- All begun before the first is waited for, so that they are there at the same time.
local function run(count)
  local ops = {}
  for index = 1, count do
    ops[index] = begin()
  end
  local results = assert(lxd.wait_all(ops))
  for index = 1, count do
    assert(results[index].metadata["return"] == 0, "operation " .. index)
  end
end

-- So many MiB in and out at once, through a command that gives back what it gets.
local piece = ("x"):rep(1024 * 1024)
local function echo(count)
  local left, got = count, 0
  local result = assert(client.containers(container):exec({ "cat" }, {
    stdin = function()
      left = left - 1
      return left >= 0 and piece or nil
    end,
    stdout = function(bytes)
      got = got + #bytes
      resident()
    end,
  }))
  assert(result.status == 0 and got == count * #piece)
end

-- The first times fill what is kept on purpose: connections, and the last 512 ends that the events told of.
local kinds = {
  requests = { act = ask, first = 1000, more = 10000 },
  operations = { act = run, first = 1000, more = 1000 },
  exec = { act = echo, first = 64, more = 1024 },
}
local kind = kinds[what]
kind.act(kind.first)
local before, most = usage(), highest
kind.act(kind.more)
local after = usage()
client:close()

local lua, process = after.lua - before.lua, highest - most
print(string.format("%d %s: %+.0f KiB of Lua, %+d KiB of the process at most, %+d descriptors", kind.more, what, lua,
  process, after.descriptors - before.descriptors))
os.exit(lua < 512 and process < 8192 and after.descriptors <= before.descriptors)
