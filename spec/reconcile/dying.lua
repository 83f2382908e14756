-- Applies a stack and dies on the way: `dying.lua NAME N sent|answered` ends the process
-- without any ado once its N-th change was handed to the kernel, or was answered. Ends with 0
-- if it got through, 9 if it died.
local http = require "lualxd.http"
local lxd = require "lualxd"
local reconcile = require "lualxd.reconcile"
local stack = require "spec.reconcile.dying_stack"

local name, limit, mode = arg[1], tonumber(arg[2]), arg[3]
local changes = 0

local function count(method)
  if method ~= "GET" and method ~= "HEAD" then
    changes = changes + 1
    if changes == limit then
      os.exit(9, false) -- no finalizer sends anything that is still unsent
    end
  end
end

local start = http.start
function http.start(scope, method, ...)
  local exchange, err = start(scope, method, ...)
  if mode == "sent" then
    count(method)
  end
  return exchange, err
end

local client = assert(lxd.connect { trace = mode == "answered" and count or nil })
assert(reconcile.apply(client, stack(name)))
