-- Commands in a container of a real LXD.
local core = require "lualxd.core"
local json = require "cjson"
local lxd = require "lualxd"
local imitation = require "spec.support.imitation"
local relay = require "spec.support.relay"
local server = require "spec.support.lxd"

local interpreter = jit and "luajit" or _VERSION:gsub("Lua ", "lua")
local client, instance, name

setup(function()
  client = server.connect()
  name = server.name "c"
  assert(client.containers:create { name = name, source = server.source }:wait())
  instance = client.containers(name)
  assert(instance:start():wait())
end)

teardown(function()
  client:close()
  server.clean()
end)

local function sh(text, settings)
  return instance:exec({ "sh", "-c", text }, settings)
end

-- How many processes in the container have this in their command line.
local function running(text)
  local list = server.inside(name, "ps")
  local count = 0
  for line in list:gmatch "[^\n]+" do
    count = count + (line:find(text, 1, true) and 1 or 0)
  end
  return count
end

local function until_gone(text)
  local deadline = core.now() + 20
  while running(text) > 0 do
    assert(core.now() < deadline, text .. " still runs")
    lxd.sleep(0.05)
  end
end

describe("instance:exec", function()
  it("sends input that the command is slow to take, from a script that does other things meanwhile", function()
    -- Over HTTPS a write that found no room must be repeated as it was, whoever comes by.
    local text = ("x"):rep(1024 * 1024)
    local process = assert(instance:spawn { "sh", "-c", "sleep 0.5; wc -c" })
    lxd.run(function()
      local writer = lxd.spawn(function()
        for _ = 1, 20 do
          assert(process:write(text))
        end
        process:close_stdin()
      end)
      for _ = 1, 5 do
        assert.are.equal("Running", assert(instance:state()).status)
        lxd.sleep(0.05)
      end
      writer:join()
    end)
    assert.are.equal("20971520\n", assert(process:wait()).stdout)
  end)

  it("gives status and outputs; what failed is a result", function()
    assert.are.same({ status = 0, stdout = "", stderr = "" }, assert(instance:exec { "true" }))
    assert.are.same({ status = 3, stdout = "out\n", stderr = "err\n" }, assert(sh "echo out; echo err >&2; exit 3"))
  end)

  it("gives 126, 127 and 128+n as they are", function()
    assert.are.equal(127, assert(instance:exec { "no-such-command" }).status)
    assert.are.equal(127, assert(sh "exit 127").status)
    assert.are.equal(126, assert(instance:exec { "/etc/inittab" }).status)
    assert.are.equal(137, assert(sh "kill -9 $$").status)
    assert.are.equal(143, assert(sh "kill $$").status)
  end)

  it("gives no shell a chance", function()
    assert.are.equal("$HOME 'a b' ;ls\n", assert(instance:exec { "echo", "$HOME 'a b' ;ls" }).stdout)
  end)

  it("feeds a string or what a function gives", function()
    assert.are.equal("a\0b", assert(instance:exec({ "cat" }, { stdin = "a\0b" })).stdout)
    assert.are.equal("", assert(instance:exec({ "cat" }, { stdin = "" })).stdout)
    local left = 3
    assert.are.equal("xxx", assert(instance:exec({ "cat" }, { stdin = function()
      left = left - 1
      return left >= 0 and "x" or nil
    end })).stdout)
    -- It doesn't wait for input that nobody reads.
    assert.are.equal(0, assert(instance:exec({ "true" }, { stdin = ("x"):rep(3000000) })).status)
  end)

  it("takes no input that broke off for all of it", function()
    local given
    local result, err = instance:exec({ "sh", "-c", "cat; echo all" }, { stdin = function()
      if given then
        return nil, "disk on fire", 5
      end
      given = true
      return "x"
    end })
    assert.is_nil(result)
    assert.are.equal("failed", err.kind)
    assert.matches("disk on fire", err.message)
    assert.are.equal(137, err.result.status)
  end)

  it("hands on pieces as they come", function()
    local pieces, times = {}, {}
    local result = assert(sh("echo 1; sleep 1; echo 2; echo e >&2", {
      stdout = function(bytes)
        pieces[#pieces + 1] = bytes
        times[#times + 1] = core.now()
      end,
    }))
    assert.are.equal("1\n2\n", table.concat(pieces))
    assert.is_true(times[2] - times[1] > 0.2)
    assert.are.same({ status = 0, stderr = "e\n" }, result)
  end)

  it("sets environment, directory, user and group", function()
    local result = assert(sh("echo $A $B $C; pwd; id -u; id -g", {
      env = { A = "a b", B = 1, C = true }, cwd = "/etc", user = 1000, group = 1001,
    }))
    assert.are.equal("a b 1 true\n/etc\n1000\n1001\n", result.stdout)
  end)

  it("drops what is more than max_output, and says so", function()
    local result = assert(sh("yes | head -c 100000; echo e >&2", { max_output = 5 }))
    assert.are.same({ status = 0, stdout = "y\ny\ny", stderr = "e\n", truncated = true }, result)
    assert.is_nil(assert(sh("echo", { max_output = 5 })).truncated)
  end)

  it("carries much both ways at once, in memory that doesn't grow", function()
    local size, piece, sent, got = 64 * 1024 * 1024, ("x"):rep(65536), 0, 0
    collectgarbage()
    local before = collectgarbage "count"
    local result = assert(instance:exec({ "cat" }, {
      stdin = function()
        sent = sent + #piece
        return sent <= size and piece or nil
      end,
      stdout = function(bytes)
        got = got + #bytes
      end,
    }))
    assert.are.equal(0, result.status)
    assert.are.equal(size, got)
    collectgarbage()
    assert.is_true(collectgarbage "count" - before < 8 * 1024)
  end)

  it("stops it when the time is up, by TERM and then by KILL", function()
    local result, err = sh("echo before; sleep 61", { timeout = 2 })
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
    assert.are.equal(143, err.result.status)
    assert.are.equal("before\n", err.result.stdout)
    result, err = sh("trap '' TERM; while :; do sleep 0.1; done", { timeout = 2 })
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
    assert.are.equal(137, err.result.status)
  end)

  it("doesn't hang on what a command leaves behind", function()
    local before = core.now()
    local result = assert(sh "sleep 62 & echo done")
    assert.is_true(core.now() - before < 30)
    assert.are.equal("done\n", result.stdout)
    assert.is_nil(result.status) -- LXD tells it when all of it has ended
    assert.are.equal(1, running "sleep 62")
  end)

  it("gives a terminal", function()
    local result = assert(sh("tty; stty size; sleep 0.2", { tty = { width = 100, height = 30 } }))
    assert.matches("^/dev/pts/%d+\r\n30 100\r\n", result.stdout)
    assert.is_nil(result.stderr)
  end)

  it("ends the input of a terminal without hanging up", function()
    local tty = { width = 80, height = 24 }
    for input, output in pairs { ["line\n"] = "line\r\nline\r\nstatus 0\r\n", line = "linelinestatus 0\r\n" } do
      local result = assert(instance:exec({ "sh", "-c", "cat; echo status $?; sleep 0.2" }, {
        stdin = input, tty = tty, timeout = 5,
      }))
      assert.are.same({ status = 0, stdout = output }, result)
    end
    local process = assert(instance:spawn({ "sh" }, { tty = tty, timeout = 5 }))
    assert.is_true(process:write "cd /etc; pwd\n")
    process:close_stdin()
    local _, err = process:write "more"
    assert.are.equal("state", err.kind)
    assert.matches("/etc\r\n", assert(process:wait()).stdout)
  end)

  it("raises what a function of the script raised, and ends the command", function()
    local ok, problem = pcall(sh, "echo; sleep 63", { stdout = function() error("mine", 0) end })
    assert.is_false(ok)
    assert.are.equal("mine", problem)
    ok, problem = pcall(sh, "cat; sleep 63", { stdin = function() error("mine, too", 0) end })
    assert.is_false(ok)
    assert.are.equal("mine, too", problem)
  end)

  it("fails as the rest of the world does", function()
    local _, err = client.containers "nowhere":exec { "true" }
    assert.are.equal("not_found", err.kind)
    local stopped = server.name "c"
    assert(client.containers:create { name = stopped, source = server.source }:wait())
    _, err = client.containers(stopped):exec { "true" }
    assert.are.equal("state", err.kind)
    assert.has_error(function() instance:exec "true" end, "exec: argv must be table, got string")
    assert.has_error(function() instance:exec {} end, "exec: argv is empty")
    assert.has_error(function() instance:exec { 5 } end, "exec: argv[1] must be string, got number")
    assert.has_error(function() instance:exec({ "true" }, { stdn = "" }) end,
      "exec: unknown option 'stdn'; did you mean 'stdin'?")
  end)

  it("is told to a trace with its WebSockets, but not their secrets", function()
    local other, requests = server.tracing()
    assert(other.containers(name):exec { "true" })
    assert(other:events()):close()
    other:close()
    local text = table.concat(requests, "\n")
    local _, sockets = text:gsub("GET /1%.0/operations/[%x-]+/websocket%?secret=%.%.%.", "")
    assert.are.equal(4, sockets)
    assert.matches("GET /1.0/events", text, 1, true)
  end)

  it("keeps the secrets of its WebSockets, and its environment, out of errors", function()
    local _, err = instance:exec({ "echo", ("x"):rep(200000) }, { env = { PASSWORD = "hush" } })
    assert.matches("too long", err.message)
    local text = json.encode { err.operation }
    assert.matches(err.operation.id, text, 1, true)
    assert.is_nil(text:find("hush", 1, true))
    assert.is_nil(text:find(("%x"):rep(64)))
  end)

  it("runs nothing but what was said", function()
    for text, call in pairs {
      ["argv[2] must be string, got nil"] = { { "echo", nil, "x" } },
      ["argv[2] is not UTF-8"] = { { "echo", "a\255b" } },
      ["argv[1] has a NUL"] = { { "a\0b" } },
      ["'env': A is not UTF-8"] = { { "true" }, { env = { A = "\255" } } },
      ["'env': A must be a string, number or boolean, got table"] = { { "true" }, { env = { A = {} } } },
      ["'env': A must be a string, number or boolean, got function"] = { { "true" }, { env = { A = print } } },
      ["'env': 1 has a name that is no string"] = { { "true" }, { env = { "A=1" } } },
      ["'env': A=B has a name that can't be one"] = { { "true" }, { env = { ["A=B"] = "1" } } },
      ["'cwd' is not UTF-8"] = { { "true" }, { cwd = "/\255" } },
      ["'max_output' must not be negative"] = { { "true" }, { max_output = -1 } },
      ["'user' must not be negative"] = { { "true" }, { user = -1 } },
    } do
      for _, who in ipairs { "exec", "spawn" } do
        local ok, problem = pcall(instance[who], instance, call[1], call[2])
        assert.is_false(ok, text)
        assert.matches(text, problem, 1, true)
        assert.matches(who .. ": ", problem, 1, true)
      end
    end
  end)

  it("runs 50 at once on one client, and leaves no descriptor", function()
    collectgarbage()
    collectgarbage()
    local before = server.descriptors()
    local list = {}
    for index = 1, 50 do
      list[index] = index
    end
    local results = assert(lxd.map(list, function(index)
      return instance:exec { "echo", tostring(index) }
    end, { parallel = 50 }))
    for index = 1, 50 do
      assert.are.equal(index .. "\n", results[index].stdout)
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(server.descriptors() <= before + 8) -- the client's kept connections
  end)
end)

describe("instance:spawn", function()
  it("lets one talk to a command", function()
    local process = assert(instance:spawn { "cat" })
    assert.is_true(process:write "one")
    assert.are.equal("one", process:read())
    assert.is_true(process:write "two")
    assert.are.equal("two", process:read())
    process:close_stdin()
    assert.is_nil(process:read())
    assert.are.same({ status = 0, stdout = "", stderr = "" }, assert(process:wait()))
    assert.are.equal(process:wait(), process:wait())
    local _, err = process:write "more"
    assert.are.equal("state", err.kind)
  end)

  it("reads either output; what nobody read is in the result", function()
    local process = assert(instance:spawn { "sh", "-c", "echo out; echo err >&2; read x; echo $x" })
    assert.are.equal("err\n", process:read "stderr")
    assert.are.equal("out\n", process:read())
    process:write "last\n"
    assert.are.same({ status = 0, stdout = "last\n", stderr = "" }, assert(process:wait()))
    assert.has_error(function() process:read() end)
  end)

  it("signals it, by name and by number", function()
    for _, signal in ipairs { 15, "TERM", "sigterm" } do
      local process = assert(instance:spawn { "sleep", "64" })
      assert.is_true(process:signal(signal))
      assert.are.equal(143, assert(process:wait()).status)
      assert.is_false(process:signal(signal))
    end
    for signal, status in pairs { ALRM = 142, SIGPIPE = 141, abrt = 134 } do
      local process = assert(instance:spawn { "sleep", "64" })
      assert.is_true(process:signal(signal))
      assert.are.equal(status, assert(process:wait()).status)
    end
    local process = assert(instance:spawn { "true" })
    assert.has_error(function() process:signal "NOPE" end, "process:signal: no such signal: NOPE")
    process:wait()
  end)

  it("is waited for in vain when it takes too long, and again", function()
    local process = assert(instance:spawn { "sh", "-c", "echo out; sleep 0.5; exit 5" })
    local result, err = process:wait(0.05)
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
    assert.are.same({ status = 5, stdout = "out\n", stderr = "" }, assert(process:wait(20)))
    assert.has_error(function()
      process:wait(-1)
    end, "process:wait: timeout must be seconds, got -1")
  end)

  it("tells a terminal its new size", function()
    local text = "stty size; until stty size | grep ^43; do sleep 0.1; done; sleep 0.2"
    local process = assert(instance:spawn({ "sh", "-c", text }, { tty = { width = 80, height = 24 } }))
    assert.matches("^24 80", process:read())
    process:resize(132, 43)
    assert.matches("43 132", assert(process:wait()).stdout)
  end)

  it("is stopped when its time is up, whatever the script does meanwhile", function()
    local before = core.now()
    local process = assert(instance:spawn({ "sh", "-c", "echo on; exec sleep 69" }, { timeout = 2 }))
    assert.are.equal("on\n", process:read())
    assert.is_nil(process:read())
    local result, err = process:wait()
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
    assert.are.equal(143, err.result.status)
    process = assert(instance:spawn({ "sleep", "69" }, { timeout = 0.5 }))
    local taken
    repeat
      taken = process:write(("x"):rep(100000))
    until not taken
    assert.is_true(core.now() - before < 30)
  end)

  it("isn't said to have been stopped where it had ended by itself, however late one waits", function()
    local process = assert(instance:spawn({ "sh", "-c", "echo all; exit 3" }, { timeout = 2 }))
    lxd.sleep(2.5)
    assert.are.same({ status = 3, stdout = "all\n", stderr = "" }, assert(process:wait()))
    process = assert(instance:spawn({ "sh", "-c", "echo all; exit 3" }, { timeout = 2 }))
    os.execute "sleep 3" -- nothing goes on meanwhile
    assert.are.same({ status = 3, stdout = "all\n", stderr = "" }, assert(process:wait()))
  end)

  it("takes the command along when the script dies", function()
    local path = os.tmpname()
    local file = assert(io.open(path, "w"))
    file:write(string.format([[
      local client = assert(require "lualxd".connect())
      local process = assert(client.containers %q:spawn { "sleep", "65" })
      process:read()]], name))
    file:close()
    server.shell("timeout -s KILL 1 " .. interpreter .. " " .. path)
    os.remove(path)
    until_gone "sleep 65"
  end)
end)

-- A process that is dropped is collected when whoever had it has gone, be it a coroutine of a foreign loop.
local function collect()
  for _ = 1, 5 do
    collectgarbage()
    lxd.sleep(0.02)
  end
end

describe("a process that nobody has any more", function()
  it("takes its command along", function()
    (function()
      assert(instance:spawn { "sleep", "66" }):signal "CONT"
    end)()
    collect()
    until_gone "sleep 66"
  end)

  it("isn't collected while it is waited for, read from, or tells functions", function()
    local got, ended = {}, 0
    local function of(settings, then_)
      return lxd.spawn(function()
        then_(assert(instance:spawn({ "sh", "-c", "read x; sleep 0.5; echo $x" }, settings)))
        ended = ended + 1
      end)
    end
    lxd.run(function()
      local list = {
        of({ stdin = "1\n" }, function(process) got[1] = assert(process:wait()).stdout end),
        of({ stdin = "2\n" }, function(process) got[2] = process:read() end),
        lxd.spawn(function() got[3] = assert(instance:spawn { "sh", "-c", "sleep 0.5; echo 3" }):read() end),
        of({ stdin = "4\n", stdout = function(bytes) got[4] = bytes end }, function() end),
        of({ stdin = function()
          if not got[5] then
            lxd.sleep(0.2)
            got[5] = "5\n"
            return got[5]
          end
        end, stderr = function() end }, function() end),
      }
      for _ = 1, 10 do
        lxd.sleep(0.1)
        collectgarbage()
      end
      for _, task in ipairs(list) do
        task:join()
      end
    end)
    assert.are.same({ "1\n", "2\n", "3\n", "4\n", "5\n" }, got)
    assert.are.equal(4, ended)
  end)

  it("may be waited for by several, who are all told the same", function()
    local process = assert(instance:spawn({ "sh", "-c", "sleep 0.3; echo; exit 6" }))
    local failing = assert(instance:spawn({ "sh", "-c", "echo; sleep 67" }, { stdout = function()
      error("mine", 0)
    end }))
    local results = assert(lxd.map({ process, process, process, failing, failing }, function(one)
      local ok, result = pcall(one.wait, one)
      return ok and result.status or result
    end, { parallel = 5 }))
    assert.are.same({ 6, 6, 6, "mine", "mine" }, results)
  end)
end)

describe("a connection of exec", function()
  local way, other, far

  before_each(function()
    way = relay.start(server.socket)
    other = assert(lxd.connect { socket = way.socket, timeout = 3 })
    far = other.containers(name)
  end)

  after_each(function()
    other:close()
    way:stop()
  end)

  it("that is silent for a while loses nothing", function()
    way:late("1", 1.7)
    assert.are.same({ status = 3, stdout = "out\n", stderr = "err\n" },
      assert(far:exec { "sh", "-c", "echo out; echo err >&2; exit 3" }))
    way:late("0", 1.7)
    assert.are.same({ status = 4, stdout = "out\r\n" },
      -- LXD (5.0.2) now and then loses what a terminal shows last.
      assert(far:exec({ "sh", "-c", "echo out; sleep 0.3; exit 4" }, { tty = { width = 80, height = 24 } })))
  end)

  it("that is silent for too long is an error, with what there is", function()
    way:late("1", 20)
    local result, err = far:exec { "sh", "-c", "echo out; echo err >&2; exit 3" }
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
    assert.matches("output was lost", err.message)
    assert.are.same({ status = 3, stdout = "", stderr = "err\n" }, err.result)
  end)

  it("that ends too early is an error, with what there is, even where there is a status", function()
    way:end_after("1", 4)
    local result, err = far:exec { "sh", "-c", "echo err >&2; sleep 0.1; echo o; sleep 0.1; echo lost" }
    assert.is_nil(result)
    assert.are.equal("connect", err.kind)
    assert.matches("output was lost", err.message)
    assert.are.equal("err\n", err.result.stderr)
    assert.is_number(err.result.status)
    local process = assert(far:spawn { "sh", "-c", "echo o; echo lost; sleep 0.3" })
    repeat
      result, err = process:read()
    until not result
    assert.matches("output was lost", err.message)
    assert.is_nil((process:wait()))
  end)
end)

describe("exec doesn't hang", function()
  local function in_time(f, ...)
    local before = core.now()
    local result, err = f(...)
    assert.is_true(core.now() - before < 40, core.now() - before) -- 12 at most where nothing else runs
    return result, err
  end

  it("on what a command leaves behind that is never silent", function()
    local result = assert(in_time(sh, "(while :; do echo x; sleep 0.2; done) & echo $! >/tmp/n; exit 0"))
    assert.matches("^x\nx\n", result.stdout)
    result = assert(in_time(sh, "yes & echo $! >>/tmp/n", { stdout = function() end }))
    -- Without its reader it may have ended by the time that the operation is looked at.
    assert.truthy(result.status == nil or result.status == 0)
    sh "kill -9 $(cat /tmp/n)"
  end)

  it("on a function that is slower than the command, when the time is up", function()
    local result, err = in_time(sh, "while :; do echo x; done", {
      timeout = 0.3, stdout = function() lxd.sleep(0.05) end,
    })
    assert.is_nil(result)
    assert.are.equal("timeout", err.kind)
  end)

  it("when it has nothing to signal", function()
    local _, err = in_time(sh, "(while :; do echo x; sleep 0.2; done) & echo $! >/tmp/n; exit 0", { timeout = 1 })
    assert.are.equal("timeout", err.kind)
    sh "kill -9 $(cat /tmp/n)"
  end)

  it("on a container that is frozen", function()
    local process = assert(instance:spawn({ "sleep", "68" }, { timeout = 3 }))
    lxd.sleep(0.1)
    assert(instance:freeze():wait())
    local _, err = in_time(process.wait, process)
    assert(instance:unfreeze():wait())
    assert.are.equal("timeout", err.kind)
    assert.is_nil(err.result.status)
  end)
end)

describe("an answer that can't be", function()
  local fake, other

  before_each(function()
    fake = imitation.start()
    other = assert(lxd.connect { socket = fake.socket })
  end)

  after_each(function()
    other:close()
    fake:stop()
  end)

  -- Of those that LXD gives 5 s to be connected.
  it("that doesn't come holds up whoever would be too many", function()
    fake:rules(
      { method = "POST", path = "/exec$", async = { id = "a", status_code = 103, metadata = {
        fds = { control = "a", ["0"] = "b", ["1"] = "c", ["2"] = "d" } } } },
      { path = "/websocket", when = "head", steps = { { gate = "late" }, { close = true } } })
    local function begun()
      local count = 0
      for _, request in ipairs((fake:record())) do
        count = count + (request.method == "POST" and 1 or 0)
      end
      return count
    end
    lxd.run(function()
      local all = lxd.spawn(lxd.map, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, function()
        return other.containers "x":exec { "true" }
      end, { parallel = 12 })
      local deadline = core.now() + 20
      repeat
        lxd.sleep(0.1)
      until begun() >= 8 or core.now() > deadline
      lxd.sleep(0.2)
      assert.are.equal(8, begun())
      fake:release "late"
      assert.matches("^12 of 12 failed", tostring(select(2, all:join())))
      assert.are.equal(12, begun())
    end)
  end)

  for title, answer in pairs {
    ["no operation, but a result"] = { sync = { id = "a" } },
    ["no operation, but nothing"] = { sync = json.null },
    ["an operation without its WebSockets"] = { async = { id = "a", status_code = 103, metadata = json.null } },
    ["an operation with WebSockets that are none"] = { async = { id = "a", status_code = 103,
      metadata = { fds = { control = 5 } } } },
  } do
    it("is an error: " .. title, function()
      answer.method, answer.path = "POST", "/(exec|console)$"
      fake:rules(answer)
      local node = other.containers "x"
      for _, begin in ipairs {
        function() return node:exec { "true" } end,
        function() return node:spawn { "true" } end,
        function() return node:console() end,
      } do
        local got, err = begin()
        assert.is_nil(got)
        assert.are.equal("protocol", err.kind)
      end
    end)
  end
end)

describe("examples/everywhere.lua", function()
  it("runs a command in every running container", function()
    local ok, out = server.shell(interpreter .. " examples/everywhere.lua sh -c 'echo here; printf there'")
    assert.is_true(ok, out)
    assert.matches(name:gsub("%p", "%%%0") .. ": here\n" .. name:gsub("%p", "%%%0") .. ": there\n", out)
    ok, out = server.shell(interpreter .. " examples/everywhere.lua no-such-command")
    assert.is_false(ok)
    assert.matches(name:gsub("%p", "%%%0") .. ": status 127\n", out)
  end)
end)

describe("examples/shell.lua", function()
  it("is a shell in a container, from a terminal", function()
    local function at_a_terminal(command, input)
      return (select(2, server.shell("(sleep 1; printf '" .. input .. "'; sleep 2) | timeout 20 script -qefc"
        .. " \"stty cols 111 rows 33; " .. interpreter .. " examples/shell.lua " .. command
        .. "\" /dev/null; echo status $?")))
    end
    local out = at_a_terminal(name, [[stty size; echo "<$((6*7))>"; sleep 0.5; exit 4\n]])
    assert.matches("33 111\r*\n<42>", out)
    assert.matches("status 4\n", out)
    assert.matches("nowhere: .*status 1\n", at_a_terminal("nowhere", ""))
    local _, refused = server.shell(interpreter .. " examples/shell.lua " .. name .. " </dev/null")
    assert.matches("not at a terminal", refused)
  end)
end)
