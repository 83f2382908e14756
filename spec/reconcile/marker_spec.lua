-- The mark: what is written on an object comes back, and counts on no other object.
local effects = require "lualxd.reconcile.effects"
local marker = require "lualxd.reconcile.marker"
local values = require "lualxd.reconcile.values"

local function written(mark)
  local config = {}
  for key, text in pairs(marker.keys(mark)) do
    config[key] = text ~= "" and text or nil -- as LXD keeps them
  end
  return config
end

describe("a mark", function()
  it("comes back as it was written, whatever the names", function()
    for _, name in ipairs { "web1", "a b", "a/b,c=d#e@f:g%h", "ü\n" } do
      local mark = marker.new(name, "profile", name, name, "home/" .. name)
      mark.last["config.user." .. name] = marker.hash(mark, "x", "y")
      mark.last["files./etc/" .. name] = "s0123456789"
      mark.keep = true
      mark.todo = { files = "", restart = "2026-11-23T23:49:50.68Z", ready = "" }
      assert.are.same(mark, marker.read(written(mark), name, "profile", name, name))
    end
    local plain = marker.new("s", "container", "default", "web1", "default")
    assert.are.same(plain, marker.read(written(plain), "s", "container", "default", "web1"))
    assert.is_nil(written(plain)[marker.TODO])
  end)

  it("is bound to its object's kind, project and name", function()
    local config = written(marker.new("shop", "container", "p", "web1", "p"))
    assert.are.equal("ours", marker.read(config, "shop", "container", "p", "web1").whose)
    assert.are.equal("theirs", marker.read(config, "other", "container", "p", "web1").whose)
    assert.are.equal("copy", marker.read(config, "shop", "container", "p", "web2").whose)
    assert.are.equal("copy", marker.read(config, "shop", "container", "default", "web1").whose)
    assert.are.equal("copy", marker.read(config, "shop", "profile", "p", "web1").whose)
    assert.are.equal("copy", marker.read(config, "other", "container", "p", "web2").whose)
  end)

  it("that makes no sense is none", function()
    assert.is_nil(marker.read(nil, "s", "container", "p", "n"))
    assert.is_nil(marker.read({}, "s", "container", "p", "n"))
    for _, text in ipairs { "", "x", "s/container/p/n", "s/container/p/n#", "s/container/n#ab",
      "s/container/p/n#xyz", "#ab" } do
      assert.is_nil(marker.read({ [marker.OWNER] = text }, "s", "container", "p", "n"), text)
    end
    -- What was applied is forgotten where it can't be read; whose it is, isn't.
    local config = written(marker.new("s", "container", "p", "n", "p"))
    for _, last in ipairs { "2 a=b", "nonsense", "1" } do
      config[marker.LAST] = last
      local mark = marker.read(config, "s", "container", "p", "n")
      assert.are.equal("ours", mark.whose)
      assert.are.same({}, mark.last)
    end
  end)

  it("has hashes in it that say nothing elsewhere", function()
    local one = marker.new("s", "container", "p", "n", "p")
    local other = marker.new("s", "container", "p", "n", "p")
    assert.are_not.equal(one.nonce, other.nonce)
    assert.are_not.equal(marker.hash(one, "a", "secret"), marker.hash(other, "a", "secret"))
    assert.are_not.equal(marker.hash(one, "a", "secret"), marker.hash(one, "b", "secret"))
    assert.are_not.equal(marker.hash(one, "a", nil), marker.hash(one, "a", ""))
    assert.matches("^%x%x%x%x%x%x%x%x%x%x$", marker.hash(one, "a", "secret"))
  end)

  it("knows a value again by what it means, and that it was a secret", function()
    local mark = marker.new("s", "container", "p", "n", "p")
    mark.last.a = marker.hash(mark, "a", "1GiB", "bytes", true)
    assert.is_true(marker.matches(mark, "a", "1024MiB", "bytes"))
    assert.is_false(marker.matches(mark, "a", "1025MiB", "bytes"))
    assert.is_false(marker.matches(mark, "a", nil, "bytes"))
    assert.is_false(marker.matches(mark, "b", "1GiB", "bytes"))
    assert.is_true(marker.was_secret(mark, "a"))
    assert.is_false(marker.was_secret(mark, "b"))
  end)
end)

describe("values", function()
  it("mean the same by LXD's units", function()
    local function same(kind, one, other)
      assert.are.equal(values.canonical(kind, one), values.canonical(kind, other))
    end
    same("bytes", "1GiB", "1024MiB")
    same("bytes", "1GiB", "1073741824")
    same("bytes", "1kB", "1000B")
    same("bytes", "5 bytes", "5")
    same("bits", "1Mbit", "1000kbit")
    same("bool", "yes", "true")
    same("bool", "Off", "0")
    for _, pair in ipairs { { "bytes", "1GiB", "1GB" }, { "bytes", "50%", "50" },
      { "bytes", "1gib", "1GiB" }, { nil, "1", "true" }, { nil, "1GiB", "1024MiB" },
      { "bool", "maybe", "true" }, { "bits", "1MB", "1Mbit" } } do
      assert.are_not.equal(values.canonical(pair[1], pair[2]), values.canonical(pair[1], pair[3]))
    end
  end)
end)

describe("effects", function()
  it("of config keys are the driver's", function()
    for key, effect in pairs {
      ["user.x"] = "none", ["user.lualxd.owner"] = "none", ["user.user-data"] = "next_start",
      ["limits.memory"] = "live", ["limits.memory.swap.priority"] = "live",
      ["limits.cpu"] = "live", ["limits.kernel.nofile"] = "next_start",
      ["security.nesting"] = "live", ["security.privileged"] = "next_start",
      ["boot.autostart"] = "none", ["boot.autostart.delay"] = "none",
      ["environment.X"] = "next_start", ["raw.lxc"] = "next_start",
      ["cloud-init.user-data"] = "next_start", ["snapshots.schedule"] = "none",
      ["volatile.eth0.hwaddr"] = "next_start", ["a.key.nobody.knows"] = "next_start",
      ["limits.cpu.allowance"] = "live", ["limits"] = "next_start",
    } do
      assert.are.equal(effect, effects.config(key), key)
    end
  end)

  it("of devices are those of their types' updatable fields", function()
    local disk = { type = "disk", source = "/a", path = "/mnt" }
    local function changed(device, key, value)
      local other = {}
      for k, v in pairs(device) do
        other[k] = v
      end
      other[key] = value
      return effects.device(device, other, { br0 = { type = "bridge" }, o = { type = "ovn" } })
    end
    assert.are.equal("live", effects.device(nil, disk))
    assert.are.equal("replug", effects.device(disk, nil))
    assert.are.equal("none", effects.device(disk, { type = "disk", source = "/a", path = "/mnt" }))
    assert.are.equal("live", changed(disk, "size", "1GiB"))
    assert.are.equal("replug", changed(disk, "readonly", "true"))
    assert.are.equal("next_start", changed({ type = "disk", path = "/", pool = "p" }, "readonly",
      "true"))
    assert.are.equal("live", changed({ type = "nic", network = "br0" }, "limits.max", "1Mbit"))
    assert.are.equal("replug", changed({ type = "nic", network = "br0" }, "name", "eth1"))
    assert.are.equal("live", changed({ type = "nic", network = "o" }, "security.acls", "a"))
    assert.are.equal("replug", changed({ type = "nic", network = "o" }, "limits.max", "1Mbit"))
    assert.are.equal("stop", changed({ type = "nic", nictype = "ipvlan", parent = "e" }, "name",
      "x"))
    assert.are.equal("none", effects.device(nil, { type = "none" }))
    assert.are.equal("replug", effects.device(disk, { type = "none" }))
    assert.are.equal("replug", effects.device(disk, { type = "nic", network = "br0" }))
  end)
end)
