-- Random stacks against random servers (spec/reconcile/model.lua), with seeds, so that a
-- failure can be looked at again: what must hold for every declaration, not only for those that
-- one thinks of.
local lxd = require "lualxd"
local model = require "spec.reconcile.model"
local reconcile = require "lualxd.reconcile"

local RUNS = tonumber(os.getenv "LUALXD_RUNS") or 60

-- A generator of its own: the same numbers on every Lua.
local function random(seed)
  local state = seed * 7919 % 2147483647 + 1
  for _ = 1, 5 do
    state = state * 16807 % 2147483647
  end
  return function(n)
    state = state * 16807 % 2147483647
    return state % n + 1
  end
end

local function pick(rnd, list)
  return list[rnd(#list)]
end

local CONFIG = {
  ["limits.memory"] = { "256MiB", "268435456", "512MiB", "1GiB", "1024MiB" },
  ["limits.cpu"] = { 1, 2, "0-1" },
  ["security.nesting"] = { true, false, "yes" },
  ["security.privileged"] = { true, false },
  ["raw.lxc"] = { "lxc.a = 1", "lxc.a = 2" },
  ["user.note"] = { "one", "two", 3 },
  ["boot.autostart"] = { true, false },
}
local CONFIG_KEYS = { "limits.memory", "limits.cpu", "security.nesting", "security.privileged",
  "raw.lxc", "user.note", "boot.autostart" }

local DEVICES = {
  root = { { type = "disk", path = "/", pool = "default" },
    { type = "disk", path = "/", pool = "default", size = "2GiB" } },
  eth0 = { { type = "nic", network = "br0" },
    { type = "nic", network = "br0", ["limits.ingress"] = "10Mbit" } },
  tmp = { { type = "disk", source = "/tmp", path = "/mnt" },
    { type = "disk", source = "/tmp", path = "/mnt", readonly = true } },
}
local DEVICE_NAMES = { "root", "eth0", "tmp" }

local function random_config(rnd, words)
  local config = {}
  for _, key in ipairs(CONFIG_KEYS) do
    local roll = rnd(10)
    if roll <= 4 then
      config[key] = pick(rnd, CONFIG[key])
    elseif words and roll == 5 then
      config[key] = pick(rnd, { lxd.unset, lxd.auto, lxd.ignore })
    elseif words and roll == 6 then
      config[key] = require "lualxd.words".secret(pick(rnd, CONFIG[key]))
    end
  end
  return config
end

local function random_devices(rnd, words)
  local devices = {}
  for _, name in ipairs(DEVICE_NAMES) do
    local roll = rnd(6)
    if roll <= 2 then
      devices[name] = model.copy(pick(rnd, DEVICES[name]))
    elseif words and roll == 3 then
      devices[name] = lxd.unset
    end
  end
  return devices
end

local PROFILES, CONTAINERS = { "base", "net", "big" }, { "c1", "c2", "c3", "c4" }

local function random_profiles(rnd, names)
  local list, seen = {}, {}
  for _ = 1, rnd(3) - 1 do
    local name = pick(rnd, names)
    if not seen[name] then
      seen[name] = true
      list[#list + 1] = name
    end
  end
  return list
end

local function random_container(rnd, profiles)
  local entry = { image = "busybox", config = random_config(rnd, true),
    devices = random_devices(rnd, true) }
  if rnd(3) > 1 then
    entry.profiles = random_profiles(rnd, profiles)
  end
  if rnd(3) == 1 then
    entry.description = pick(rnd, { "a", "b" })
  end
  local state = rnd(6)
  if state <= 3 then
    entry.state = "running"
    if rnd(2) == 1 then
      entry.ready = { exec = { "true" } }
    end
  elseif state == 4 then
    entry.state = "stopped"
  elseif state == 5 then
    entry.state = "frozen"
  end
  if rnd(2) == 1 then
    entry.files = { ["/etc/motd"] = { content = pick(rnd, { "hello", "bye" }) } }
    if rnd(2) == 1 then
      entry.files["/srv/www/index.html"] = { content = "<p>", mode = "0640", uid = rnd(3) }
    end
  end
  if rnd(3) == 1 then
    entry.snapshots = { "first", "second" }
  end
  return entry
end

local function random_stack(rnd)
  local source = { stack = "shop", profiles = {}, containers = {} }
  local profiles = { "default" }
  for _, name in ipairs(PROFILES) do
    if rnd(3) > 1 then
      source.profiles[name] = { config = random_config(rnd), devices = random_devices(rnd) }
      profiles[#profiles + 1] = name
    end
  end
  for _, name in ipairs(CONTAINERS) do
    if rnd(4) > 1 then
      source.containers[name] = random_container(rnd, profiles)
    end
  end
  return source
end

local ALL = { prune = true, allow = 4, adopt_existing = true }

local function settings(extra)
  local made = {}
  for _, from in ipairs { ALL, extra or {} } do
    for key, value in pairs(from) do
      made[key] = value
    end
  end
  return made
end

local function plan(server, source, options)
  return assert(reconcile.plan(server:client(), source, options))
end

local function apply(server, source, options)
  return assert(reconcile.apply(server:client(), source, options))
end

-- Nothing to do, but for profiles that a container still uses which no longer declares its
-- profiles: a list of profiles has no value that would mean "unset", so it stays.
local function settled(planned)
  assert(#planned.steps == 0, tostring(planned) .. planned:json())
  for _, step in ipairs(planned.blocked) do
    assert(step.blocked:find("^in use by"), tostring(planned) .. planned:json())
  end
end

local function strangers(rnd, server)
  -- Objects of others: they must come out of everything as they went in.
  server.profiles.theirs = { config = { ["limits.cpu"] = "7" }, devices = {}, description = "x" }
  assert(server:client().containers:create { name = "alien", profiles = { "default", "theirs" },
    source = { type = "image", alias = "busybox" }, config = { ["user.note"] = "mine" } }:wait())
  if rnd(2) == 1 then
    assert(server:client().containers("alien"):start():wait())
  end
  return model.copy { server.profiles.theirs, server.containers.alien, server.profiles.default }
end

-- Somebody is at work on the server: changes things that are declared, and things that aren't.
local function disturb(rnd, server)
  for _, name in ipairs(PROFILES) do
    local profile = server.profiles[name]
    if profile and rnd(2) == 1 then
      profile.config[pick(rnd, CONFIG_KEYS)] = "1"
      profile.config["user.theirs"] = "kept"
    end
  end
  for _, name in ipairs(CONTAINERS) do
    local container = server.containers[name]
    if container and rnd(2) == 1 then
      container.config[pick(rnd, CONFIG_KEYS)] = rnd(2) == 1 and "9" or nil
      container.config["user.theirs"] = "kept"
      container.devices.theirs = { type = "disk", source = "/srv", path = "/srv" }
      if rnd(3) == 1 and container.status == "Running" then
        container.status = "Stopped"
      end
    end
  end
  server.version = server.version + 1
end

local function each_seed(f, runs)
  for seed = 1, runs or RUNS do
    local ok, err = pcall(f, random(seed), seed)
    if not ok then
      error("seed " .. seed .. ": " .. tostring(type(err) == "table" and (err.message or err[1])
        or err), 0)
    end
  end
end

-- What of a server tells whether two are alike: not nonces and not the count of starts.
local function essence(server)
  local data = {}
  for _, section in ipairs { "profiles", "containers" } do
    for name, object in pairs(server[section]) do
      local kept = model.copy(object)
      for key in pairs(kept.config) do
        if key:find("^user%.lualxd%.") then
          kept.config[key] = nil
        end
      end
      kept.last_used_at, kept.snapshots, kept.runs_with = nil, nil, nil
      kept.snapshot_names = {}
      for snapshot in pairs(object.snapshots or {}) do
        kept.snapshot_names[snapshot] = true
      end
      data[section .. "/" .. name] = kept
    end
  end
  return data
end

describe("for any stack and any server", function()
  it("applying a plan leaves nothing to do, however often the stack changes", function()
    each_seed(function(rnd)
      local server = model.new()
      for _ = 1, 3 do
        local source = random_stack(rnd)
        apply(server, source, settings())
        settled(plan(server, source, settings()))
        disturb(rnd, server)
        apply(server, source, settings())
        settled(plan(server, source, settings()))
      end
    end)
  end)

  it("everything declared is as declared afterwards", function()
    each_seed(function(rnd)
      local server, source = model.new(), random_stack(rnd)
      apply(server, random_stack(rnd), settings())
      disturb(rnd, server)
      apply(server, source, settings())
      for name, entry in pairs(source.containers) do
        local live = assert(server.containers[name], name)
        if entry.state then
          assert.are.equal(entry.state, live.status:lower())
        end
        if entry.profiles then
          assert.are.same(entry.profiles, live.profiles)
        end
        for path, file in pairs(entry.files or {}) do
          assert.are.equal(file.content, live.files[path].content)
          assert.are.equal(file.uid or 0, live.files[path].uid)
        end
        for key, value in pairs(entry.config) do
          if value == lxd.unset then
            assert.is_nil(live.config[key])
          elseif type(value) ~= "table" and key ~= "limits.memory" and type(value) ~= "boolean"
            and value ~= "yes" then
            assert.are.equal(tostring(value), live.config[key])
          end
        end
        for _, snapshot in ipairs(entry.snapshots or {}) do
          assert.truthy(live.snapshots[snapshot])
        end
        -- No change waits for a restart that was allowed and didn't come.
        if live.status == "Running" then
          for _, key in ipairs { "security.privileged", "raw.lxc" } do
            if type(entry.config[key]) == "boolean" or type(entry.config[key]) == "string" then
              assert.are.equal(live.config[key], live.runs_with[key], name .. " " .. key)
            end
          end
        end
      end
    end)
  end)

  it("what carries no mark of the stack is never touched", function()
    each_seed(function(rnd)
      local server = model.new()
      local before = strangers(rnd, server)
      for _ = 1, 3 do
        apply(server, random_stack(rnd), { prune = true, allow = 4 })
      end
      apply(server, { stack = "shop" }, { prune = true, allow = 4 })
      assert.are.same(before,
        { server.profiles.theirs, server.containers.alien, server.profiles.default })
      local left = {}
      for _, section in ipairs { "profiles", "containers" } do
        for name in pairs(server[section]) do
          left[#left + 1] = name
        end
      end
      table.sort(left)
      assert.are.same({ "alien", "default", "theirs" }, left)
    end)
  end)

  it("a copy of an owned object is somebody else's", function()
    each_seed(function(rnd)
      local server, source = model.new(), random_stack(rnd)
      apply(server, source, settings())
      for name, container in pairs(model.copy(server.containers)) do
        server.containers[name .. "-copy"] = container
      end
      local before = model.copy(server.containers)
      apply(server, source, { prune = true, allow = 4 })
      settled(plan(server, source, { prune = true, allow = 4 }))
      for name in pairs(before) do
        if name:find("-copy$") then
          assert.are.same(before[name], server.containers[name])
        end
      end
    end, 40)
  end)

  it("keys, devices and profiles that aren't declared stay", function()
    each_seed(function(rnd)
      local server, source = model.new(), random_stack(rnd)
      apply(server, source, settings())
      disturb(rnd, server)
      local before = model.copy(server.containers)
      apply(server, source, settings())
      for name, container in pairs(before) do
        assert.are.equal(container.config["user.theirs"],
          server.containers[name].config["user.theirs"])
        assert.are.same(container.devices.theirs, server.containers[name].devices.theirs)
        for _, key in ipairs(CONFIG_KEYS) do
          local wanted = source.containers[name].config[key]
          if wanted == nil or wanted == lxd.auto or wanted == lxd.ignore then
            assert.are.equal(container.config[key], server.containers[name].config[key], key)
          end
        end
      end
    end)
  end)

  it("what is no longer declared is unset, unless somebody gave it another value", function()
    each_seed(function(rnd)
      local server = model.new()
      local config, changed = random_config(rnd), {}
      local source = { stack = "shop", profiles = { base = { config = config } } }
      apply(server, source)
      for key in pairs(config) do
        if rnd(3) == 1 then
          changed[key] = true
          server.profiles.base.config[key] = "another"
        end
      end
      source.profiles.base.config = {}
      apply(server, source)
      for _, key in ipairs(CONFIG_KEYS) do
        assert.are.equal(changed[key] and "another" or nil, server.profiles.base.config[key])
      end
      assert.is_true(plan(server, source).empty)
    end)
  end)

  it("the plan's bytes don't depend on the order of tables", function()
    local function shuffled(rnd, value)
      if type(value) ~= "table" or getmetatable(value) or value[1] ~= nil then
        return value
      end
      local keys, made = {}, {}
      for key in pairs(value) do
        keys[#keys + 1] = key
      end
      table.sort(keys)
      for index = #keys, 2, -1 do
        local other = rnd(index)
        keys[index], keys[other] = keys[other], keys[index]
      end
      for _, key in ipairs(keys) do
        made[key] = shuffled(rnd, value[key])
      end
      return made
    end
    each_seed(function(rnd)
      local server, source = model.new(), random_stack(rnd)
      apply(server, random_stack(rnd), settings())
      disturb(rnd, server)
      local options = settings { allow = rnd(5) - 1 }
      local first = plan(server, source, options)
      for _ = 1, 3 do
        local other = model.copy(server)
        setmetatable(other, getmetatable(server))
        other.profiles = shuffled(rnd, other.profiles)
        other.containers = shuffled(rnd, other.containers)
        local again = plan(other, shuffled(rnd, source), options)
        assert.are.equal(first:json(), again:json())
        assert.are.equal(tostring(first), tostring(again))
      end
    end)
  end)

  it("nothing more dangerous is sent than was allowed", function()
    each_seed(function(rnd)
      for allow = 0, 3 do
        local server = model.new()
        apply(server, random_stack(rnd), settings())
        disturb(rnd, server)
        server.log = {}
        apply(server, random_stack(rnd), settings { allow = allow })
        for _, request in ipairs(server.log) do
          local verb = request:match("^%u+ ?%l*")
          if allow < 3 then
            assert(not verb:find("^STATE stop") and not verb:find("^STATE restart")
              and not verb:find("^STATE freeze") or request:find("freeze") and true, request)
          end
          assert.are_not.equal("DELETE ", verb)
          if allow < 1 then
            assert(verb:find("^GET") or verb:find("^PUT"), request)
          end
        end
      end
    end, 60)
  end)

  it("as many steps at once as one likes lead to the same", function()
    each_seed(function(rnd)
      local base = model.new()
      apply(base, random_stack(rnd), settings())
      disturb(rnd, base)
      local source, reference = random_stack(rnd), nil
      for _, parallel in ipairs { 1, 2, 8, 32 } do
        local server = setmetatable(model.copy(base), getmetatable(base))
        apply(server, source, settings { parallel = parallel })
        reference = reference or essence(server)
        assert.are.same(reference, essence(server))
      end
    end, 40)
  end)
end)

describe("dying at any request", function()
  -- Dies before the request takes effect, and after.
  local function die_everywhere(rnd, prepare)
    local source = random_stack(rnd)
    local finished = prepare()
    apply(finished, source, settings())
    local total = finished.changes
    local wanted = essence(finished)
    for at = 1, 2 * total do
      local server = prepare()
      server.die_at = at + 2 * server.changes
      pcall(reconcile.apply, server:client(), source, settings())
      server.die_at = nil
      for section, prefix in pairs { profiles = "profile", containers = "container" } do
        for name, object in pairs(server[section]) do
          if name ~= "default" then
            local owner = object.config["user.lualxd.owner"] or ""
            assert(owner:find("^shop/" .. prefix .. "/default/" .. name .. "#"), name)
          end
        end
      end
      apply(server, source, settings())
      assert.are.same(wanted, essence(server), "died at " .. at)
      settled(plan(server, source, settings()))
      for name, container in pairs(server.containers) do
        local now = server:expanded(container)
        if container.status == "Running" then
          for _, key in ipairs { "security.privileged", "raw.lxc" } do
            if type(source.containers[name].config[key]) ~= "table" then
              assert.are.equal(now[key], container.runs_with[key], name .. key .. " at " .. at)
            end
          end
        end
        local todo = "," .. (container.config["user.lualxd.todo"] or "")
        for _, what in ipairs { "files", "ready", "start", "freeze" } do
          assert.is_nil(todo:find("," .. what, 1, true), todo)
        end
      end
    end
  end

  it("of the first apply: running again ends where an undisturbed run ends", function()
    each_seed(function(rnd)
      die_everywhere(rnd, model.new)
    end, 12)
  end)

  it("of a later one, too", function()
    each_seed(function(rnd, seed)
      local first = random_stack(rnd)
      die_everywhere(rnd, function()
        local server = model.new()
        apply(server, first, settings())
        disturb(random(seed + 1000), server)
        server.changes = 0
        return server
      end)
    end, 40)
  end)
end)

describe("somebody who changes things during an apply", function()
  it("keeps what isn't declared, and doesn't keep what is from coming about", function()
    each_seed(function(rnd)
      local server, source = model.new(), random_stack(rnd)
      apply(server, random_stack(rnd), settings())
      local meddled = 0
      server.meddle = function(self, what)
        local name = what:match("^PUT /1.0/containers/(%w+)$")
        local container = name and self.containers[name]
        if container and meddled < 3 and source.containers[name] then
          meddled = meddled + 1
          container.config["user.theirs"] = tostring(meddled)
          container.config[pick(rnd, CONFIG_KEYS)] = "8"
          self.version = self.version + 1
        end
      end
      local report, err = reconcile.apply(server:client(), source, settings())
      server.meddle = nil
      assert(report, tostring(err))
      if meddled > 0 then
        local kept = 0
        for _, container in pairs(server.containers) do
          kept = math.max(kept, tonumber(container.config["user.theirs"]) or 0)
        end
        assert.are.equal(meddled, kept)
      end
      apply(server, source, settings())
      settled(plan(server, source, settings()))
    end)
  end)
end)
