-- Waiting in nginx (lua-nginx-module): in the phases that can be suspended. nginx can wait for sockets of its own only,
-- so a thread of this worker waits for the descriptor (src/waiter.c) and says so over one of these.
--
-- A request may be killed at any time (its client went away), so an attendant drives, in a timer that belongs to no
-- request; and tasks, which may serve several requests, are cut off from the one that began them.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local semaphore = require "ngx.semaphore"
local tasks = require "lualxd.loop.task"
local ngx = ngx -- luacheck: read globals ngx

local adapter = {
  flows = true,
  watch = 0.25,
  linger = 0.05,
  term = 20,
}

local LONGEST = 2 ^ 31 / 1000 - 1 -- seconds, of nginx's timers
local SHORTEST = 0.001 -- one tick of theirs: a semaphore that is waited for less long comes back at once

-- By ngx.get_phase(). In the blocking ones nobody is served yet, or any more.
local BLOCKING = { init = true, init_worker = true, exit_worker = true }
local SUSPENDED = { rewrite = true, server_rewrite = true, access = true, precontent = true, content = true,
  timer = true, ssl_cert = true, ssl_client_hello = true, ssl_session_fetch = true, proxy_ssl_cert = true,
  proxy_ssl_verify = true }

---Whether nginx serves requests.
function adapter.serving()
  return not BLOCKING[ngx.get_phase()]
end

-- A worker that is told to go (by a reload, too) stays as long as a request or a timer does.
adapter.leaving = ngx.worker.exiting

function adapter.here()
  local phase = ngx.get_phase()
  if SUSPENDED[phase] then
    return true
  elseif BLOCKING[phase] then
    return false
  end
  error("lualxd can't wait in " .. phase .. "_by_lua*, where nginx can't suspend anything: wait in a timer"
    .. " (ngx.timer.at(0, f)) or in an earlier phase (access_by_lua*, content_by_lua*)", 0)
end

local waiter -- the thread

function adapter.wait(fd, timeout)
  waiter = waiter or assert(core.waiter())
  local socket = ngx.socket.tcp()
  socket:settimeout(math.min(timeout, LONGEST) * 1000)
  local ok, message = socket:connect("unix:" .. waiter:path(), { pool = "lualxd" })
  if ok then
    ok, message = socket:send(fd .. "\n")
  end
  if ok then
    ok, message = socket:receive(1)
  end
  if ok then
    socket:setkeepalive(60000, 16)
    return
  end
  socket:close()
  if message ~= "timeout" then
    error("lualxd: waiting for a descriptor: " .. tostring(message), 0)
  end
end

function adapter.park(this, timeout)
  this.bell = this.bell or assert(semaphore.new())
  this.bell:wait(math.max(SHORTEST, math.min(timeout, LONGEST)))
end

function adapter.wake(this)
  this.bell:post()
end

-- Whoever waits for a semaphore is counted, as minus one, until it is killed. For a thread that may be doing anything
-- another one waits, which nginx kills at the same time: with the request.
function adapter.gone(this)
  return this.bell and this.bell:count() == (this.fired and 1 or 0)
end

-- What began a thread keeps it when it has ended, as long as that goes on itself. So a third begins them, and ends.
function adapter.thread(f, this)
  local bell = assert(semaphore.new())
  this.bell = bell
  ngx.thread.wait(ngx.thread.spawn(function()
    ngx.thread.spawn(function()
      while not bell:wait(LONGEST) do end -- luacheck: ignore 542
    end)
    ngx.thread.spawn(function()
      f()
      bell:post()
    end)
  end))
end

function adapter.attend(f)
  return (ngx.timer.at(0, f))
end

-- A coroutine takes its request from the one that makes it; to use it after the request's end would be fatal.
local exdata = require "thread.exdata"
local nobody = require("ffi").cast("void *", 0)

function tasks.detached(f)
  return function(...)
    exdata(nobody)
    return f(...)
  end
end

return adapter
