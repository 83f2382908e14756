-- What a script sees of its loop, each in a process of its own: deadlines when nothing else happens, coroutines that
-- are killed, loops in loops. Everything else is what the other specs say, inside each loop (spec/support/in-loop).
local server = require "spec.support.lxd"

local RUN = {
  copas = [[
    local copas, left = require "copas", 0
    local function start(f) left = left + 1; copas.addthread(function() f(); left = left - 1 end) end
    local function run() while left > 0 do copas.step(1) end end
  ]],
  cqueues = [[
    local controller = require("cqueues").new()
    local function start(f) controller:wrap(f) end
    local function run() assert(controller:loop()) end
  ]],
  luv = [[
    local uv = require "luv"
    local function start(f)
      local timer = uv.new_timer()
      timer:start(0, 0, function() timer:close(); coroutine.wrap(f)() end)
    end
    local function run() uv.run() end
  ]],
}

-- What a script prints that runs in a loop.
local function script(loop, text)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write("local LOOP = '", loop, "'\n", RUN[loop],
    'local lxd, core = require "lualxd", require "lualxd.core"; local began = core.now()\n',
    'local function took(least, most) return core.now() - began >= least and core.now() - began < (most or 9) end\n',
    text)
  file:close()
  local _, out = server.shell("timeout 10 env " .. server.interpreter() .. " " .. path)
  os.remove(path)
  return out
end

for loop in pairs(RUN) do
  local there = pcall(require, loop)
  -- Loaded here it would be taken for the loop of this process.
  package.loaded[loop] = nil

  describe("in " .. loop, function()
    if not there then
      return
    end

    it("a sleep ends in time when nothing else happens", function()
      assert.are.equal("true\n", script(loop, "start(function() lxd.sleep(0.3); print(took(0.3)) end) run()"))
    end)

    it("a sleep ends in time beside a longer one", function()
      assert.are.equal("true\ntrue\n", script(loop, [[
        start(function() lxd.sleep(3); print(took(3)) end)
        start(function() lxd.sleep(0.2); print(took(0.2, 3)) end)
        run()
      ]]))
    end)

    it("who sleeps for no time again and again keeps nobody from anything", function()
      assert.are.equal("true\n", script(loop, [[
        local client = assert(lxd.connect { loop = LOOP })
        local got = 0
        start(function() lxd.sleep(0.01); while client:get() do got = got + 1 end end)
        start(function()
          while got < 10 and core.now() < began + 3 do lxd.sleep(0) end
          print(got >= 10)
          os.exit(0)
        end)
        run()
      ]]))
    end)

    it("whose requests fail at once again and again keeps nobody from anything", function()
      assert.are.equal("true\n", script(loop, [[
        local client = assert(lxd.connect { loop = LOOP })
        local ticks = 0
        start(function()
          client:close()
          while ticks < 5 and core.now() < began + 3 do assert(not client:request("GET", "/1.0")) end
          print(ticks == 5)
          os.exit(0)
        end)
        start(function() while true do lxd.sleep(0.005); ticks = ticks + 1 end end)
        run()
      ]]))
    end)

    it("a wait where Lua can't suspend raises, and leaves nothing behind", function()
      assert.are.equal("false\nfalse\ntrue\ntrue\nover\n", script(loop, [[
        start(function()
          print((pcall(string.gsub, "a", ".", function() lxd.sleep(0.1) end)))
          lxd.sleep(0.4)
          print(took(0.4))
        end)
        start(function() print((pcall(string.gsub, "a", ".", function() lxd.sleep(0.1) end))) end)
        start(function() lxd.sleep(0.6); print(took(0.6)) end)
        run()
        print "over"
      ]]))
    end)

    if loop == "cqueues" then
      it("a scheduler that polls objects drives what was begun, by the client's pollable", function()
        local name = server.name "p"
        assert.are.equal("r\ntrue\nSuccess\nSuccess\nSuccess\ntrue\n", script(loop, string.format([[
          local cqueues = require "cqueues"
          local client = assert(lxd.connect { loop = "poll" }) -- of that scheduler nothing is known
          local pollable = client.pollable
          print(pollable:events())
          print(pollable == client:project("default").pollable and pollable:pollfd() %% 1 == 0)
          start(function()
            local names, steps = { "%s-1", "%s-2", "%s-3" }, 0
            local function drive(ops)
              for _, op in ipairs(ops) do
                while op:status() == "Pending" do
                  cqueues.poll(pollable, 5)
                  pollable:step()
                  steps = steps + 1
                end
              end
            end
            local ops = {}
            for index, name in ipairs(names) do ops[index] = client.profiles:create { name = name } end
            drive(ops)
            for index, op in ipairs(ops) do print(op:status()) end
            for index, name in ipairs(names) do ops[index] = client.profiles(name):delete() end
            drive(ops)
            print(took(0) and steps < 100)
          end)
          run()
        ]], name, name, name)))
      end)

      it("controllers inside of others end when nobody waits in them", function()
        assert.are.equal("true\n", script(loop, [[
          local longest = 0
          for worker = 1, 6 do
            start(function()
              for round = 1, 12 do
                local inner, entered = require("cqueues").new(), core.now()
                for i = 1, 3 do inner:wrap(function() lxd.sleep((worker * i * round) % 7 / 200) end) end
                assert(inner:loop())
                longest = math.max(longest, core.now() - entered)
              end
            end)
          end
          start(function() for _ = 1, 2 do lxd.sleep(3) end end)
          run()
          print(longest < 3 or longest)
        ]]))
      end)

      it("a controller that was dropped while some waited in it is collected", function()
        assert.are.equal("0\n", script(loop, [[
          local dropped = setmetatable({}, { __mode = "k" })
          for _ = 1, 5 do
            local controller = require("cqueues").new()
            dropped[controller] = true
            controller:wrap(function() lxd.sleep(5); print(controller) end)
            controller:wrap(function() lxd.sleep(0.01); error "stop" end)
            controller:loop()
          end
          for _ = 1, 4 do collectgarbage() end
          local left = 0
          for _ in pairs(dropped) do left = left + 1 end
          print(left)
        ]]))
      end)
    end

    if coroutine.close and loop == "luv" then -- the others would resume it themselves
      it("a coroutine that was killed while it waited hurts no other", function()
        assert.are.equal("true\ntrue\n", script(loop, [[
          start(function()
            local killed = coroutine.create(function() lxd.sleep(0.3); print "it lives" end)
            coroutine.resume(killed)
            coroutine.wrap(function() lxd.sleep(0.6); print(took(0.6)) end)()
            print(coroutine.close(killed))
          end)
          run()
        ]]))
      end)
    end
  end)
end

-- cqueues, but lualxd doesn't know.
RUN["function"] = [[
  local cqueues = require "cqueues"
  package.loaded.cqueues = nil
  local controller = cqueues.new()
  local client = assert(require("lualxd").connect {
    loop = {
      wait = function(fd, timeout) cqueues.poll({ pollfd = fd, events = "r" }, timeout) end,
    },
  })
  local function start(f) controller:wrap(f) end
  local function run() print(controller:loop()) end
]]

describe("in a loop that is told of by a function", function()
  teardown(server.clean)

  it("a coroutine that the loop drops takes its command along", function()
    local name = server.name "c"
    local client = server.connect()
    assert(client.containers:create { name = name, source = server.source }:wait())
    assert(client.containers(name):start():wait())
    client:close()
    RUN.none = ""
    for _, turns in ipairs { 0, 5 } do -- while the command is begun, and once it is waited for
      assert.are.equal("it goes on\nit has gone\n", script("none", string.format([[
        local client = assert(lxd.connect { loop = { wait = function() coroutine.yield() end } })
        local function runs()
          local found = os.execute "pgrep -fx 'sleep 973' >/dev/null"
          return found == true or found == 0
        end
        local waiting = coroutine.create(function() client.containers "%s":exec { "sleep", "973" } end)
        local function turn()
          coroutine.resume(waiting)
          lxd.sleep(0.05) -- in the main program, which blocks
        end
        repeat turn() until runs()
        for _ = 1, %d do turn() end
        lxd.sleep(0.2)
        print(runs() and "it goes on")
        waiting = nil
        repeat
          collectgarbage()
          lxd.sleep(0.05)
        until not runs()
        print "it has gone"
        os.exit(0)
      ]], name, turns)))
    end
  end)

  it("a descriptor is closed only when the loop has forgotten it", function()
    assert.are.equal("100\ntrue\n", script("function", [[
      local done = 0
      for i = 1, 100 do
        start(function()
          for _ = 1, 3 do lxd.sleep(i % 10 / 100) end
          done = done + 1
          if done == 100 then print(done) end
        end)
      end
      start(function() cqueues.sleep(0.5) end)
      run()
    ]]))
  end)

  it("what a hundred waited by is closed once fewer wait", function()
    assert.are.equal("true\ntrue\n", script("function", [[
      local lfs = require "lfs"
      local function descriptors()
        local n = 0
        for _ in lfs.dir "/proc/self/fd" do n = n + 1 end
        return n
      end
      for _ = 1, 100 do start(function() lxd.sleep(0.2) end) end
      start(function()
        for _ = 1, 3 do lxd.sleep(1) end
        print(descriptors() < 90)
      end)
      run()
    ]]))
  end)
end)
