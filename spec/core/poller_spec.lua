-- The poller: one descriptor that is readable when there is something to do.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

describe("poller", function()
  before_each(support.begin)
  after_each(support.finally)

  it("has a descriptor that closes on exec", function()
    local p = core.poller()
    assert.is_true(posix.cloexec(p:pollfd()))
    p:close()
  end)

  it("waits for as long as it is told", function()
    local p = core.poller()
    local t = core.now()
    assert.is_false(p:wait(0.03))
    assert.is_true(core.now() - t >= 0.029)
    -- These don't wait at all; for ever, where they did.
    assert.is_false(p:wait(0))
    assert.is_false(p:wait(-1))
    assert.is_false(p:wait(0 / 0))
    p:close()
  end)

  it("stops waiting at a signal", function()
    local p = core.poller()
    local t = core.now()
    local child = posix.interrupt_after(0.03)
    assert.is_false(p:wait(50))
    assert.is_true(core.now() - t < 25)
    posix.waitpid(child)
    p:close()
  end)

  it("is readable when something came, and not before", function()
    local _, server, p = support.open()
    local r = support.get()
    local c = server:accept()
    c:request()
    p:step({})
    assert.is_false(p:wait(0))
    posix.send(c.fd, "HTTP/1.1 204 No Content\r\n\r\n")
    assert.is_true(p:wait(1))
    local news = {}
    assert.equal(1, p:step(news))
    assert.equal(r:id(), news[1])
    assert.is_true(support.at_rest())
    assert.equal(0, p:step(news))
    assert.equal(204, (r:result()))
  end)

  it("is readable for news that a call made, until they are taken", function()
    local _, _, p = support.open()
    local r = support.get()
    p:step({})
    r:cancel()
    assert.is_true(p:wait(1))
    assert.is_true(p:wait(1))
    local news = {}
    assert.equal(1, p:step(news))
    assert.equal(r:id(), news[1])
    assert.is_true(support.at_rest())
  end)

  it("names each request once, however much happened", function()
    local _, server, p = support.open()
    local r = support.get { stream = true }
    local c = server:accept()
    c:request()
    c:send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    c:send("def")
    posix.sleep(0.01)
    local seen = 0
    support.until_(function()
      local news = {}
      for i = 1, p:step(news) do
        assert.equal(r:id(), news[i])
        seen = seen + 1
      end
      return r:state() == "done"
    end)
    assert.is_true(seen <= 2)
  end)

  it("wakes for a time-out", function()
    local _, server, p = support.open { timeout = 0.03 }
    local r = support.get()
    server:accept():request()
    p:step({})
    local t = core.now()
    local news = {}
    repeat
      p:wait(50)
    until p:step(news) > 0
    assert.is_true(core.now() - t < 25)
    assert.equal("done", r:state())
  end)

  it("gives ids that no other poller of this state gives", function()
    support.open()
    local first = support.get():id()
    local other = core.poller()
    local engine = core.engine(other, { unix = support.path, connections = 1, timeout = 1 })
    local r = engine:submit { method = "GET", url = "http://lxd/" }
    assert.are_not.equal(first, r:id())
    assert.are_not.equal(first, support.get():id())
    other:close()
  end)

  it("gives nil and words when no descriptor is left", function()
    local limit = posix.limit_files(3 + 0)
    local p, message = core.poller()
    posix.limit_files(limit)
    assert.is_nil(p)
    assert.matches("files", message)
  end)

  it("closes twice, and ends what was under way", function()
    local engine, server, p = support.open()
    local r, queued = support.get(), nil
    server:accept()
    for _ = 1, 5 do
      queued = support.get()
    end
    assert.equal("queued", queued:state())
    p:close()
    p:close()
    for _, request in ipairs { r, queued } do
      local status, failure = request:result()
      assert.is_nil(status)
      assert.equal("cancelled", failure.kind)
    end
    assert.has_error(function() p:step({}) end, "attempt to use a closed poller")
    assert.has_error(function() p:pollfd() end, "attempt to use a closed poller")
    assert.has_error(function() engine:count() end, "attempt to use a closed engine")
    assert.has_error(function() engine:submit { method = "GET", url = "http://lxd/" } end,
      "attempt to use a closed engine")
    engine:close()
    assert.matches("closed", tostring(p))
    assert.matches("closed", tostring(engine))
  end)

  it("refuses other arguments", function()
    local p = core.poller()
    assert.has_error(function() p.step({}, {}) end)
    assert.has_error(function() p:step() end)
    assert.has_error(function() core.engine({}, {}) end)
    for _, options in ipairs { {}, { connections = 0, timeout = 1 }, { connections = 1 },
      { connections = 1, timeout = -1 }, { connections = 1, timeout = 0 / 0 },
      { connections = 2000, timeout = 1 }, { unix = "a\0b", connections = 1, timeout = 1 },
      { unix = true, connections = 1, timeout = 1 }, { unix = "", connections = 1, timeout = 1 } } do
      assert.has_error(function() core.engine(p, options) end)
    end
    p:close()
  end)
end)
