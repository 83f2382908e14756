-- examples/shop.lua, which `make demo` runs: it goes through, and takes down what it made, also when
-- the user has pressed Ctrl-C somewhere on the way.
local server = require "spec.support.lxd"

local function what_is_there()
  local there = {}
  for _, path in ipairs { "containers", "profiles", "images", "images/aliases" } do
    there[path] = server.curl("GET", "/1.0/" .. path).metadata
  end
  return there
end

local image = os.tmpname()

setup(function()
  assert(server.shell("spec/support/image " .. image))
end)

teardown(function()
  os.remove(image)
end)

local function run(prefix)
  local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
  return server.shell(prefix .. interpreter .. " examples/shop.lua " .. image)
end

describe("examples/shop.lua", function()
  it("shows a plan, applies it, repairs what was changed and takes all of it down", function()
    local before = what_is_there()
    local ok, out = run ""
    assert.is_true(ok, out)
    local at = 1
    for _, text in ipairs { "== The plan", "== Applied", "== Planned again",
      "== Somebody changes a profile and stops a container", "== Repaired", "nothing left to do",
      "== Taken down" } do
      at = assert(select(2, out:find(text, at, true)), text .. " is missing in\n" .. out)
    end
    assert.are.same(before, what_is_there())
  end)

  it("takes down what it made when it is interrupted", function()
    local before = what_is_there()
    -- In the foreground, `timeout` signals once; the second signal of its other way kills (lua.c).
    for _, seconds in ipairs { 0.1, 0.3, 0.6, 0.9, 1.3 } do
      local _, out = run("timeout --foreground --preserve-status -s INT " .. seconds .. " ")
      assert.are.same(before, what_is_there(), seconds .. " s: " .. out)
    end
  end)
end)
