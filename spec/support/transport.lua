-- Which way the specs go: `lxd.connect()` goes to $LXD_TEST_URL where that is set, and to the socket without; what a
-- spec does is done inside the loop of $LXD_TEST_LOOP. Read by every Lua that a spec starts ($LUA_INIT, see over-https
-- and in-loop), so that scripts which connect by themselves, such as the examples, take the same way as they stand.
local url = os.getenv "LXD_TEST_URL"
local here = debug.getinfo(1, "S").source:match "^@(.*/)"
local loop = os.getenv "LXD_TEST_LOOP" and dofile(here .. "loop.lua")

local function with_transport(settings)
  local copy = {}
  for name, value in pairs(settings or {}) do
    copy[name] = value
  end
  if url and not copy.socket and not copy.url and not copy.remote and not copy.token then
    copy.url = url
    copy.cert, copy.key = os.getenv "LXD_TEST_CERT", os.getenv "LXD_TEST_KEY"
    copy.server_cert = os.getenv "LXD_TEST_SERVER_CERT"
  end
  copy.loop = copy.loop or loop and loop.told
  return copy
end

if url or loop and loop.told then
  -- Asked again after busted has forgotten what a spec had loaded.
  package.preload.lualxd = function(...)
    local lxd = assert(loadfile(assert(package.searchpath("lualxd", package.path))))(...)
    local connect = lxd.connect
    function lxd.connect(settings)
      return connect(with_transport(settings))
    end
    return lxd
  end
end
