-- The stack of dying.lua: everything that takes more than one request to come about.
local server = require "spec.support.lxd"

return function(name)
  return {
    stack = name,
    profiles = {
      [name] = { devices = { root = { type = "disk", path = "/", pool = "default" } } },
    },
    containers = {
      [name] = {
        image = server.image,
        profiles = { name },
        config = { ["user.a"] = "1", ["boot.host_shutdown_timeout"] = 0 },
        state = "running",
        files = { ["/srv/a"] = { content = "hello" } },
        ready = { exec = { "test", "-e", "/srv/a" } },
        snapshots = { "s" },
      },
    },
  }
end
