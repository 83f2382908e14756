-- lualxd: LXD's REST API as Lua tables, its operations as something one can wait for, and declarations that
-- are reconciled against the server.
local client = require "lualxd.client"
local json = require "lualxd.json"
local operation = require "lualxd.operation"
local options = require "lualxd.options"
local task = require "lualxd.task"
local trust = require "lualxd.trust"
local words = require "lualxd.words"

---@class lualxd
---@field on_unwaited fun(err: lualxd.error)? told of a change that failed and that nobody waited for, instead of a line
---on standard error
local lxd = {
  _NAME = "lualxd",
  _VERSION = "0.1.0",

  connect = client.connect,
  identity = trust.identity,
  trust = trust.trust,

  run = task.run,
  spawn = task.spawn,
  sleep = task.sleep,
  map = task.map,
  wait_all = operation.wait_all,

  array = json.array,
  auto = words.auto,
  unset = words.unset,
  ignore = words.ignore,
  absent = words.absent,
  secret = words.secret,
}

-- The client knows nothing of the reconciler; here the two meet. It is loaded by whoever first uses it: a third of all
-- that there is to compile, and a script that runs a command is waiting for that.
local RECONCILER = { plan = true, apply = true }

setmetatable(client.methods, {
  __index = function(methods, name)
    if RECONCILER[name] then
      local reconcile = require "lualxd.reconcile"
      for method in pairs(RECONCILER) do
        methods[method] = reconcile[method]
      end
      return methods[name]
    end
  end,
})

-- `lxd.on_unwaited = f` is seen by the operations.
return setmetatable(lxd, {
  __index = function(_, name)
    if name == "on_unwaited" then
      return operation.on_unwaited
    end
  end,
  __newindex = function(self, name, value)
    if name == "on_unwaited" then
      operation.on_unwaited = value ~= nil and options.argument(value, "callable", "lxd.on_unwaited") or nil
    else
      rawset(self, name, value)
    end
  end,
})
