-- A small shop: three web servers of one profile. Declared, planned, applied, disturbed, repaired and taken
-- down again, on the server that the environment names.
--
--   lua5.4 examples/shop.lua [IMAGE FILE]     with a file, that image is used and deleted afterwards
local lxd = require "lualxd"

local client = assert(lxd.connect())
local prefix = "lualxd-shop-"
local image = "busybox"
local import, there_before

local function title(text)
  print("\n== " .. text)
end

local function import_image()
  image = prefix .. "image"
  local before = {}
  for _, fingerprint in ipairs(assert(client.images:names())) do
    before[fingerprint] = true
  end
  there_before = before
  import = client.images:import(arg[1], { alias = image })
  assert(import:wait())
end

local function declare()
  local pool = assert(client.storage_pools:names())[1]
  local shop = { stack = "lualxd-shop", profiles = {}, containers = {} }
  shop.profiles[prefix .. "base"] = {
    config = { ["limits.memory"] = "256MiB" },
    devices = { root = { type = "disk", path = "/", pool = pool } },
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
  return shop
end

local function progress(event)
  local step = event.step
  print(string.format("  %-9s %s", event.state, type(step) == "table" and step.id or step))
end

local function show()
  if arg and arg[1] then
    import_image()
  end
  local shop = declare()
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

-- May be run again where it was interrupted.
local function take_down()
  title "Taken down"
  local nothing = { stack = "lualxd-shop" }
  repeat -- what was under way when the user pressed Ctrl-C may come about meanwhile
    assert(client:apply(nothing, { prune = true, allow = 4, progress = progress }))
  until assert(client:plan(nothing, { prune = true, allow = 4 })).empty
  if there_before then
    if import then
      import:wait()
    else
      lxd.sleep(2) -- interrupted as it began: it may have been sent, or not
    end
    local alias = client.images.aliases(image):get()
    if alias and there_before[alias.target] then
      assert(client.images.aliases(image):delete():wait()) -- only the name is ours
    elseif alias then
      assert(client.images(alias.target):delete():wait())
    end
  end
end

local ok, problem = xpcall(show, debug.traceback)
local gone, why = xpcall(take_down, debug.traceback)
if not gone then
  ok, problem = false, why
  assert(xpcall(take_down, debug.traceback))
end
client:close()
if not ok then
  error(problem, 0)
end
