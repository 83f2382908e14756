-- A declaration is checked whole before anything is asked: what is wrong is told, all of it, in
-- order.
local declaration = require "lualxd.reconcile.declaration"
local words = require "lualxd.words"

local function mistakes(source)
  local declared, err = declaration.read(source)
  assert.is_nil(declared)
  assert.are.equal("invalid", err.kind)
  local lines = {}
  for index, mistake in ipairs(err.errors) do
    lines[index] = mistake.path .. ": " .. mistake.message
  end
  assert.are.equal(table.concat(lines, "; "), err.message)
  assert.are.equal(err.message, tostring(err))
  return lines
end

-- The one mistake of a container's fields.
local function container(fields)
  local lines = mistakes { stack = "s", containers = { web1 = fields } }
  assert.are.equal(1, #lines, table.concat(lines, "\n"))
  return lines[1]
end

local function entry(fields)
  local declared = assert(declaration.read { stack = "s", containers = { web1 = fields } })
  return declared.by_path["containers.web1"]
end

local function leaf(fields, path)
  for _, found in ipairs(entry(fields).leaves) do
    if found.path == path then
      return found
    end
  end
end

describe("a declaration", function()
  it("of nothing but a stack is right", function()
    assert.are.same({}, assert(declaration.read { stack = "s" }).entries)
  end)

  it("tells all its mistakes at once, sorted", function()
    assert.are.same({
      "containers.web1.config.limits.cpu: must be a string, number or boolean, got table",
      "containers.web1.ephemeral: expected true or false, got string",
      "containers.web1.profles: unknown field; did you mean profiles?",
      "containers.web1.state: \"runing\" is no state; did you mean running?",
      "contaners: unknown field; did you mean containers?",
      "profiles.base.devices: expected a table, got string",
      "stack: required: the name of who owns what this table declares",
    }, mistakes {
      contaners = {},
      profiles = { base = { devices = "root" } },
      containers = { web1 = { profles = { "base" }, ephemeral = "no", state = "runing",
        config = { ["limits.cpu"] = {} } } },
    })
  end)

  it("refuses what a later release will know, rather than ignoring it", function()
    for _, section in ipairs { "networks", "images", "storage_pools", "projects", "instances" } do
      local lines = mistakes { stack = "s", [section] = {} }
      assert.are.equal(1, #lines)
      assert.matches("^" .. section .. ": not supported yet", lines[1])
    end
    assert.matches("virtual machines are not supported yet", container { type = "virtual-machine" })
  end)

  it("refuses names that LXD won't take, whatever they are", function()
    for _, name in ipairs { "a/b", "a?b", "a%b", "a\nb", "..", "", "1a", "-a", "a-", "a_b",
      ("x"):rep(64), ("x"):rep(10000) } do
      local lines = mistakes { stack = "s", containers = { [name] = {} } }
      assert.are.equal(1, #lines)
      assert.matches("^containers%..*not a name for a container", lines[1])
      assert.is_nil(lines[1]:find("%c"))
      assert.is_true(#lines[1] < 250)
    end
    for _, name in ipairs { "a/b", "..", ".", "", "a\1" } do
      assert.are.equal(1, #mistakes { stack = "s", profiles = { [name] = {} } })
    end
    assert(declaration.read { stack = "s", profiles = { ["über all"] = {} },
      containers = { a = {}, ["A-1"] = {}, [("x"):rep(63)] = {} } })
  end)

  it("refuses entries and sections that are no tables, and keys that are no names", function()
    assert.are.same({ "containers: expected a table, got string" },
      mistakes { stack = "s", containers = "web" })
    assert.are.same({ "containers.web1: expected a table or lxd.absent, got boolean" },
      mistakes { stack = "s", containers = { web1 = true } })
    assert.are.same({ "containers.web1: expected a table or lxd.absent, got lxd.auto" },
      mistakes { stack = "s", containers = { web1 = words.auto } })
    assert.are.same({ "containers[1]: a name must be a string, got number" },
      mistakes { stack = "s", containers = { { image = "x" } } })
    assert.matches("a key must be a string", container { "busybox" })
    assert.are.same({ "stack: expected a string, got number" }, mistakes { stack = 3 })
    assert.are.same({ "stack: must be a name of 1 to 100 characters" }, mistakes { stack = "" })
    assert.are.same({ "[1]: unknown field" }, mistakes { stack = "s", "x" })
  end)

  it("finds what contains itself, once, wherever it is", function()
    local source = { stack = "s", containers = { web1 = { config = {} } } }
    source.containers.web1.config.loop = source
    assert.are.same({ "containers.web1.config.loop: a cycle: it contains the declaration itself" },
      mistakes(source))
    local devices = {}
    devices.devices = devices
    assert.are.same(
      { "containers.web1.devices.devices: a cycle: it contains containers.web1.devices" },
      mistakes { stack = "s", containers = { web1 = { devices = devices } } })
    source = { stack = "s" }
    source.profiles = source
    assert.are.same({ "profiles: a cycle: it contains the declaration itself" }, mistakes(source))
    local image = { type = "image" }
    image.properties = { image }
    assert.are.equal(1, #mistakes { stack = "s", containers = { web1 = { image = image } } })
    -- In many places: told of the first of them, wherever Lua has which.
    for round = 1, 5 do
      local many = {}
      for index = 10, 30 do
        many["c" .. round .. index] = devices
      end
      assert.matches("^containers%.c" .. round .. "10%.devices: a cycle",
        mistakes({ stack = "s", containers = many })[1])
    end
  end)

  it("may use one table in many places", function()
    local config = { ["limits.cpu"] = 1 }
    local profile = { config = config }
    assert(declaration.read { stack = "s", profiles = { a = profile, b = profile },
      containers = { web1 = { config = config } } })
  end)

  it("survives depth and width", function()
    local deep = {}
    local inner = deep
    for _ = 1, 100000 do
      inner.devices = {}
      inner = inner.devices
    end
    assert.matches("too deep", table.concat(
      mistakes { stack = "s", containers = { web1 = deep } }, "; "))
    -- Each level twice below the one above: 2^60 paths, 60 tables.
    local wide = {}
    for _ = 1, 60 do
      wide = { a = wide, b = wide }
    end
    assert.is_true(#mistakes { stack = "s", containers = { web1 = { image = wide } } } > 0)
  end)
end)

describe("a config value", function()
  it("is the text that LXD keeps", function()
    local config = { a = 1, b = 1.5, c = true, d = "x", e = 2 ^ 40, f = 1e15, g = -3 }
    local texts = { a = "1", b = "1.5", c = "true", d = "x", e = "1099511627776",
      f = "1000000000000000", g = "-3" }
    for key, text in pairs(texts) do
      assert.are.equal(text, leaf({ config = config }, "config." .. key).text)
    end
  end)

  it("that is empty is one that must not be there, because LXD doesn't store it", function()
    assert.are.equal("unset", leaf({ config = { a = "" } }, "config.a").word)
    assert.are.equal("unset", leaf({ description = "" }, "description").word)
  end)

  it("may be a word", function()
    local config = { a = words.auto, b = words.unset, c = words.ignore, d = words.ignore(5),
      e = words.secret "pw", f = words.secret(function()
        return 7
      end) }
    assert.are.equal("auto", leaf({ config = config }, "config.a").word)
    assert.are.equal("unset", leaf({ config = config }, "config.b").word)
    assert.are.equal("ignore", leaf({ config = config }, "config.c").word)
    assert.is_nil(leaf({ config = config }, "config.c").text)
    assert.are.equal("5", leaf({ config = config }, "config.d").text)
    assert.are.equal("ignore", leaf({ config = config }, "config.d").word)
    assert.is_true(leaf({ config = config }, "config.e").secret)
    assert.are.equal("7", leaf({ config = config }, "config.f").text)
    assert.are.same({ "pw", "7" }, entry({ config = config }).secrets)
  end)

  it("that LXD can't keep is refused", function()
    assert.matches("is not UTF%-8", container { config = { a = "\255" } })
    assert.matches("is not UTF%-8", container { config = { a = "ok \237\160\128" } })
    assert.matches("NUL", container { config = { a = "x\0y" } })
    assert.matches("finite", container { config = { a = 0 / 0 } })
    assert.matches("finite", container { config = { a = math.huge } })
    assert.matches("got function", container { config = { a = print } })
    assert.matches("lxd.absent doesn't work here", container { config = { a = words.absent } })
    assert.matches("user.lualxd", container { config = { ["user.lualxd.owner"] = "x" } })
    assert.matches("copies image", container { config = { ["image.os"] = "x" } })
    assert.are.equal("grün €𝄞", leaf({ config = { a = "grün €𝄞" } }, "config.a").text)
  end)

  it("that a function should give and doesn't is told without what the function said", function()
    local line = container { config = { a = words.secret(function()
      error "hunter2"
    end) } }
    assert.are.equal("containers.web1.config.a: the function that should give the secret raised"
      .. " an error", line)
    assert.matches("gave nil", container { config = { a = words.secret(function() end) } })
    assert.matches("got table", container { config = { a = words.secret(function()
      return {}
    end) } })
  end)
end)

describe("fields", function()
  it("have their types", function()
    assert.matches("config: expected a table, got string", container { config = "x" })
    assert.matches("config: expected a table, got lxd.auto", container { config = words.auto })
    assert.matches("devices.root: expected a table, got string",
      container { devices = { root = "disk" } })
    for _, wrong in ipairs { 5, true, {}, words.auto, words.secret "disk", print } do
      assert.matches("devices.root.type: expected a string, got ", container { devices = {
        root = { type = wrong, path = "/" } } })
    end
    assert.matches("devices.root.type: is empty", container { devices = { root = { type = "" } } })
    assert.matches("description: expected a string, got number", container { description = 1 })
    assert.matches("ephemeral: expected true or false", container { ephemeral = 1 })
    assert.matches("profiles: expected a list of names, got string", container { profiles = "a" })
    assert.matches("profiles: expected a list, but it has the key \"x\"",
      container { profiles = { x = 1 } })
    assert.matches("profiles: expected a list, but it has holes", container { profiles = {
      [1] = "a", [3] = "b" } })
    assert.matches("profiles%[2%]: \"a\" is there twice", container { profiles = { "a", "a" } })
    assert.matches("keep: expected true or false", container { keep = "yes" })
    assert.matches("project: is not a name", container { project = ".." })
    assert.matches("type: expected \"container\", got \"vm\"", container { type = "vm" })
    assert.matches("state: expected running, stopped or frozen, got boolean",
      container { state = true })
  end)

  it("of profiles are fewer", function()
    assert.are.same({ "profiles.a.image: unknown field", "profiles.a.state: unknown field" },
      mistakes { stack = "s", profiles = { a = { image = "x", state = "running" } } })
  end)

  it("image is an alias, a fingerprint or a source", function()
    assert.are.equal("busybox", entry({ image = "busybox" }).image.text)
    local source = entry({ image = { server = "https://x", protocol = "simplestreams",
      alias = "22.04" } }).image
    assert.are.same({ type = "image", mode = "pull", server = "https://x",
      protocol = "simplestreams", alias = "22.04" }, source.source)
    assert.matches("image: expected an alias", container { image = 3 })
    assert.matches("image: is empty", container { image = "" })
    assert.matches("image: needs one of alias", container { image = {} })
    assert.matches("image: needs one of alias", container { image = { alias = "a",
      fingerprint = "b" } })
    assert.matches("image.alis: unknown field; did you mean alias",
      container { image = { alis = "a", fingerprint = "b" } })
    assert.matches("type: \"copy\" is not supported yet", container { image = { type = "copy" } })
    assert.are.equal("none", entry({ image = { type = "none" } }).image.source.type)
  end)

  it("files are plain absolute paths with content, and nothing below a file", function()
    local files = entry({ files = { ["/b"] = { content = "x", mode = "0644", uid = 0 },
      ["/a"] = { content = "", mode = 420 } } }).files
    assert.are.same({ "/a", "/b" }, { files[1].name, files[2].name })
    assert.are.same({ 420, 420 }, { files[1].mode, files[2].mode })
    for _, path in ipairs { "a", "/", "/a/", "/a//b", "/a/../b", "/./a", "/a\n" } do
      assert.matches("path", container { files = { [path] = { content = "" } } })
    end
    assert.matches("content: required", container { files = { ["/a"] = {} } })
    assert.matches("expected a string, got number", container { files = {
      ["/a"] = { content = 5 } } })
    assert.matches("expected a mode like \"0644\", got 0999", container { files = {
      ["/a"] = { content = "", mode = "0999" } } })
    assert.matches("expected a mode like \"0644\", got 4755", container { files = {
      ["/a"] = { content = "", mode = "4755" } } })
    assert.matches("expected a number from 0 up", container { files = {
      ["/a"] = { content = "", uid = -1 } } })
    assert.matches("contents: unknown field; did you mean content", container { files = {
      ["/a"] = { contents = "", content = "" } } })
    assert.matches("files./a/b/c: /a is declared as a file", container { files = {
      ["/a"] = { content = "" }, ["/a/b/c"] = { content = "" } } })
  end)

  it("snapshots are a list, or a map with details, or both", function()
    local function names(snapshots)
      local list = {}
      for index, snapshot in ipairs(entry({ snapshots = snapshots }).snapshots) do
        list[index] = snapshot.name .. (snapshot.expires_at and " " .. snapshot.expires_at or "")
      end
      return list
    end
    assert.are.same({ "a", "b" }, names { "b", "a" })
    assert.are.same({ "a 2030-01-31T12:00:00Z", "b" },
      names { "b", a = { expires_at = "2030-01-31T12:00:00Z" } })
    assert.matches("%[1%]: is not a name", container { snapshots = { "a b" } })
    assert.matches("\"a\" is there twice", container { snapshots = { "a", a = {} } })
    assert.matches("expected a time", container { snapshots = { a = { expires_at = "soon" } } })
    assert.matches("expires_a: unknown field; did you mean expires_at",
      container { snapshots = { a = { expires_a = "x" } } })
  end)

  it("ready is a command and a time", function()
    local ready = entry({ ready = { exec = { "true" } } }).ready
    assert.are.same({ exec = { "true" }, timeout = 60 }, ready)
    assert.matches("ready.exec: required", container { ready = {} })
    assert.matches("ready.exec: is empty", container { ready = { exec = {} } })
    assert.matches("expected a command as a list", container { ready = { exec = "true" } })
    assert.matches("ready.exec%[1%]: expected a string, got number", container { ready = {
      exec = { 5 } } })
    assert.matches("timeout: expected seconds", container { ready = { exec = { "true" },
      timeout = 0 } })
    assert.matches("only what is running can be ready", container { state = "stopped",
      ready = { exec = { "true" } } })
  end)

  it("after names what is declared, and has no circles", function()
    local declared = assert(declaration.read { stack = "s", profiles = { base = {} },
      containers = { a = {}, b = { after = { "a", "containers.c", "profiles.base" } },
        c = { after = "a" } } })
    assert.are.equal("a", declared.by_path["containers.c"].after[1].entry.name)
    assert.are.same({ "containers.b.after: no container \"web\" is declared; did you mean web1?" },
      mistakes { stack = "s", containers = { web1 = {}, b = { after = "web" } } })
    assert.are.same({ "containers.a.after: b is declared absent" }, mistakes { stack = "s",
      containers = { a = { after = "b" }, b = words.absent } })
    assert.are.same({ "containers.a.after: a cycle: a -> b -> c -> a" }, mistakes { stack = "s",
      containers = { a = { after = "b" }, b = { after = "c" }, c = { after = "a" } } })
    assert.are.same({ "containers.a.after: a cycle: a -> a" }, mistakes { stack = "s",
      containers = { a = { after = "a" } } })
  end)
end)

describe("the words", function()
  it("are unique, show what they are and can't be changed", function()
    assert.are.equal("lxd.auto", tostring(words.auto))
    assert.are.equal("(secret)", tostring(words.secret "pw"))
    assert.are_not.equal(words.auto, words.unset)
    for _, word in ipairs { words.auto, words.unset, words.ignore, words.absent } do
      assert.is_nil(next(word))
      assert.has_error(function()
        word.x = 1
      end)
    end
    assert.has_error(function()
      words.secret {}
    end)
    assert.has_error(function()
      words.ignore(words.auto)
    end)
  end)

  it("hide what they hold from whoever walks tables", function()
    local secret = words.secret "pw"
    assert.is_nil(next(secret))
    for _, value in pairs(getmetatable(secret)) do
      assert.are_not.equal("pw", value)
    end
  end)

  it("ask a secret's function once", function()
    local asked = 0
    local secret = words.secret(function()
      asked = asked + 1
      return "pw"
    end)
    assert.are.equal("pw", words.reveal(secret))
    assert.are.equal("pw", words.reveal(secret))
    assert.are.equal(1, asked)
  end)
end)
