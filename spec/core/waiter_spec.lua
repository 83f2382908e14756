-- What waits on behalf of others: the waiter (a thread, for nginx) and the waker (a descriptor of one's own).
local core = require "lualxd.core"
local lfs = require "lfs"
local unix = require "socket.unix"

local function descriptors()
  local count = 0
  for _ in lfs.dir "/proc/self/fd" do
    count = count + 1
  end
  return count
end

local function connect(waiter)
  local peer = (unix.stream or unix)()
  peer:settimeout(5)
  assert(peer:connect(waiter:path()))
  return peer
end

-- Whether the byte comes within so many seconds.
local function answered(peer, seconds)
  peer:settimeout(seconds)
  return peer:receive(1) == "r"
end

describe("a waiter", function()
  it("says when a descriptor is readable, again and again on one connection", function()
    local waiter, waker = assert(core.waiter()), assert(core.waker())
    local peer = connect(waiter)
    for _ = 1, 50 do
      waker:set()
      peer:send(waker:fd() .. "\n")
      assert.is_false(answered(peer, 0.002))
      waker:set(0)
      assert.is_true(answered(peer, 5))
    end
    peer:close()
    waker:close()
    waiter:close()
  end)

  it("turns away whom it has no descriptor for, and comes to rest", function()
    local posix = require "spec.core.support".posix
    local waiter, waker = assert(core.waiter()), assert(core.waker())
    local before, late = connect(waiter), (unix.stream or unix)()
    waker:set()
    posix.sleep(0.05) -- it has its seat
    local limit, files = posix.limit_files(128), {}
    repeat
      local f = io.open "/dev/null"
      files[#files + 1] = f
    until not f
    late:settimeout(5)
    local connected, clock = late:connect(waiter:path()), os.clock()
    posix.sleep(0.3)
    local took = os.clock() - clock
    before:send(waker:fd() .. "\n")
    local seen = { select(2, late:receive(1)), (select(2, before:receive(1))) }
    for _, f in ipairs(files) do
      f:close()
    end
    posix.limit_files(limit)
    assert.truthy(connected)
    assert(took < 0.2, took)
    assert.same({ "closed", "closed" }, { seen[1], seen[#seen] })
    waker:set(0)
    local after = connect(waiter)
    after:send(waker:fd() .. "\n")
    assert.is_true(answered(after, 5))
    for _, one in ipairs { before, late, after, waker, waiter } do
      one:close()
    end
  end)

  it("comes to rest where the kernel has no memory for whom wants to connect", function()
    local posix = require "spec.core.support".posix
    for _, errno in ipairs { 12, 105 } do -- ENOMEM, ENOBUFS
      local child = assert(posix.fork())
      if child == 0 then
        assert(posix.fail_call("accept4", errno))
        local waiter = assert(core.waiter())
        connect(waiter)
        local clock = os.clock()
        posix.sleep(0.5)
        posix.exit(os.clock() - clock < 0.2 and 0 or 1)
      end
      assert.equal(0, posix.waitpid(child))
    end
  end)

  it("waits for many at once, some of whom go away", function()
    local waiter = assert(core.waiter())
    local peers, wakers = {}, {}
    for i = 1, 40 do
      peers[i], wakers[i] = connect(waiter), assert(core.waker())
      peers[i]:send(wakers[i]:fd() .. "\n")
    end
    for i = 1, 40, 4 do
      peers[i]:close()
      wakers[i + 1]:close()
    end
    for i = 3, 40, 4 do
      wakers[i]:set(0)
    end
    for i = 3, 40, 4 do
      assert.is_true(answered(peers[i], 5))
      assert.is_false(answered(peers[i + 1], 0))
    end
    waiter:close()
    for i = 1, 40 do
      peers[i]:close()
      wakers[i]:close()
    end
  end)

  it("lets two wait for the same descriptor", function()
    local waiter, waker = assert(core.waiter()), assert(core.waker())
    local one, two = connect(waiter), connect(waiter)
    one:send(waker:fd() .. "\n")
    two:send(waker:fd() .. "\n")
    waker:set(0)
    assert.is_true(answered(one, 5))
    assert.is_true(answered(two, 5))
    waiter:close()
    one:close()
    two:close()
  end)

  it("answers at once for what is no descriptor, and turns nonsense away", function()
    local waiter = assert(core.waiter())
    local peer = connect(waiter)
    peer:send "99999\n"
    assert.is_true(answered(peer, 5))
    peer:send "nonsense\n"
    assert.is_false(answered(peer, 5))
    peer:close()
    peer = connect(waiter)
    peer:send(("1"):rep(100) .. "\n")
    assert.is_false(answered(peer, 5))
    peer:close()
    waiter:close()
  end)

  it("turns away, too, whom a child has open", function()
    local posix = require "spec.core.support".posix
    local waiter = assert(core.waiter())
    local peer = connect(waiter)
    peer:send "99999\n"
    assert.is_true(answered(peer, 5)) -- it has its seat
    local child = assert(posix.fork())
    if child == 0 then
      posix.sleep(1)
      posix.exit(0)
    end
    peer:send "nonsense, and what nobody reads any more\n"
    local clock = os.clock()
    peer:settimeout(0.5)
    local _, seen = peer:receive(1)
    posix.sleep(0.2)
    local took = os.clock() - clock
    peer:close()
    assert.equal(0, posix.waitpid(child))
    waiter:close()
    assert.equal("closed", seen)
    assert(took < 0.1, took)
  end)

  it("leaves nothing open, whether it is closed or forgotten", function()
    assert(core.waiter()):close()
    collectgarbage()
    local before = descriptors()
    local waiter = assert(core.waiter())
    connect(waiter):close()
    waiter:close()
    waiter:close()
    assert.has_error(function()
      waiter:path()
    end, "attempt to use a closed waiter")
    assert.are.equal(before, descriptors())
    waiter = assert(core.waiter())
    waiter:path()
    waiter = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.are.equal(before, descriptors())
  end)
end)

describe("a waker", function()
  local poller = assert(core.poller())

  local function readable(waker, seconds)
    local waiter = assert(core.waiter())
    local peer = connect(waiter)
    peer:send(waker:fd() .. "\n")
    local is = answered(peer, seconds)
    peer:close()
    waiter:close()
    return is
  end

  it("is readable when its time has come, until it is set anew", function()
    local waker = assert(core.waker())
    assert.is_false(readable(waker, 0.01))
    waker:set(0.02)
    assert.is_true(readable(waker, 5))
    assert.is_true(readable(waker, 5))
    waker:set()
    assert.is_false(readable(waker, 0.01))
    waker:close()
    waker:close()
    assert.has_error(function()
      waker:fd()
    end, "attempt to use a closed waker")
  end)

  it("is readable when the alarm of a poller that it watches goes off", function()
    local waker = assert(core.waker())
    waker:watch(poller:pollfd())
    poller:alarm(core.now() + 0.02)
    assert.is_true(readable(waker, 5))
    poller:alarm()
    poller:step({})
    assert.is_false(readable(waker, 0.01))
    waker:watch()
    poller:alarm(0)
    assert.is_false(readable(waker, 0.01))
    poller:alarm()
    waker:close()
    assert.has_error(function()
      assert(core.waker()):watch(99999)
    end)
  end)
end)
