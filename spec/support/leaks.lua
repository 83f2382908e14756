-- Watches over every spec file: when it has ended and garbage is collected, no descriptor of ours is open that wasn't
-- before. What may stay is the poller of the modules that the file had loaded, which goes with them, and what luv opens
-- once (pipes are its own and of specs: lualxd has none). Busted's `helper`.
local busted = require "busted"
local lfs = require "lfs"

local KEPT = { ["anon_inode:[eventpoll]"] = 2, ["anon_inode:[timerfd]"] = 1, ["anon_inode:[eventfd]"] = 1 }

-- In nginx there is a waiter, too (src/waiter.c), to which nginx keeps a connection or two: both ends of each, and the
-- listener, are sockets of this process.
if ngx then -- luacheck: read globals ngx
  KEPT["/dev/null"], KEPT.name, KEPT.socket = 1, 1, 5
end

-- What kind of descriptor it is, where its number doesn't matter.
local function kind_of(target)
  return target:match "^(socket):" or target:find("/lualxd%-%w+/s %(deleted%)$") and "name" or target
end

local function descriptors()
  local open = {}
  for name in lfs.dir "/proc/self/fd" do
    local target = lfs.symlinkattributes("/proc/self/fd/" .. name, "target")
    -- The directory that is being read here is gone when it is looked at from outside.
    if target and not target:find("/fd$") and not target:find("^pipe:") then
      open[name .. " " .. target] = target
    end
  end
  return open
end

local function collect()
  for _ = 1, 4 do
    collectgarbage()
  end
end

local before

busted.subscribe({ "file", "start" }, function()
  collect()
  before = descriptors()
  return nil, true
end)

busted.subscribe({ "file", "end" }, function(file)
  collect()
  local kept, left = {}, {}
  for name, target in pairs(descriptors()) do
    if not before[name] then
      local kind = kind_of(target)
      kept[kind] = (kept[kind] or 0) + 1
      if kept[kind] > (KEPT[kind] or 0) then
        left[#left + 1] = name
      end
    end
  end
  if #left > 0 then
    error(file.name .. " left descriptors open: " .. table.concat(left, ", "), 0)
  end
  return nil, true
end)
