-- The applying process dies at each of its changes, before the answer and after it; the next
-- run must end where an undisturbed one ends. (spec/reconcile/property_spec.lua does this for
-- many stacks against the model.)
local lxd = require "lualxd"
local reconcile = require "lualxd.reconcile"
local server = require "spec.support.lxd"
local stack = require "spec.reconcile.dying_stack"

local client

setup(function()
  client = server.connect()
end)

teardown(function()
  client:close()
  server.clean()
end)

-- Starts children for the names, a few at once, and gives the names whose children died.
local function let_die(names)
  local lua, died = server.interpreter(), {}
  local lines = { "set +e" }
  for index, job in ipairs(names) do
    lines[#lines + 1] = string.format(
      "( %s spec/reconcile/dying.lua %s %d %s; echo \"%d $?\" ) 2>&1 &%s", lua, job.name, job.at,
      job.mode, index, index % 4 == 0 and " wait" or "")
  end
  lines[#lines + 1] = "wait"
  local ok, out = server.shell("bash -c '" .. table.concat(lines, "\n"):gsub("'", "'\\''") .. "'")
  assert(ok, out)
  for index, status in out:gmatch "(%d+) (%d+)\n" do
    assert(status == "9" or status == "0", out)
    names[tonumber(index)].died = status == "9"
    died[#died + 1] = status == "9" or nil
  end
  return died
end

local function is_right(name)
  local data = server.look("/1.0/instances/" .. name)
  assert.are.equal("Running", data.status)
  assert.are.equal("1", data.config["user.a"])
  assert.is_nil(data.config["user.lualxd.todo"])
  assert.are.equal("hello", server.lxc("file pull %s/srv/a -", name))
  local snapshots = server.look("/1.0/instances/" .. name .. "/snapshots")
  assert.are.equal(1, #snapshots)
end

describe("an apply that dies", function()
  for _, mode in ipairs { "sent", "answered" } do
    it("when a change is " .. mode .. " is finished by the next", function()
      local jobs = {}
      for at = 1, 10 do
        jobs[at] = { name = server.name "die", at = at, mode = mode }
      end
      local died = let_die(jobs)
      -- Profile, container, file, directory, file, mark, start, command, mark, snapshot.
      assert.is_true(#died >= 9, #died)
      -- Whatever is there is ours.
      for _, job in ipairs(jobs) do
        for section, noun in pairs { instances = "container", profiles = "profile" } do
          local data = server.look("/1.0/" .. section .. "/" .. job.name)
          if data then
            assert.truthy((data.config["user.lualxd.owner"] or ""):find(
              job.name .. "/" .. noun .. "/default/" .. job.name .. "#", 1, true))
          end
        end
      end
      local _, err = lxd.map(jobs, function(job)
        local report, problem = reconcile.apply(client, stack(job.name))
        return report and true, problem
      end, { parallel = 4 })
      assert.is_nil(err, tostring(err))
      for _, job in ipairs(jobs) do
        is_right(job.name)
        local planned = assert(reconcile.plan(client, stack(job.name)))
        assert.is_true(planned.empty, job.at .. ": " .. tostring(planned))
      end
    end)
  end
end)
