-- The rockspec lists what is in the tree, and the versions agree.
local lxd = require "lualxd"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

describe("the rockspec", function()
  it("lists every module and every source, and nothing else", function()
    local env = {}
    local chunk = setfenv and loadfile "rockspec/lualxd-scm-1.rockspec"
    if chunk then
      setfenv(chunk, env)
    else
      chunk = loadfile("rockspec/lualxd-scm-1.rockspec", "t", env)
    end
    chunk()
    local listed, there = {}, {}
    for name, what in pairs(env.build.modules) do
      if type(what) == "string" then
        listed[what] = name
      else
        for _, source in ipairs(what.sources) do
          listed[source] = true
        end
      end
    end
    local pipe = io.popen "find lualxd -name '*.lua' ! -name '*.d.lua'; ls src/*.c"
    for path in pipe:lines() do
      there[path] = path:find("%.c$") and true
        or path:gsub("%.lua$", ""):gsub("/", "."):gsub("%.init$", "")
    end
    pipe:close()
    assert.are.same(there, listed)
  end)

  it("agrees with the changelog on the version", function()
    assert.are.equal(lxd._VERSION, read "CHANGELOG.md":match "\n## ([%d.]+)")
  end)
end)
