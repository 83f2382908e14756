-- The tree against a real LXD, each result checked by a second way (curl).
local errors = require "lualxd.error"
local lxd = require "lualxd"
local server = require "spec.support.lxd"

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

local function kind_of(data, err)
  assert.is_nil(data)
  assert.is_true(errors.is(err), tostring(err))
  return err.kind
end

describe("an item", function()
  it("does no I/O before a method is called, whatever its name", function()
    local quiet, requests = server.tracing()
    local before = #requests
    assert(quiet.containers "get".snapshots "list".path)
    assert.are.equal(before, #requests)
    assert.are.equal("/1.0/containers/get/snapshots/list", quiet.containers "get".snapshots "list".path)
    quiet:close()
  end)

  it("percent-encodes every name and refuses what a URL can't hold", function()
    for name, path in pairs {
      ["a/b"] = "a%2Fb", ["a?b#c"] = "a%3Fb%23c", ["%"] = "%25", ["ä\n"] = "%C3%A4%0A", ["a b"] = "a%20b",
    } do
      assert.are.equal("/1.0/containers/" .. path, client.containers(name).path)
    end
    for _, name in ipairs { "", ".", ".." } do
      assert.has_error(function()
        return client.containers(name)
      end)
    end
    assert.has_error(function()
      return client.containers(7)
    end)
  end)

  it("is read with its ETag, and told when it isn't there", function()
    local data, etag = client.profiles "default":get()
    assert.are.same(server.look "/1.0/profiles/default".devices, data.devices)
    assert.matches("^%x+$", etag)
    assert.are.equal("not_found", kind_of(client.profiles "nowhere":get()))
    assert.is_true(client.profiles "default":exists())
    assert.is_false(client.profiles "nowhere":exists())
  end)

  -- LXD 5.0.2 escapes the URLs of profiles, projects and aliases twice, and those of snapshots not at all.
  it("is listed by its name, whatever is in that", function()
    local fingerprint = client.images.aliases(server.image):get().target
    local made = {
      { client.profiles, {} },
      { client.projects, {} },
      { client.images.aliases, { target = fingerprint } },
    }
    local count = 0
    for _, row in ipairs(made) do
      local collection, data = row[1], row[2]
      for _, stem in ipairs { "a b", "a%41", "a?b", "a#b", "a/b", "ä", "a+b" } do
        data.name = server.name(stem)
        if collection:create(data):wait() then -- not all kinds may have all
          local found = {}
          for _, name in ipairs(collection:names()) do
            found[name] = true
          end
          assert.is_true(found[data.name], data.name)
          assert(collection(data.name):delete():wait())
          count = count + 1
        end
      end
    end
    assert.is_true(count >= 15)
  end)

  it("comes back unchanged when put as it was read", function()
    local name = server.name "p"
    assert(client.profiles:create {
      name = name,
      description = "äöü \"quoted\"",
      config = { ["limits.cpu"] = 2, ["boot.autostart"] = true, ["user.json"] = "[] {} null" },
      devices = { none = { type = "none" } },
    }:wait())
    local before = server.curl("GET", "/1.0/profiles/" .. name)
    local data, etag = client.profiles(name):get()
    assert(client.profiles(name):put(data, etag):wait())
    assert.are.same(before, server.curl("GET", "/1.0/profiles/" .. name))
    assert.are.same({ ["limits.cpu"] = "2", ["boot.autostart"] = "true", ["user.json"] = "[] {} null" },
      before.metadata.config)
  end)

  it("is put only if it is still what was read", function()
    local name = server.name "p"
    assert(client.profiles:create { name = name }:wait())
    local data, etag = client.profiles(name):get()
    server.lxc("profile set %s user.other=1", name)
    data.description = "mine"
    assert.are.equal("conflict", kind_of(client.profiles(name):put(data, etag):wait()))
    assert.are.equal("", server.look("/1.0/profiles/" .. name).description)
  end)

  it("is patched by merging: what isn't named stays, lxd.unset goes", function()
    local name = server.name "p"
    assert(client.profiles:create {
      name = name, description = "stays", config = { ["user.a"] = "1", ["user.b"] = "2" },
      devices = { x = { type = "none" }, y = { type = "none" } },
    }:wait())
    assert(client.profiles(name):patch {
      config = { ["user.a"] = lxd.unset, ["user.c"] = 3 }, devices = { x = lxd.unset },
    }:wait())
    local live = server.look("/1.0/profiles/" .. name)
    assert.are.same({ ["user.b"] = "2", ["user.c"] = "3" }, live.config)
    assert.are.same({ y = { type = "none" } }, live.devices)
    assert.are.equal("stays", live.description)
  end)

  it("is updated in place, and not sent when nothing differs", function()
    local name = server.name "p"
    local quiet, requests = server.tracing()
    assert(quiet.profiles:create { name = name }:wait())
    assert(quiet.profiles(name):update(function(data)
      data.config["user.n"] = 1
    end):wait())
    assert.are.equal("1", server.look("/1.0/profiles/" .. name).config["user.n"])
    local before = #requests
    assert(quiet.profiles(name):update(function(data)
      data.config["user.n"] = "1"
    end):wait())
    assert.are.same({ "GET /1.0/profiles/" .. name }, { unpack and unpack(requests, before + 1)
      or table.unpack(requests, before + 1) })
    quiet:close()
  end)

  it("is updated again when somebody changed it meanwhile", function()
    local name, tries = server.name "p", 0
    assert(client.profiles:create { name = name }:wait())
    assert(client.profiles(name):update(function(data)
      tries = tries + 1
      if tries == 1 then
        server.lxc("profile set %s user.theirs=1", name)
      end
      data.config["user.ours"] = "1"
    end):wait())
    assert.are.equal(2, tries)
    assert.are.same({ ["user.ours"] = "1", ["user.theirs"] = "1" },
      server.look("/1.0/profiles/" .. name).config)
  end)

  it("loses no update of many at once", function()
    local name, ops = server.name "c", {}
    assert(client.containers:create { name = name, source = server.source }:wait())
    for i = 1, 8 do
      ops[i] = client.containers(name):patch { config = { ["user.n" .. i] = i } }
    end
    assert(lxd.wait_all(ops))
    local config = server.look("/1.0/containers/" .. name).config
    for i = 1, 8 do
      assert.are.equal(tostring(i), config["user.n" .. i])
    end
  end)

  it("lets an update's function begin another change, which isn't forbidden to wait", function()
    local name, inner = server.name "p", nil
    assert(client.profiles "default":update(function()
      inner = client.profiles:create { name = name }
    end):wait())
    assert(inner:wait())
    assert.is_true(client.profiles(name):exists())
  end)

  it("loses no update of one object by several names", function()
    local profile, container = server.name "p", server.name "c"
    assert(client.profiles:create { name = profile, config = { ["user.n"] = 0 } }:wait())
    assert(client.containers:create { name = container, source = server.source, config = { ["user.n"] = 0 } }:wait())
    local ops = {}
    local function count(data)
      data.config["user.n"] = data.config["user.n"] + 1
    end
    for _ = 1, 10 do
      for _, item in ipairs { client.profiles(profile), client:project "default".profiles(profile),
        client.containers(container), client.instances(container) } do
        ops[#ops + 1] = item:update(count)
      end
    end
    assert(lxd.wait_all(ops))
    assert.are.equal("20", server.look("/1.0/profiles/" .. profile).config["user.n"])
    assert.are.equal("20", server.look("/1.0/containers/" .. container).config["user.n"])
  end)

  it("writes what has no name yet as it writes what has one", function()
    local name = server.name "p"
    assert(client:request("POST", "/1.0/profiles", { json = {
      name = name, config = { ["limits.cpu"] = 2, ["boot.autostart"] = true },
    } }))
    assert.are.same({ ["limits.cpu"] = "2", ["boot.autostart"] = "true" }, server.look("/1.0/profiles/" .. name).config)
    -- There a boolean means what it is (core.trust_password): LXD refuses it elsewhere.
    local answer, err = client:request("PATCH", "/1.0?x=", { json = { config = { ["user.x"] = true } } })
    assert.is_nil(answer)
    assert.matches("invalid type bool", err.message)
  end)

  it("raises for data that can't be sent, whichever way", function()
    local item = client.profiles "default"
    local cycle = {}
    cycle.x = cycle
    for _, config in ipairs { { x = print }, { x = 0 / 0 }, { x = "\255" }, cycle } do
      assert.error_matches(function() client.profiles:create { name = "x", config = config } end, "^[^\n]*create: ")
      assert.error_matches(function() item:put { config = config } end, "^[^\n]*put: ")
      assert.error_matches(function() item:patch { config = config } end, "^[^\n]*patch: ")
      assert.error_matches(function() client.containers "x":copy("y", { config = config }) end, "^[^\n]*copy: ")
      assert.error_matches(function() client.containers "x":publish { properties = config } end, "^[^\n]*publish: ")
    end
    for _, properties in ipairs { { x = print }, { x = 0 / 0 }, { x = {} }, { "x" } } do
      assert.error_matches(function() client.images:import("/x", { properties = properties }) end,
        "^[^\n]*import: option 'properties'")
    end
    assert.error_matches(function() client:request("GET", "/1.0", { query = { x = 0 / 0 } }) end, "option 'query': x ")
    assert.error_matches(function() lxd.array "x" end, "lxd.array: list must be a table")
  end)

  it("fails an update whose function raises or waits", function()
    local _, err = client.profiles "default":update(function()
      error "no, thanks"
    end):wait()
    assert.matches("no, thanks", tostring(err))
    _, err = client.profiles "default":update(function()
      lxd.sleep(0)
    end):wait()
    assert.matches("must not wait", tostring(err))
    -- Whether the answer would have been there at once or not.
    local engine, asked, under_way = client._scope.link.engine, nil, nil
    assert(client.profiles "default":update(function()
      local before = engine:count()
      asked = pcall(client.get, client)
      under_way = engine:count() - before
    end):wait())
    assert.are.same({ false, 0 }, { asked, under_way })
  end)

  it("is renamed and deleted", function()
    local name, other = server.name "p", server.name "p"
    assert(client.profiles:create { name = name }:wait())
    assert(client.profiles(name):rename(other):wait())
    assert.is_nil(server.look("/1.0/profiles/" .. name))
    assert(server.look("/1.0/profiles/" .. other))
    assert(client.profiles(other):delete():wait())
    assert.is_nil(server.look("/1.0/profiles/" .. other))
    assert.are.equal("not_found", kind_of(client.profiles(other):delete():wait()))
  end)
end)

describe("a collection", function()
  it("is listed, named and iterated", function()
    local names = client.profiles:names()
    local found = {}
    for name, data in client.profiles:each() do
      found[#found + 1] = name
      assert.are.equal(name, data.name)
    end
    table.sort(names)
    table.sort(found)
    assert.are.same(names, found)
    assert.is_true(#names >= 1)
    assert.are.equal("/1.0/profiles/" .. names[1], client.profiles:list { recursion = 0 }[1]
      and "/1.0/profiles/" .. names[1])
  end)

  it("reads every kind of a standalone server", function()
    for _, kind in ipairs {
      "containers", "instances", "virtual_machines", "profiles", "images", "networks", "network_acls",
      "storage_pools", "projects", "certificates", "operations", "warnings",
    } do
      local list, err = client[kind]:list()
      assert(list, tostring(err))
      for name, data in client[kind]:each() do
        assert.is_string(name)
        assert.is_table(data)
      end
    end
    assert.is_table(client.storage_pools "default":resources().space)
    assert.is_table(client.projects "default":state())
  end)

  it("raises where a listing fails, tells an unknown option and an unknown kind", function()
    local elsewhere = client:project "nowhere-at-all"
    assert.is_nil(elsewhere.projects "nowhere-at-all":get())
    assert.has_error(function()
      client.profiles:list { recursoin = 1 }
    end, "list: unknown option 'recursoin'; did you mean 'recursion'?")
    assert.is_nil(client.nonsense)
  end)

  it("tells errors of a creation by kind", function()
    local function creation(data)
      data.source = data.source or server.source
      return kind_of(client.containers:create(data):wait())
    end
    assert.are.equal("not_found", creation { name = "x", source = { type = "image", alias = "none" } })
    assert.are.equal("not_found", creation { name = "x", profiles = { "none" } })
    assert.are.equal("invalid", creation { name = "x", config = { none = 1 } })
    assert.are.equal("invalid", creation { name = "not_a_name" })
    local name = server.name "c"
    assert(client.containers:create { name = name, source = server.source }:wait())
    assert.are.equal("exists", creation { name = name })
    assert.are.equal("exists", kind_of(client.profiles:create { name = "default" }:wait()))
    assert.are.equal("in_use", kind_of(client.storage_pools "default":delete():wait()))
    assert.has_error(function()
      client.containers:create { name = print }
    end)
  end)

  it("keeps a profile in use", function()
    local profile, name = server.name "p", server.name "c"
    assert(client.profiles:create { name = profile }:wait())
    assert(client.containers:create {
      name = name, source = server.source, profiles = { "default", profile },
    }:wait())
    assert.are.equal("in_use", kind_of(client.profiles(profile):delete():wait()))
  end)
end)

describe("an instance", function()
  local name, item

  setup(function()
    name = server.name "c"
    item = client.containers(name)
    assert(client.containers:create { name = name, source = server.source }:wait())
  end)

  local function status()
    return server.look("/1.0/containers/" .. name).status
  end

  it("changes its state", function()
    assert(item:start():wait())
    assert.are.equal("Running", status())
    assert.are.equal("Running", item:state().status)
    assert.are.equal("state", kind_of(item:start():wait()))
    assert(item:freeze():wait())
    assert.are.equal("Frozen", status())
    assert(item:unfreeze():wait())
    assert(item:restart { force = true }:wait())
    assert.are.equal("Running", status())
    assert.are.equal("state", kind_of(item:delete():wait()))
    assert(item:stop { force = true }:wait())
    assert.are.equal("Stopped", status())
    assert.are.equal("state", kind_of(item:stop { force = true }:wait()))
  end)

  it("has snapshots, is restored, copied, moved and published", function()
    assert(item.files:write("/etc/motd", "before"):wait())
    assert(item.snapshots:create { name = "s 0" }:wait() == nil)
    assert(item.snapshots:create { name = "s0" }:wait())
    assert.are.equal("exists", kind_of(item.snapshots:create { name = "s0" }:wait()))
    assert(item.snapshots:create { name = "s#1" }:wait())
    local names = item.snapshots:names()
    table.sort(names)
    assert.are.same({ "s#1", "s0" }, { names[1], names[2] })
    assert(item.snapshots "s#1":delete():wait())
    assert.are.same({ "s0" }, { item.snapshots:names()[1] })
    assert(item.files:write("/etc/motd", "after"):wait())
    assert.are.equal("not_found", kind_of(item:restore("none"):wait()))
    assert(item:restore("s0"):wait())
    assert.are.equal("before", (item.files:read "/etc/motd"))

    local project, other = server.name "pr", server.name "c"
    assert(client.projects:create { name = project, config = { ["features.profiles"] = false } }:wait())
    assert(item:copy(other, { project = project }):wait())
    local there = client:project(project).containers(other)
    assert.is_true(there:exists())
    assert(there:delete():wait())
    assert(client.projects(project):delete():wait())

    local copy, moved, alias = server.name "c", server.name "c", server.name "a"
    assert(item:copy(copy, { snapshot = "s0", config = { ["user.copy"] = true } }):wait())
    assert.are.equal("true", server.look("/1.0/containers/" .. copy).config["user.copy"])
    assert(client.containers(copy):move(moved):wait())
    assert.is_nil(server.look("/1.0/containers/" .. copy))
    assert(server.look("/1.0/containers/" .. moved))
    local published = assert(client.containers(moved):publish { alias = alias }:wait())
    assert.are.equal(published.metadata.fingerprint,
      server.look("/1.0/images/aliases/" .. alias).target)
    assert(client.images(published.metadata.fingerprint):delete():wait())
    assert(item.snapshots "s0":delete():wait())
    assert.is_nil(server.look("/1.0/containers/" .. name .. "/snapshots/s0"))
  end)

  it("is deleted while it runs only with force", function()
    assert(item:start():wait())
    assert(item:delete { force = true }:wait())
    assert.is_nil(server.look("/1.0/containers/" .. name))
    assert.are.equal("not_found", kind_of(item:delete { force = true }:wait()))
  end)
end)

describe("the server", function()
  it("keeps its trust password when what was read is put back", function()
    server.lxc "config set core.trust_password=secret-word"
    finally(function()
      server.lxc "config unset core.trust_password"
    end)
    local function hash()
      local _, out = server.shell(
        "lxd sql global \"SELECT value FROM config WHERE key='core.trust_password'\"")
      return out
    end
    local before = hash()
    assert.matches("%x%x%x%x%x%x%x%x", before)
    local data, etag = client:get()
    assert.is_true(data.config["core.trust_password"])
    assert(client:put(data, etag):wait())
    assert.are.equal(before, hash())
    assert(client:patch { config = { ["user.lualxd-spec"] = 7 } }:wait())
    assert.are.equal(before, hash())
    assert.are.equal("7", server.look "/1.0".config["user.lualxd-spec"])
    assert(client:patch { config = { ["user.lualxd-spec"] = lxd.unset } }:wait())
    assert.is_nil(server.look "/1.0".config["user.lualxd-spec"])
    assert.are.equal(before, hash())
  end)

  it("knows its extensions", function()
    assert.is_true(client:has "etag")
    assert.is_false(client:has "instances_files_modify_permissions")
  end)
end)

describe("connecting without options", function()
  -- What was told is meant: changes must not go to another server than that.
  it("passes over no socket that it was told of #builtin", function()
    local path = os.tmpname()
    local ok, out = server.shell(string.format(
      "env -u LUA_INIT LXD_SOCKET='%s' LXD_DIR='%s' %s -e '%s'", path, os.getenv "LXD_DIR", server.interpreter(), [[
        local client, err = require("lualxd").connect()
        print(client, err.kind, err)
      ]]))
    os.remove(path)
    assert.is_true(ok, out)
    assert.matches("^nil\tconnect\t[^\n]*" .. path:gsub("%p", "%%%0"), out)
  end)

  it("takes an empty variable for none #builtin", function()
    local ok, out = server.shell(string.format(
      "env -u LUA_INIT LXD_SOCKET= LXD_DIR= %s -e '%s'", server.interpreter(),
      [[print(require("lualxd.place").find {} and "found" or select(2, require("lualxd.place").find {}).message)]]))
    assert.is_true(ok, out)
    assert.is_nil(out:find(" /unix.socket", 1, true), out)
  end)
end)
