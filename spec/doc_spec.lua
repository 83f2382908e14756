-- What README.md and doc/ show runs as it stands, in the order in which it is read.
local server = require "spec.support.lxd"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

-- Runs pieces of Lua as one script.
local function run(pieces)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(table.concat(pieces, "\n"))
  file:close()
  local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
  local ok, out = server.shell("timeout 120 " .. interpreter .. " " .. path)
  os.remove(path)
  assert.is_true(ok, out)
  return out
end

local function pieces_of(path)
  local pieces = {}
  for piece in read(path):gmatch "```lua\n(.-)```" do
    pieces[#pieces + 1] = piece
  end
  return pieces
end

-- Their names are those of the texts.
local function clean()
  for _, name in ipairs { "web", "web1", "web2", "web3" } do
    server.shell("lxc delete -f " .. name)
  end
  server.shell "lxc profile delete base"
end

describe("what is shown in", function()
  before_each(clean)
  after_each(clean)

  it("README.md and of tasks", function()
    local pieces = pieces_of "README.md"
    table.remove(pieces, 3) -- joins a server
    for _, piece in ipairs(pieces_of "doc/loops/tasks.md") do
      pieces[#pieces + 1] = piece
    end
    local out = run(pieces)
    assert.matches("Plan: 3 to create, 3 to start%.\nRunning\n%x+  /tmp/hello\n\nRunning\n", out)
  end)

  it("doc/declaring.md", function()
    assert.matches("done%s+containers/web1:snapshot:pristine\ntrue\n$", run(pieces_of "doc/declaring.md"))
  end)
end)

describe("doc/api.md", function()
  local text = read "doc/api.md"

  it("has each public function of the module", function()
    for name, value in pairs(require "lualxd") do
      if type(value) == "function" then
        assert(text:find("lxd." .. name, 1, true), name)
      end
    end
  end)

  it("has each collection, and each method of what has them", function()
    local tree = require "lualxd.tree"
    for name in pairs(tree.TOP) do
      assert(text:find("[`.]" .. name .. "`"), name)
    end
    for name in pairs(require("lualxd.instance").item) do
      assert(text:find("`:" .. name .. "[` (]"), name)
    end
    for name in pairs(require("lualxd.client").methods) do
      assert(text:find("`client:" .. name .. "%(") or text:find("`client:" .. name .. " {")
        or text:find("`" .. name .. "`", 1, true), name)
    end
  end)

  it("has each kind of error", function()
    for kind in read "lualxd/error.lua":match "for kind in %(%[%[(.-)%]%]":gmatch "%S+" do
      assert(text:find("`" .. kind .. "`", 1, true), kind)
    end
  end)
end)

describe("the annotations", function()
  it("have each collection and what a client gets from elsewhere", function()
    local text = read "lualxd/client.lua"
    for name in pairs(require("lualxd.tree").TOP) do
      assert(text:find("---@field " .. name .. " lualxd.", 1, true), name)
    end
    for _, name in ipairs { "get", "put", "patch", "update", "plan", "apply" } do
      assert(text:find("---@field " .. name .. " fun(self", 1, true), name)
    end
  end)

  it("have each method of an instance", function()
    local text = read "lualxd/instance.lua"
    for name in pairs(require("lualxd.instance").item) do
      assert(text:find("---@field " .. name .. " fun(self", 1, true)
        or text:find("%-%-%-@return [^\n]+\nfunction instance%.item:" .. name .. "%("), name)
    end
  end)

  it("have each kind of error", function()
    local text = read "lualxd/error.lua"
    for kind in text:match "for kind in %(%[%[(.-)%]%]":gmatch "%S+" do
      assert(text:find('---| "' .. kind .. '"', 1, true), kind)
    end
  end)
end)
