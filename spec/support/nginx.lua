-- The request of `in-nginx`: runs busted, whose output goes to nginx's, and writes down how it ended.
-- luacheck: ignore 121 122
local exit = os.exit
local phase = os.getenv "LXD_TEST_PHASE"

local function run()
  arg = { [0] = "busted" }
  for word in os.getenv("LXD_TEST_ARGUMENTS"):gmatch "%S+" do
    arg[#arg + 1] = word
  end
  local status
  os.exit = function(code)
    status = (code == true or code == 0 or code == nil) and 0 or tonumber(code) or 1
    error("the end of busted", 0)
  end
  local ok, problem = pcall(function()
    if os.getenv "LXD_TEST_URL" then
      dofile "spec/support/transport.lua"
    end
    require "busted.runner" { standalone = false }
  end)
  os.exit = exit
  if not status and not ok and problem then
    io.write("busted: ", tostring(problem), "\n")
  end
  io.flush()
  local file = assert(io.open(os.getenv "LXD_TEST_STATUS" .. ".new", "w"))
  file:write(status or (ok and 0) or 1)
  file:close()
  os.rename(os.getenv "LXD_TEST_STATUS" .. ".new", os.getenv "LXD_TEST_STATUS")
end

if phase == "timer" then
  ngx.timer.at(0, run)
else
  run()
end
ngx.exit(200)
