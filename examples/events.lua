-- Follows what happens on the server, until interrupted.
--
--   lua examples/events.lua [ACTION NAME]
--
-- prints a line for each thing that is created, changed, started, deleted, ... With ACTION and NAME (as in
-- `instance-started web`) it ends once that has happened.
local lxd = require "lualxd"

local client = assert(lxd.connect())
local stream = assert(client:events { types = { "lifecycle" } })
print("following " .. tostring(client))
io.stdout:flush()

for event in stream:each() do
  local what = event.metadata
  if event.type == "gap" then
    print "-------- the connection was lost for a while; something may be missing here"
  else
    print(event.timestamp:match "T([%d:]+)" .. string.format(" %-24s %s", what.action, what.source))
  end
  io.stdout:flush()
  if what.action == arg[1] and what.source:match "([^/?]+)[^/]*$" == arg[2] then
    break
  end
end
stream:close()
client:close()
