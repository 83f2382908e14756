-- Doing several things at once, without a server.
local core = require "lualxd.core"
local lxd = require "lualxd"

local unpack = table.unpack or unpack

describe("lxd.run", function()
  it("returns what its function returned, with its arguments, nils included", function()
    local function count(...)
      return select("#", ...), { ... }
    end
    local n, values = count(lxd.run(function(...)
      lxd.sleep(0.001)
      return ...
    end, 1, nil, "c", nil))
    assert.are.equal(4, n)
    assert.are.same({ 1, nil, "c" }, values)
  end)

  it("returns when the tasks that it spawned have ended", function()
    local done = 0
    lxd.run(function()
      for i = 1, 5 do
        lxd.spawn(function()
          lxd.sleep(0.005 * i)
          done = done + 1
        end)
      end
    end)
    assert.are.equal(5, done)
  end)

  it("raises what its function raised, as it is", function()
    local what = {}
    local ok, err = pcall(lxd.run, function()
      lxd.sleep(0.001)
      error(what)
    end)
    assert.is_false(ok)
    assert.are.equal(what, err)
  end)

  it("raises the error of a task that nobody joined", function()
    assert.has_error(function()
      lxd.run(function()
        lxd.spawn(function()
          error("lost", 0)
        end)
        return "fine"
      end)
    end, "lost")
  end)

  it("works inside a task", function()
    assert.are.equal(7, lxd.run(function()
      return lxd.run(function()
        lxd.sleep(0.001)
        return 7
      end)
    end))
  end)
end)

describe("tasks that begin one another", function()
  it("may do so to any depth", function()
    local deepest = 0
    local function chain(n)
      deepest = n
      if n < 500 then
        lxd.spawn(chain, n + 1)
      end
      lxd.sleep(0)
    end
    lxd.run(chain, 1)
    assert.are.equal(500, deepest)
    local function nested(n)
      return n == 0 and "done" or lxd.run(nested, n - 1)
    end
    assert.are.equal("done", nested(100))
  end)
end)

describe("task:join", function()
  it("gives what the task returned, every time", function()
    lxd.run(function()
      local task = lxd.spawn(function()
        lxd.sleep(0.002)
        return "a", nil, "b"
      end)
      assert.are.same({ "a", nil, "b" }, { task:join() })
      assert.are.same({ "a", nil, "b" }, { task:join() })
    end)
  end)

  it("raises what the task raised; run doesn't again", function()
    local message = lxd.run(function()
      local task = lxd.spawn(error, "in the task", 0)
      local ok, err = pcall(task.join, task)
      assert.is_false(ok)
      return err
    end)
    assert.are.equal("in the task", message)
  end)

  it("raises in the task itself, which would wait for ever", function()
    local message = lxd.run(function()
      local task
      task = lxd.spawn(function()
        lxd.sleep(0.002)
        return select(2, pcall(task.join, task))
      end)
      return task:join()
    end)
    assert.matches("a task can't wait for its own end", message)
  end)
end)

describe("lxd.spawn", function()
  it("raises outside of a task #blocking", function()
    assert.has_error(function()
      lxd.spawn(print)
    end, "lxd.spawn works inside a task only; start one with lxd.run")
  end)
end)

describe("lxd.sleep", function()
  it("lets others go on, in a task, outside, and in a coroutine of the script's own #builtin", function()
    local order = {}
    lxd.run(function()
      lxd.spawn(function()
        lxd.sleep(0.01)
        order[#order + 1] = "task"
      end)
      -- The coroutine blocks its caller and drives the others meanwhile.
      coroutine.wrap(function()
        lxd.sleep(0.03)
        order[#order + 1] = "coroutine"
      end)()
      order[#order + 1] = "caller"
    end)
    assert.are.same({ "task", "coroutine", "caller" }, order)
    local before = core.now()
    lxd.sleep(0.02)
    assert.is_true(core.now() - before >= 0.02)
  end)

  it("gives the others a turn also for no time #builtin", function()
    local order = {}
    lxd.run(function()
      local task = lxd.spawn(function()
        for i = 1, 3 do
          order[#order + 1] = "a" .. i
          lxd.sleep(0)
        end
      end)
      for i = 1, 3 do
        order[#order + 1] = "b" .. i
        lxd.sleep(0)
      end
      task:join()
    end)
    assert.are.same({ "a1", "b1", "a2", "b2", "a3", "b3" }, order)
  end)

  it("wakes a thousand in the order of their times, whatever was cancelled", function()
    local timers = require "lualxd.loop.timers"
    local order, entries, far = {}, {}, core.now() + 1e6
    for i = 1, 1000 do
      local n = (i * 619) % 1000
      entries[n] = timers.add(far + n, function(value)
        order[#order + 1] = value
      end, n)
    end
    for n = 0, 999, 3 do
      timers.cancel(entries[n])
    end
    timers.expire(far + 500)
    assert.are.equal(334, #order)
    timers.expire(far + 1000)
    assert.are.equal(666, #order)
    for i = 2, #order do
      assert.is_true(order[i - 1] < order[i])
    end
  end)
end)

describe("a wait where Lua can't suspend", function()
  it("raises there, and leaves nothing behind that ends another wait #builtin", function()
    local before = core.now()
    lxd.run(function()
      lxd.spawn(function()
        pcall(string.gsub, "a", ".", function()
          lxd.sleep(0.02)
        end)
      end)
      assert.is_false(pcall(table.sort, { 2, 1 }, function()
        lxd.sleep(0.01)
      end))
      lxd.sleep(0.05)
    end)
    assert.is_true(core.now() - before >= 0.05)
  end)
end)

describe("a coroutine.yield in a task", function()
  it("is a turn for the others #builtin", function()
    assert.are.equal("done", lxd.run(function()
      coroutine.yield()
      return "done"
    end))
  end)
end)

describe("lxd.map", function()
  it("gives results in the order of the list, working on several at once", function()
    local running, most = 0, 0
    local results = assert(lxd.map({ 5, 4, 3, 2, 1, 6, 7, 8, 9, 10 }, function(n, index)
      running = running + 1
      most = math.max(most, running)
      lxd.sleep(n / 1000)
      running = running - 1
      return n * 10 + index
    end, { parallel = 3 }))
    assert.are.same({ 51, 42, 33, 24, 15, 66, 77, 88, 99, 110 }, results)
    assert.are.equal(3, most)
  end)

  it("tells failures by index, whether returned or raised; a lone nil is a result", function()
    local results, err = lxd.map({ 1, 2, 3, 4 }, function(n)
      if n == 2 then
        return nil, "two"
      elseif n == 3 then
        error("three", 0)
      elseif n == 4 then
        return nil
      end
      return n
    end)
    assert.is_nil(results)
    assert.are.equal("many", err.kind)
    assert.are.same({ [2] = "two", [3] = "three" }, err.errors)
    assert.are.same({ 1 }, err.results)
    assert.are.equal("2 of 4 failed; first: two", tostring(err))
    assert.are.same({}, lxd.map({}, print))
    assert.are.same({}, lxd.map({ 1 }, function() end))
  end)

  it("raises the error of a task that its function spawned and nobody joined", function()
    assert.has_error(function()
      lxd.run(function()
        lxd.map({ 1 }, function()
          lxd.spawn(function()
            lxd.sleep(0.001)
            error("lost", 0)
          end)
        end)
      end)
    end, "lost")
  end)

  it("refuses wrong arguments by their names", function()
    assert.has_error(function()
      lxd.map({}, print, { paralel = 2 })
    end, "lxd.map: unknown option 'paralel'; did you mean 'parallel'?")
    assert.has_error(function()
      lxd.map({}, print, { parallel = 0 })
    end)
    assert.has_error(function()
      lxd.map(1, print)
    end)
  end)

  it("works inside a task", function()
    assert.are.same({ { 1, 2 }, { 1, 2 } }, { lxd.run(function()
      return lxd.map({ 1, 2 }, function(n)
        lxd.sleep(0.001)
        return n
      end), { unpack { 1, 2 } }
    end) })
  end)
end)

describe("require lualxd", function()
  it("sets no global and opens nothing", function()
    local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
    local pipe = io.popen(interpreter .. [[ -e '
      local lfs = require "lfs"
      local before = {}
      for k in pairs(_G) do before[k] = true end
      local function count()
        local n = 0
        for _ in lfs.dir "/proc/self/fd" do n = n + 1 end
        return n
      end
      local descriptors = count()
      local lxd = require "lualxd"
      for k in pairs(_G) do if not before[k] then print("global " .. k) end end
      if count() ~= descriptors then print "descriptors" end
      print(lxd._VERSION)']])
    assert.are.equal(lxd._VERSION .. "\n", pipe:read "*a")
    pipe:close()
  end)
end)
