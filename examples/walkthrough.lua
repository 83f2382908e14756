-- A first walk through LXD's API: what an introductory article does with curl, in its order.
--
--   lua5.4 examples/walkthrough.lua [IMAGE ALIAS]
--
-- The server is found as `lxc` finds it: $LXD_SOCKET, $LXD_DIR or the usual places.
local lxd = require "lualxd"

local image = arg and arg[1] or "busybox"
local client = assert(lxd.connect())

local function say(what, ...)
  print(string.format("%-28s %s", what, string.format(...)))
end

-- What the server calls a change, once it has taken it; raises what it answered where it hasn't.
local function id_of(change)
  while change:status() == "Pending" do
    lxd.sleep(0.01)
  end
  return change.id or assert(change:wait())
end

-- GET /
say("API versions", "%s", table.concat(assert(client:request("GET", "/")).json.metadata, ", "))

-- GET /1.0
local server = client.server
say("server", "%s %s, API %s, %s", server.environment.server, server.environment.server_version,
  server.api_version, server.auth)
say("kernel", "%s %s, storage: %s", server.environment.kernel, server.environment.kernel_version,
  tostring(server.environment.storage))

-- GET /1.0/operations, and one of them: a change is under way as soon as it is named.
local source = { type = "image", alias = image }
local blah = client.containers:create { name = "blah", source = source }
local id = id_of(blah)
for _, operation in ipairs(assert(client.operations:list())) do
  say("operation", "%s  %s (%s)", operation.id, operation.description or operation.class,
    operation.status)
end
local running = assert(client.operations(id):get())
say("this one", "%s, progress: %s", running.status,
  running.metadata and running.metadata.progress and running.metadata.progress.percent .. " %"
    or "none yet")
assert(blah:wait())
assert(client.containers "blah":delete():wait())

-- POST /1.0/containers, GET /1.0/operations/…/wait
local create = client.containers:create { name = "xenial", source = source }
create:progress(function(progress)
  say("  " .. progress.stage, "%d %%", progress.percent)
end)
local created = assert(create:wait())
say("created", "xenial: %s", created.status)

-- PUT /1.0/containers/xenial/state
local xenial = client.containers "xenial"
local start = xenial:start()
id = id_of(start)

-- LXD forgets an operation 5 s after its end. Waiting for it then still tells the truth.
repeat
  lxd.sleep(0.2)
until client.operations(id):exists() == false
say("start operation", "gone from the server")
say("started", "%s", assert(start:wait()).status)

-- GET /1.0/containers/xenial/state
local state = assert(xenial:state())
say("status", "%s, %d processes", state.status, state.processes)
for name, network in pairs(state.network or {}) do
  for _, address in ipairs(network.addresses) do
    say("address", "%s: %s/%s (%s)", name, address.address, address.netmask, address.scope)
  end
end

-- GET and POST /1.0/containers/xenial/files
say("/etc/hosts", "%s", (assert(xenial.files:read "/etc/hosts"):gsub("\n.*", "")))
assert(xenial.files:write("/tmp/a", "abc"):wait())
say("/tmp/a", "%s", assert(xenial.files:read "/tmp/a"))

-- POST and GET /1.0/containers/xenial/snapshots
assert(xenial.snapshots:create { name = "my-snapshot" }:wait())
local snapshot = assert(xenial.snapshots "my-snapshot":get())
say("snapshot", "%s, taken %s, profiles: %s", snapshot.name, snapshot.created_at,
  table.concat(snapshot.profiles, ", "))

-- DELETE /1.0/containers/xenial, which LXD refuses while it runs
local ok, err = xenial:delete():wait()
assert(not ok)
say("delete", "%s", tostring(err))
assert(xenial:stop { force = true }:wait())
assert(xenial:delete():wait())

local _, missing = xenial:get()
say("afterwards", "%s", missing.kind)
client:close()
