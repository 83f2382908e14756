-- After a fork: the child has no part in what the parent began, and can't disturb it.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

describe("after a fork", function()
  before_each(support.begin)
  after_each(support.finally)

  local kept, active, stream, queued, c_kept, c_active, c_stream

  -- A kept connection, a request under way, a stream whose buffer is full, one in line.
  local function prepare()
    local _, server, p = support.open { connections = 3 }
    kept = support.get { url = "http://lxd/kept" }
    c_kept = server:accept()
    c_kept:request()
    active = support.get { url = "http://lxd/active", method = "POST", body = "x", once = true }
    c_active = server:accept()
    c_active:request()
    stream = support.get { stream = true }
    c_stream = server:accept()
    c_stream:request()
    c_stream:send "HTTP/1.1 200 OK\r\n\r\n"
    for _ = 1, 40 do
      posix.send(c_stream.fd, ("x"):rep(65536))
      p:step({})
    end
    queued = support.get { url = "http://lxd/queued" }
    assert.equal("queued", queued:state())
    c_kept:answer "kept"
    support.finish(kept)
    -- The one in line took the kept connection; it gets its answer later.
    c_kept:request()
  end

  -- Everything that the parent began comes to a good end on the connections it had.
  local function check_parent()
    for _, c in ipairs { c_kept, c_active } do
      assert.equal("", c:peek())
      assert.is_false(c.ended)
    end
    assert.equal(3, support.engine:connects())
    assert.is_false(c_stream.ended)
    c_active:answer "active"
    local _, _, body = support.finish(active)
    assert.equal("active", body)
    c_kept:answer "queued"
    _, _, body = support.finish(queued)
    assert.equal("queued", body)
    c_stream:close()
    while stream:read() do
      support.poller:wait(0.01)
      support.poller:step({})
    end
    assert.equal(200, (stream:result()))
    local again = support.get()
    assert.is_nil(support.server:pending())
    c_kept:peek()
    c_active:peek()
    local c = #c_kept.buffer > 0 and c_kept or c_active
    c:request()
    c:answer "again"
    _, _, body = support.finish(again)
    assert.equal("again", body)
  end

  local function in_child(f)
    prepare()
    local pid = support.fork(f)
    assert.equal(0, posix.waitpid(pid))
    check_parent()
  end

  it("a child that does nothing disturbs nothing", function()
    in_child(function() end)
  end)

  it("a child that collects everything disturbs nothing", function()
    in_child(function()
      kept, active, stream, queued = nil, nil, nil, nil
      support.engine, support.poller = nil, nil
      support.collect()
    end)
  end)

  it("a child that closes everything, in any order, disturbs nothing", function()
    for _, order in ipairs { { "poller", "engine" }, { "engine", "poller" } } do
      in_child(function()
        active:close()
        support[order[1]]:close()
        support[order[2]]:close()
        stream:close()
        queued:close()
      end)
      support.poller:close()
      support.server:close()
      os.remove(support.path)
    end
    support.server = nil
  end)

  it("a child that ends as a script does disturbs nothing", function()
    in_child(function()
      os.exit(0, true)
    end)
  end)

  it("requests of the parent end in the child as `forked`", function()
    in_child(function()
      local news, seen = {}, {}
      for i = 1, support.poller:step(news) do
        seen[news[i]] = true
      end
      for _, r in ipairs { active, stream, queued } do
        assert(r:state() == "done")
        assert(seen[r:id()])
        local status, failure = r:result()
        assert(status == nil and failure.kind == "forked")
        assert(failure.unsure) -- all three had been sent, by the parent
      end
      assert(kept:result() == 200)
      local count, line = support.engine:count()
      assert(count == 0 and line == 0)
    end)
  end)

  it("each method of a request finds out by itself", function()
    in_child(function()
      assert(active:state() == "done")
      assert(#stream:read() > 0)
      assert(stream:state() == "done")
      assert(select(2, queued:result()).kind == "forked")
      active:cancel()
      assert(select(2, active:result()).kind == "forked")
    end)
  end)

  it("the poller has other descriptors in the child, and works", function()
    prepare()
    local fd = support.poller:pollfd()
    local pid = support.fork(function()
      support.poller:step({})
      assert(posix.cloexec(support.poller:pollfd()))
      local t = core.now()
      local r = support.get { timeout = 0.03, url = "http://lxd/child" }
      local kind = support.failure(r)
      assert(kind == "timeout")
      assert(core.now() - t < 9)
    end)
    assert.equal(0, posix.waitpid(pid))
    assert.equal(fd, support.poller:pollfd())
    local c = support.server:accept()
    assert.matches("GET /child ", (c:head()))
    check_parent()
  end)

  it("the engine goes on in the child, over connections of its own", function()
    prepare()
    local pid = support.fork(function()
      for i = 1, 3 do
        local status, _, body = support.finish(support.get { url = "http://lxd/child" })
        assert(status == 200 and body == "child " .. i)
      end
      assert(support.engine:connects() == 4)
    end)
    local c = support.server:accept()
    for i = 1, 3 do
      assert.matches("GET /child ", (c:request()))
      c:answer("child " .. i)
    end
    assert.equal(0, posix.waitpid(pid))
    check_parent()
  end)

  it("a child of the child is as free", function()
    prepare()
    local child = support.fork(function()
      support.poller:step({})
      local r = support.get { url = "http://lxd/child" }
      local pid = support.fork(function()
        assert(select(2, r:result()).kind == "forked")
        support.poller:step({})
        support.collect()
      end)
      assert(posix.waitpid(pid) == 0)
      assert(r:state() == "active")
    end)
    assert.equal(0, posix.waitpid(child))
    assert.matches("GET /child ", (support.server:accept():head()))
    check_parent()
  end)

  it("a child without a descriptor to spare disturbs nothing either", function()
    in_child(function()
      local _, open = posix.descriptors()
      local highest = #open
      posix.limit_files(highest + 1)
      support.poller:step({})
      assert(select(2, active:result()).kind == "forked")
      support.engine:close()
      support.poller:close()
    end)
  end)

  it("a child touches no file that has the number of a socket which libcurl has closed", function()
    support.open()
    support.give_up()
    local files = {}
    for i = 1, 8 do
      files[i] = assert(io.open(support.directory .. "/file" .. i, "w"))
      files[i]:setvbuf "no"
    end
    local child = support.fork(function()
      support.poller:step({})
      for _, f in ipairs(files) do
        assert(f:write "x")
      end
    end)
    assert.equal(0, posix.waitpid(child))
    for _, f in ipairs(files) do
      f:close()
    end
  end)

  it("an event of a socket that a child has kept open finds nobody", function()
    support.open()
    local fd, port = posix.listen_tcp(0)
    local engine = assert(core.engine(support.poller, { connections = 8, timeout = 60 }))
    local deaf = {}
    for i = 1, 4 do
      deaf[i] = engine:submit { method = "GET", url = ("http://127.0.0.1:%d/"):format(port), timeout = 0.2 }
    end
    local child = assert(posix.fork())
    if child == 0 then
      posix.sleep(3)
      posix.exit(0)
    end
    support.finish(deaf[4])
    support.get() -- takes the number
    posix.close(fd) -- the next SYN of what was given up is refused
    local till = core.now() + 1.5
    while core.now() < till do
      support.poller:step({}, 0.1)
    end
    assert.equal(0, posix.waitpid(child))
    assert.equal(1, (support.engine:count()))
  end)
end)
