-- lualxd in nginx as nginx runs it: workers, phases, requests that are aborted, reload. What lualxd does there besides
-- is what the other specs say, which run inside nginx as well (spec/support/in-nginx).
if not jit then
  return -- nginx's Lua is LuaJIT
end

local core = require "lualxd.core"
local lfs = require "lfs"
local server = require "spec.support.lxd"

local here = lfs.currentdir()
local work, pid, instance

local CONF = [[
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
user root;
worker_processes 1;
pid WORK/pid;
error_log WORK/error.log notice;
env LXD_SOCKET; env TMPDIR=WORK/tmp; env LXD_TEST_URL; env LXD_TEST_CERT; env LXD_TEST_KEY; env LXD_TEST_SERVER_CERT;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path WORK/b; proxy_temp_path WORK/p; fastcgi_temp_path WORK/f;
  uwsgi_temp_path WORK/u; scgi_temp_path WORK/s;
  lua_package_path "HERE/?.lua;HERE/?/init.lua;;";
  lua_package_cpath "HERE/build/luajit/?.so;;";
  init_by_lua_block {
    if os.getenv "LXD_TEST_URL" then dofile "HERE/spec/support/transport.lua" end
    lxd = require "lualxd"
    client = assert(lxd.connect())
    from_init = assert(client.profiles "default":get()).name
  }
  init_worker_by_lua_block { from_init_worker = assert(client.profiles "default":get()).name }
  server {
    listen unix:WORK/http;
    lua_check_client_abort on;
    location = /init { content_by_lua_block { ngx.say(from_init, " ", from_init_worker) } }
    location = /content { content_by_lua_block { ngx.say(assert(client.profiles "default":get()).name) } }
    location = /access {
      access_by_lua_block { ngx.ctx.name = assert(client.profiles "default":get()).name }
      content_by_lua_block { ngx.say(ngx.ctx.name) }
    }
    location = /rewrite {
      rewrite_by_lua_block { ngx.ctx.name = assert(client.profiles "default":get()).name }
      content_by_lua_block { ngx.say(ngx.ctx.name) }
    }
    location = /timer {
      content_by_lua_block {
        local done = require("ngx.semaphore").new()
        local name
        ngx.timer.at(0, function() name = assert(client.profiles "default":get()).name; done:post() end)
        done:wait(10)
        ngx.say(name)
      }
    }
    location = /log {
      content_by_lua_block { ngx.say "ok" }
      log_by_lua_block { local ok, err = pcall(lxd.connect); ngx.log(ngx.NOTICE, "in log: ", tostring(err)) }
    }
    location = /filter {
      content_by_lua_block { ngx.say "ok" }
      header_filter_by_lua_block {
        local ok, err = pcall(function() return client.profiles "default":get() end)
        ngx.header["X-Said"] = tostring(err)
      }
    }
    location = /sleep {
      content_by_lua_block { lxd.sleep(tonumber(ngx.var.arg_s)); ngx.say "slept" }
    }
    location = /turns {
      content_by_lua_block {
        local core = require "lualxd.core"
        local began = core.now()
        while core.now() - began < 3 do lxd.sleep(0) end
        ngx.say "turned"
      }
    }
    location = /timers {
      content_by_lua_block {
        ngx.sleep(0.3) -- no attendant runs any more
        local got, began = 0, ngx.now()
        for _ = 1, 256 do
          assert(ngx.timer.at(0, function()
            assert(client.profiles "default":get())
            got = got + 1
          end))
        end
        while got < 256 and ngx.now() - began < 10 do ngx.sleep(0.05) end
        ngx.say(got)
      }
    }
    location = /killed {
      content_by_lua_block {
        local loop = require "lualxd.loop"
        local condition = loop.condition()
        local thread = ngx.thread.spawn(function() loop.await(condition) end)
        loop.fire(condition)
        ngx.thread.kill(thread)
        ngx.say "killed"
      }
    }
    location = /exec {
      content_by_lua_block {
        local result = assert(client.containers(ngx.var.arg_name):exec { "sh", "-c", ngx.unescape_uri(ngx.var.arg_c) })
        ngx.say(result.status, " ", result.stdout)
      }
    }
    location = /read {
      content_by_lua_block { ngx.say(assert(client.containers(ngx.var.arg_name):spawn { "sleep", "976" }):read()) }
    }
    location = /first {
      content_by_lua_block {
        package.loaded.shared = assert(client.containers(ngx.var.arg_name):spawn { "sleep", "3" })
        package.loaded.shared:wait()
      }
    }
    location = /second {
      content_by_lua_block { ngx.say(assert(package.loaded.shared:wait()).status) }
    }
    location = /stream {
      content_by_lua_block {
        assert(client.containers(ngx.var.arg_name):exec({ "seq", "1000" }, { stdout = ngx.print }))
      }
    }
    location = /tasks {
      content_by_lua_block {
        local names = assert(lxd.map({ "default", "default", "default" }, function(name)
          ngx.sleep(0.01)
          return client.profiles(name):get().name
        end))
        ngx.say(table.concat(names, " "))
      }
    }
    location = /lua {
      content_by_lua_block {
        ngx.req.read_body()
        assert(loadstring(ngx.req.get_body_data()))()
      }
    }
    location = /create {
      content_by_lua_block {
        client.profiles:create { name = ngx.var.arg_name }
        ngx.say "promised"
      }
    }
  }
}
]]

local function shell(command, ...)
  local ok, out = server.shell(string.format(command, ...))
  return out, ok
end

local function get(path, more)
  return shell("curl -s %s --unix-socket %s/http 'http://nginx/%s'", more or "-m 20", work, path)
end

-- What a request says that runs this.
local function run(code)
  return (get("lua", "-m 20 --data-binary '" .. code .. "'"))
end

-- In the background, into a file.
local function begin(path, file)
  shell("curl -s -m 20 --unix-socket %s/http 'http://nginx/%s' -o %s/%s </dev/null >/dev/null 2>&1 &", work,
    path, work, file)
end

local function log()
  local file = assert(io.open(work .. "/error.log"))
  local text = file:read "*a"
  file:close()
  return text
end

local function eventually(what, f)
  local deadline = core.now() + 30
  while core.now() < deadline do
    local found = f()
    if found then
      return found
    end
    os.execute "sleep 0.05"
  end
  error(what .. " didn't happen in 30 s; nginx says:\n" .. log():sub(-2000))
end

-- Aborts a request that runs this, once it has set `at_work`; `shared` is nginx's, too.
local function abort(code)
  run "at_work = nil"
  local curl = shell("curl -s --unix-socket %s/http http://nginx/lua --data-binary '%s' >/dev/null 2>&1 & echo $!",
    work, code)
  eventually("the beginning", function()
    return run "ngx.say(at_work)" == "true\n"
  end)
  shell("kill %s", curl:match "%d+")
end

local function workers()
  return (shell("pgrep -P %s", pid):gsub("%s+$", ""))
end

setup(function()
  work = (shell "mktemp -d"):gsub("%s", "")
  shell("chmod 711 %s && mkdir -m 700 %s/tmp", work, work)
  local file = assert(io.open(work .. "/nginx.conf", "w"))
  file:write((CONF:gsub("WORK", work):gsub("HERE", here)))
  file:close()
  local out, ok = shell("nginx -c %s/nginx.conf -p %s -e %s/error.log", work, work, work)
  assert(ok, out)
  pid = eventually("the start", function()
    local pid_file = io.open(work .. "/pid")
    local text = pid_file and pid_file:read "*l"
    return pid_file and pid_file:close() and text
  end)
  instance = server.name "c"
  local client = server.connect()
  assert(client.containers:create { name = instance, source = server.source }:wait())
  assert(client.containers(instance):start():wait())
  client:close()
end)

teardown(function()
  shell("kill -TERM %s 2>/dev/null; while kill -0 %s 2>/dev/null; do sleep 0.05; done; rm -rf %s", pid, pid, work)
  server.clean()
end)

describe("in nginx", function()
  it("a client made in init_by_lua blocks there, and serves every worker", function()
    assert.are.equal("default default\n", (get "init"))
    assert.are.equal("default\n", (get "content"))
  end)

  for _, phase in ipairs { "access", "rewrite", "timer" } do
    it(phase .. " can wait", function()
      assert.are.equal("default\n", (get(phase)))
    end)
  end

  it("a phase that can't wait says which it is and what to do", function()
    assert.matches("lualxd can't wait in header_filter_by_lua%*.*ngx%.timer%.at", (get("filter", "-m 5 -i")))
    assert.are.equal("ok\n", (get "log"))
    eventually("the error in log_by_lua", function()
      return log():find("in log: lualxd can't wait in log_by_lua*", 1, true)
    end)
  end)

  it("functions of a request may use nginx", function()
    local numbers = {}
    for i = 1, 1000 do
      numbers[i] = i .. "\n"
    end
    assert.are.equal(table.concat(numbers), (get("stream?name=" .. instance)))
    assert.are.equal("default default default\n", (get "tasks"))
  end)

  it("nothing is logged while a request waits", function()
    get("exec?name=" .. instance .. "&c=sleep%201.5")
    assert.is_nil(log():find("timed out", 1, true))
  end)

  it("others are served while some wait", function()
    for i = 1, 20 do
      begin("exec?name=" .. instance .. "&c=sleep%208", "wait." .. i)
    end
    os.execute "sleep 0.3"
    for _ = 1, 20 do
      assert.are.equal("default\n", (get "content"))
    end
    local function over()
      return (shell("cat %s/wait.* 2>/dev/null | grep -c '^0'", work):match "%d+")
    end
    assert.are_not.equal("20", over()) -- on a busy machine some may have ended
    eventually("the end of the waits", function()
      return over() == "20"
    end)
  end)

  it("others are served while one sleeps for no time again and again", function()
    begin("turns", "turns")
    os.execute "sleep 0.2"
    assert.are.equal("default\n", (get "content"))
    assert.is_nil(shell("cat %s/turns", work):match "turned")
    eventually("the end of the turns", function()
      return shell("cat %s/turns", work):match "^turned"
    end)
  end)

  it("a change goes on when its request has ended", function()
    local name = server.name "p"
    assert.are.equal("promised\n", (get("create?name=" .. name)))
    eventually("the change", function()
      return server.look("/1.0/profiles/" .. name)
    end)
  end)

  it("an aborted request takes its command along, and nothing of anybody else's", function()
    begin("exec?name=" .. instance .. "&c=sleep%203.3", "other")
    get("exec?name=" .. instance .. "&c=sleep%20977", "-m 0.7")
    eventually("the end of the command", function()
      return not shell("pgrep -fx 'sleep 977'"):find "%d"
    end)
    eventually("the end of the other", function()
      return shell("cat %s/other", work):match "^0"
    end)
    -- One that sleeps drives nobody else's.
    get("sleep?s=30", "-m 0.3")
    assert.are.equal("default\n", (get "content"))
  end)

  it("an aborted request takes along the console and the events that it reads", function()
    abort(string.format([[
      shared = assert(client.containers "%s":console())
      at_work = true
      while shared:read() do end
    ]], instance))
    assert.are.equal("over\n", run [[ lxd.sleep(2) while shared:read() do end ngx.say "over" ]])
    abort [[
      shared = assert(client:events())
      at_work = true
      for _ in shared:each() do end
    ]]
    assert.are.equal("over\n", run [[ lxd.sleep(2) for _ in shared:each() do end ngx.say "over" ]])
  end)

  it("an aborted request takes along what it reads from, but not what another one waits for, too", function()
    get("read?name=" .. instance, "-m 0.7")
    eventually("the end of the command", function()
      return not shell("pgrep -fx 'sleep 976'"):find "%d"
    end)
    shell("curl -s -m 1 --unix-socket %s/http http://nginx/first?name=%s >/dev/null 2>&1 </dev/null &", work,
      instance)
    os.execute "sleep 0.4"
    assert.are.equal("0\n", (get("second")))
  end)

  for what, code in pairs {
    ["waits for LXD"] = "lxd.sleep(60)",
    ["waits for nginx"] = "ngx.sleep(60)",
    ["ends it itself"] = "ngx.sleep(0.1) ngx.exit(200)",
  } do
    it("who joins a task of another request, which " .. what .. ", is told that it was aborted", function()
      abort("lxd.run(function() shared = lxd.spawn(function() at_work = true " .. code .. " end) shared:join() end)")
      assert.are.equal("cancelled: task: it was killed, together with the request that it ran in\n", run [[
        local ok, err = pcall(shared.join, shared)
        ngx.say(err.kind, ": ", tostring(err))
      ]])
    end)
  end

  it("a task that ends its request at once disturbs nobody", function()
    for _ = 1, 50 do
      run "lxd.run(function() ngx.exit(200) end)"
      run "lxd.sleep(0.01)"
    end
    assert.are.equal("slept\n", run [[ lxd.sleep(0.5) ngx.say "slept" ]])
    assert.is_nil(log():match "[^\n]*entry thread aborted[^\n]*")
  end)

  it("who is killed while a command is begun takes it along", function()
    assert.are.equal("0 goes on\n", run(string.format([[
      local instance = client.containers "%s"
      for _ = 1, 12 do -- more than may begin at once
        ngx.thread.kill(ngx.thread.spawn(function() instance:exec { "sleep", "975" } end))
      end
      lxd.sleep(0.1)
      local result = assert(instance:exec { "echo", "goes on" })
      ngx.print(result.status, " ", result.stdout)
    ]], instance)))
    eventually("the end of the commands", function()
      return not shell("pgrep -fx 'sleep 975'"):find "%d"
    end)
  end)

  -- For 4 s there is no connection for anybody else.
  local function hold_up()
    run(string.format([[
      local held = assert(client:request("POST", "/1.0/instances/%s/exec", {
        json = { command = lxd.array { "sleep", "30" }, environment = {} },
      })).operation
      ngx.timer.at(0, function()
        lxd.map({ 1, 2, 3, 4, 5, 6, 7, 8 }, function()
          return client:request("GET", "/1.0/operations/" .. held.id .. "/wait?timeout=4")
        end)
      end)
      ngx.sleep(0.2)
    ]], instance))
  end

  it("a request that is aborted where it stands in line leaves nothing undone", function()
    hold_up()
    abort(string.format([[at_work = true client.containers "%s":exec { "sleep", "974" }]], instance))
    abort(string.format([[
      local instance = client.containers "%s"
      at_work = true
      lxd.wait_all { instance:update(function() end), instance:update(function() end) }
    ]], instance))
    run "for _ = 1, 100 do ngx.thread.spawn(function() ngx.sleep(0.001) end) end collectgarbage()"
    run "lxd.sleep(4)"
    assert.are.equal("default\n", (get "content"))
    assert.is_nil(log():match "[^\n]*entry thread aborted[^\n]*")
    assert.are.equal("", (shell "pgrep -fx 'sleep 974'"))
  end)

  it("a function that is called when its request was aborted changes nothing", function()
    hold_up()
    abort(string.format([[
      local instance, value = client.containers "%s", "value"
      at_work = true
      shared = instance:update(function(data) data.config["user.aborted"] = tostring(value) end)
      shared:wait()
    ]], instance))
    run "for _ = 1, 100 do ngx.thread.spawn(function() ngx.sleep(0.001) end) end collectgarbage()"
    assert.matches("^cancelled: .*was killed before that was called", run [[
      local _, err = shared:wait()
      ngx.say(err and err.kind, ": ", tostring(err))
    ]])
    assert.is_nil(server.look("/1.0/containers/" .. instance).config["user.aborted"])
  end)

  for what, options in pairs {
    output = "stdout = hold",
    input = "stdin = hold",
  } do
    it("who waits for a command whose " .. what .. " an aborted request handled is told so", function()
      abort(string.format([[
        local function hold() at_work = shared ~= nil ngx.sleep(0.01) return hold() end
        shared = nil
        shared = client.containers "%s":spawn({ "sh", "-c", "echo; cat" }, { %s })
        shared:wait()
      ]], instance, options))
      assert.matches("^cancelled: .*who waited for its input or output was killed", run [[
        local result, err = shared:wait()
        ngx.say(err.kind, ": ", tostring(err))
      ]])
    end)
  end

  it("tasks that have ended are nothing to a request that goes on", function()
    assert.are.equal("true\n", run [[
      local function size()
        for _ = 1, 3000 do lxd.map({ 1, 2, 3, 4 }, function() return true end) end
        lxd.sleep(0.1)
        for _ = 1, 3 do collectgarbage() end
        return collectgarbage "count"
      end
      local before = size()
      ngx.say(size() - before < 1000)
    ]])
  end)

  it("as many timers as nginx allows may wait at once", function()
    assert.are.equal("256\n", (get "timers"))
  end)

  it("one who was woken and killed before it ran is forgotten", function()
    assert.are.equal("killed\n", (get "killed"))
    local function cpu_switches()
      return tonumber(shell("grep ^voluntary /proc/%s/status", workers()):match "%d+")
    end
    os.execute "sleep 1"
    local before = cpu_switches()
    os.execute "sleep 1"
    assert.is_true(cpu_switches() - before < 3) -- nobody looks for news any more
  end)

  it("what somebody still waits for isn't given up when another who waited for it is killed", function()
    assert.are.equal("kept\nfired\ngiven up\n", run [[
      local loop, given_up = require "lualxd.loop", false
      local function wait_for(condition)
        condition.abandoned = function() given_up = true end
        return function() loop.await(condition) end
      end
      local function killed(f)
        ngx.thread.kill(ngx.thread.spawn(f))
        lxd.sleep(1)
        return given_up and "given up" or "kept"
      end
      local condition = loop.condition()
      local other = ngx.thread.spawn(wait_for(condition))
      ngx.say(killed(wait_for(condition)))
      loop.fire(condition)
      ngx.say(ngx.thread.wait(other) and "fired")
      ngx.say(killed(wait_for(loop.condition())))
    ]])
  end)

  it("the waiter can be reached by its own process alone", function()
    get "content"
    local worker = workers()
    local out = shell([[python3 -c '
import os, socket, stat
base, tried = "/proc/%s/fd", 0
for name in os.listdir(base):
    path = base + "/" + name
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode): continue
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(3)
        s.connect(path)
    except OSError:
        continue
    tried += 1
    try:
        s.send(b"0\n")
        print("answered", repr(s.recv(1)))
    except OSError as e:
        print("refused")
print("tried", tried)
']], worker)
    assert.matches("tried 1", out)
    assert.is_true(out:find("answered b''", 1, true) ~= nil or out:find("refused", 1, true) ~= nil, out)
    assert.are.equal("", (shell("ls %s/tmp", work)))
  end)

  it("reload isn't held up by who listens to events, in a request or a timer", function()
    local old = workers()
    local listen = [[
      local stream = assert(client:events())
      at_work = (at_work or 0) + 1
      for _ in stream:each() do end
    ]]
    run("at_work = nil ngx.timer.at(0, function() " .. listen .. " ngx.log(ngx.NOTICE, [[listened in a timer]]) end)")
    shell("curl -s -m 30 --unix-socket %s/http http://nginx/lua --data-binary '%s ngx.say [[listened]]' -o %s/listened"
      .. " </dev/null >/dev/null 2>&1 &", work, listen, work)
    eventually("the beginning", function()
      return run "ngx.say(at_work)" == "2\n"
    end)
    shell("kill -HUP %s", pid)
    eventually("the end of the old worker", function()
      return not shell("pgrep -P %s", pid):find(old, 1, true)
    end)
    assert.are.equal("listened\n", (shell("cat %s/listened", work)))
    assert.truthy(log():find("listened in a timer", 1, true))
    assert.are.equal("default\n", (get "content"))
  end)

  it("reload is quick, and finishes what is under way", function()
    local old = workers()
    begin("exec?name=" .. instance .. "&c=sleep%201.5;echo%20done", "late")
    os.execute "sleep 0.5"
    shell("kill -HUP %s", pid)
    eventually("a new worker", function()
      return workers():gsub(old, ""):find "%d"
    end)
    assert.are.equal("default\n", (get "content"))
    eventually("the end of the old worker", function()
      return not shell("pgrep -P %s", pid):find(old, 1, true)
    end)
    assert.matches("^0 done", (shell("cat %s/late", work)))
  end)

  it("quits at once and leaves nothing", function()
    get "content"
    local before = core.now()
    shell("kill -QUIT %s; while kill -0 %s 2>/dev/null; do sleep 0.02; done", pid, pid)
    assert.is_true(core.now() - before < 15) -- some requests above sleep for a minute
    assert.are.equal("", (shell("ls %s/tmp", work)))
    local text = log():gsub("[^\n]*lua_max_running_timers are not enough[^\n]*", "") -- as many as nginx allows, above
    assert.is_nil(text:match "%[alert%][^\n]*" or text:match "exited on signal[^\n]*")
  end)
end)

describe("examples/nginx.conf", function()
  it("creates a container and answers when it runs", function()
    local directory = (shell "mktemp -d"):gsub("%s", "")
    -- As it stands, but for where it listens and writes.
    local _, ok = shell((([[sed -e 's|listen .*;|listen unix:DIR/http;|; s|^pid .*|pid DIR/pid;|;
        s|error_log stderr|error_log DIR/log|' examples/nginx.conf > DIR/conf &&
        nginx -p 'HERE' -c DIR/conf -e DIR/log]])
        :gsub("DIR", directory):gsub("HERE", here)))
    assert.is_true(ok)
    local name = server.name "c"
    local function post(query)
      return (shell("curl -s -m 20 -X POST -w ' %%{http_code}' --unix-socket %s/http 'http://nginx/containers/%s'",
        directory, name .. query))
    end
    local made, again, missing = post("?image=" .. server.image), post "", post "x?image=none"
    shell("kill -QUIT $(cat %s/pid); while [ -e %s/pid ]; do sleep 0.05; done; rm -rf %s", directory, directory,
      directory)
    assert.are.equal(name .. " is Running\n 200", made)
    assert.matches("already exists.* 409$", again)
    assert.matches("not found.* 404$", missing)
    assert.are.equal("Running", server.look("/1.0/containers/" .. name).status)
  end)
end)
