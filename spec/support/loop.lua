-- Runs the bodies of specs inside the event loop of $LXD_TEST_LOOP (see in-loop): each `it`, `setup`, `before_each` and
-- so on is a coroutine of that loop, as a script's own code would be. Read by transport.lua.
local name = os.getenv "LXD_TEST_LOOP"

-- Each runs `body`, which doesn't raise, to its end.
local runners = {}

function runners.cqueues(body)
  local controller = require("cqueues").new()
  controller:wrap(body)
  assert(controller:loop())
end

-- The built-in scheduler.
function runners.tasks(body)
  require("lualxd").run(body)
end

-- From a callback, as everything is once libuv runs.
function runners.luv(body)
  local uv = require "luv"
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    coroutine.wrap(body)()
  end)
  uv.run()
end

function runners.copas(body)
  local copas = require "copas"
  local over
  copas.addthread(function()
    body()
    over = true
  end)
  while not over do
    copas.step(1)
  end
end

-- cqueues, but lualxd doesn't know.
local cqueues = name == "function" and require "cqueues"
package.loaded.cqueues = nil
runners["function"] = function(body)
  local controller = cqueues.new()
  controller:wrap(body)
  assert(controller:loop())
end

local loop = {}

-- What `lxd.connect` has to be told.
loop.told = name == "function" and {
  wait = function(fd, timeout)
    cqueues.poll({ pollfd = fd, events = "r" }, timeout)
  end,
} or nil

local runner = assert(runners[name], "no such loop")

local function inside(run)
  return function()
    local outcome
    runner(function()
      local seen
      outcome = { xpcall(run, function(problem)
        seen = problem
        return problem
      end) }
      outcome[2] = seen
    end)
    assert(outcome, "the loop ended before the spec")
    if not outcome[1] then
      error(outcome[2], 0)
    end
  end
end

local BODIES = { it = true, setup = true, teardown = true, lazy_setup = true, lazy_teardown = true,
  strict_setup = true, strict_teardown = true, before_each = true, after_each = true, finally = true }

package.preload["busted.core"] = function(...)
  local new = assert(loadfile(assert(package.searchpath("busted.core", package.path))))(...)
  return function(...)
    local busted = new(...)
    local safe = busted.safe
    function busted.safe(descriptor, run, element)
      return safe(descriptor, BODIES[descriptor] and inside(run) or run, element)
    end
    return busted
  end
end

return loop
