-- A small shop: three web servers of one profile. Declared, planned, applied, disturbed, repaired and taken
-- down again, on the server that the environment names.
--
--   lua5.4 examples/shop.lua [IMAGE FILE]     with a file, that image is used and deleted afterwards
local lxd = require "lualxd"

local client = assert(lxd.connect())
local prefix = "lualxd-shop-"
local image, imported = "busybox", nil

local function title(text)
  print("\n== " .. text)
end

if arg and arg[1] then
  image = prefix .. "image"
  local before = {}
  for _, fingerprint in ipairs(assert(client.images:names())) do
    before[fingerprint] = true
  end
  imported = assert(client.images:import(arg[1], { alias = image }):wait()).metadata.fingerprint
  if before[imported] then
    imported = nil -- somebody else's, which stays; only the name is ours
  end
end

local shop = { stack = "lualxd-shop", profiles = {}, containers = {} }
shop.profiles[prefix .. "base"] = {
  config = { ["limits.memory"] = "256MiB" },
  devices = { root = { type = "disk", path = "/", pool = assert(client.storage_pools:names())[1] } },
}
for i = 1, 3 do
  shop.containers[prefix .. "web" .. i] = {
    image = image,
    profiles = { prefix .. "base" },
    config = { ["boot.autostart"] = true },
    state = "running",
    files = { ["/etc/motd"] = { content = "web server " .. i .. "\n", mode = "0644" } },
    snapshots = { "pristine" },
    ready = { exec = { "test", "-e", "/etc/motd" }, timeout = 30 },
  }
end

local function progress(event)
  local step = event.step
  print(string.format("  %-9s %s", event.state, type(step) == "table" and step.id or step))
end

local function show()
  title "The plan"
  local plan = assert(client:plan(shop))
  print(plan)
  title "Applied"
  assert(plan:apply { progress = progress })

  title "Planned again"
  print(assert(client:plan(shop)))

  title "Somebody changes a profile and stops a container"
  assert(client.profiles(prefix .. "base"):patch { config = { ["limits.memory"] = "1GiB" } }:wait())
  assert(client.containers(prefix .. "web2"):stop { force = true }:wait())
  plan = assert(client:plan(shop))
  print(plan)
  title "Repaired"
  assert(plan:apply { progress = progress })
  assert(assert(client:plan(shop)).empty)
  print "  nothing left to do"
end

local ok, problem = xpcall(show, debug.traceback)

title "Taken down"
local nothing = { stack = "lualxd-shop", profiles = {}, containers = {} }
assert(client:apply(nothing, { prune = true, allow = 4, progress = progress }))
if imported then
  assert(client.images(imported):delete():wait())
elseif arg and arg[1] then
  assert(client.images.aliases(image):delete():wait())
end
client:close()
if not ok then
  error(problem, 0)
end
