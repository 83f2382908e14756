-- The real LXD that specs run against: the server of $LXD_SOCKET. Two ways to it: lualxd (over HTTPS in a run by
-- spec/support/over-https), and `lxc` or curl to check what lualxd says. Everything that a spec makes through `name`
-- is taken down by `clean`.
local json = require "lualxd.json"
local lfs = require "lfs"
local lxd = require "lualxd"
local core = require "lualxd.core"

local server = {}

server.socket = assert(os.getenv "LXD_SOCKET",
  "these specs need a real LXD: run them by `make test`, or set LXD_SOCKET and LXD_DIR")
server.image = os.getenv "LUALXD_IMAGE" or "busybox"
server.source = { type = "image", alias = server.image }

local run = core.random(3)
local count = 0
local made = {}

---A name that no other run and no other spec has.
function server.name(stem)
  count = count + 1
  local name = string.format("%s-%s-%d", stem or "t", run, count)
  made[#made + 1] = name
  return name
end

local function shell(command)
  local pipe = assert(io.popen(command .. " 2>&1; echo \" $?\"", "r"))
  local out = pipe:read "*a"
  pipe:close()
  local text, status = out:match "^(.*) (%d+)\n$"
  return tonumber(status) == 0, text
end
server.shell = shell

---The output of a `lxc` command; raises when it fails.
function server.lxc(...)
  local ok, out = shell("lxc " .. string.format(...))
  return ok and out or error("lxc " .. string.format(...) .. ": " .. out, 2)
end

---What a shell's command says in a container, without the last line breaks; it must say something. `lxc exec` (5.0.2)
---now and then shows nothing of it, and succeeds (once in 250 times on a busy machine).
function server.inside(name, command)
  local quoted = "'" .. command:gsub("'", "'\\''") .. "'"
  for _ = 1, 5 do
    local out = server.lxc("exec %s -- sh -c %s", name, quoted):gsub("%s+$", "")
    if out ~= "" then
      return out
    end
  end
  return ""
end

---What curl gets: the decoded answer.
function server.curl(method, path, body)
  local _, out = shell(string.format(
    "curl -s --path-as-is --unix-socket '%s' -X %s 'http://lxd%s' %s", server.socket, method, path,
    body and "-d '" .. body .. "'" or ""))
  return json.decode(out)
end

---The metadata that curl gets of an object; nil where it isn't there.
function server.look(path)
  local answer = server.curl("GET", path)
  return answer.type ~= "error" and answer.metadata or nil
end

---A client to be closed by the spec.
function server.connect(settings)
  settings = settings or {}
  if not os.getenv "LXD_TEST_URL" then -- see transport.lua
    settings.socket = settings.socket or server.socket
  end
  return assert(lxd.connect(settings))
end

---A client that counts its requests: `requests` is an array of "METHOD path".
function server.tracing(settings)
  local requests = {}
  settings = settings or {}
  settings.trace = function(method, path)
    requests[#requests + 1] = method .. " " .. path
  end
  return server.connect(settings), requests
end

---Deletes whatever `name` named: containers first, they use profiles.
function server.clean()
  local client = server.connect()
  local ops = {}
  for _, name in ipairs(made) do
    ops[#ops + 1] = client.containers(name):delete { force = true }
  end
  lxd.wait_all(ops)
  ops = {}
  for _, name in ipairs(made) do
    ops[#ops + 1] = client.profiles(name):delete()
    ops[#ops + 1] = client.images.aliases(name):delete()
  end
  lxd.wait_all(ops)
  made = {}
  client:close()
end

---The interpreter that runs this, as a shell command that finds the same modules.
function server.interpreter()
  local index = 0
  while arg[index - 1] do
    index = index - 1
  end
  return string.format("LUA_PATH='%s' LUA_CPATH='%s' '%s'", package.path, package.cpath, arg[index])
end

---How many descriptors this process has open. Another process that counts them may see the pipe to itself, or not.
function server.descriptors()
  local open = 0
  for _ in lfs.dir "/proc/self/fd" do
    open = open + 1
  end
  return open
end

return server
