-- SPDX-License-Identifier: MIT
-- Containers by declaration. lua plan.lua SOCKET WHAT PREFIX COUNT [ROUNDS]
--   apply   creates them, stopped; start: creates and starts them; both say the seconds it took
--   empty   says how long each of ROUNDS plans with nothing to do took, and which paths one asks for
--   prune   deletes them

local lxd = require "lualxd"
local core = require "lualxd.core"
local cjson = require "cjson"

local socket, what, prefix, count, rounds = arg[1], arg[2], arg[3], tonumber(arg[4]), arg[5]
local asked = {}
local client = assert(lxd.connect {
  socket = socket,
  trace = function(method, path)
    asked[#asked + 1] = method .. " " .. path
  end,
})

local declaration = { stack = prefix, containers = {} }
for i = 1, what == "prune" and 0 or count do
  declaration.containers[prefix .. i] = {
    image = "busybox",
    config = { ["limits.memory"] = "64MiB", ["user.number"] = tostring(i) },
    state = what == "start" and "running" or nil,
  }
end

local began = core.now()
if what == "empty" then
  local seconds, first = {}, nil
  for i = 1, tonumber(rounds) do
    asked = {}
    began = core.now()
    local plan = assert(client:plan(declaration))
    seconds[i] = core.now() - began
    assert(plan.empty, "the plan isn't empty")
    first = first or asked
  end
  print(cjson.encode { seconds = seconds, asked = first })
elseif what == "prune" then
  assert(client:apply(declaration, { prune = true, allow = 4 }))
else
  local plan = assert(client:plan(declaration))
  assert(plan:apply { parallel = 8 })
  print(cjson.encode { seconds = core.now() - began })
end
