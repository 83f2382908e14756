-- Runs a command in many containers at once.
--
--   lua examples/everywhere.lua COMMAND [ARGUMENT...]
--
-- It runs in every container that is running; each line of output begins with the container's name. What failed is
-- told at the end, and by the exit status.
local lxd = require "lualxd"

if #arg == 0 then
  io.stderr:write "usage: everywhere.lua COMMAND [ARGUMENT...]\n"
  os.exit(2)
end

local client = assert(lxd.connect())
local names = {}
for name, data in client.containers:each() do
  if data.status == "Running" then
    names[#names + 1] = name
  end
end
table.sort(names)

-- Prints whole lines, whenever they come; called without bytes, what is left of the last.
local function printer(name)
  local rest = ""
  return function(bytes)
    rest = (rest .. (bytes or rest ~= "" and "\n" or "")):gsub("([^\n]*)\n", function(line)
      print(name .. ": " .. line)
      return ""
    end)
  end
end

local results, err = lxd.map(names, function(name)
  local stdout, stderr = printer(name), printer(name)
  local result, problem = client.containers(name):exec(arg, { stdout = stdout, stderr = stderr })
  stdout()
  stderr()
  return result, problem
end, { parallel = 20 })

local failed = 0
for index, name in ipairs(names) do
  local result = (results or err.results)[index]
  if not result or result.status ~= 0 then
    failed = failed + 1
    print(name .. ": " .. (result and "status " .. tostring(result.status) or tostring(err.errors[index])))
  end
end
client:close()
os.exit(failed == 0 and 0 or 1)
