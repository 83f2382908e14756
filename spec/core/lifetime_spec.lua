-- From creation to collection, in any order: nothing dangles, nothing stays.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

-- How the collector runs during a test; gives back what undoes it.
local COLLECTORS = {
  ["at every step"] = function()
    collectgarbage("setpause", 0)
    collectgarbage("setstepmul", 10000)
  end,
  ["in generations"] = function()
    if not pcall(collectgarbage, "generational") then
      collectgarbage("setpause", 0)
    end
  end,
}

local function usual_collector()
  pcall(collectgarbage, "incremental")
  collectgarbage("setpause", 200)
  collectgarbage("setstepmul", 200)
end

describe("lifetimes:", function()
  before_each(support.begin)
  after_each(function()
    usual_collector()
    support.finally()
  end)

  it("every order of closing poller, engine and requests", function()
    local names = { "poller", "engine", "active", "queued", "done" }
    local orders = {}
    local function permute(order, left)
      if #left == 0 then
        orders[#orders + 1] = order
      end
      for i = 1, #left do
        local next_order, rest = { unpack and unpack(order) or table.unpack(order) }, {}
        next_order[#next_order + 1] = left[i]
        for j = 1, #left do
          if j ~= i then
            rest[#rest + 1] = left[j]
          end
        end
        permute(next_order, rest)
      end
    end
    permute({}, names)
    assert.equal(120, #orders)
    support.open()
    for _, order in ipairs(orders) do
      local things = { poller = core.poller() }
      support.poller = things.poller
      things.engine = support.new_engine { connections = 1 }
      support.engine = things.engine
      things.done = support.get()
      local c = support.server:accept()
      c:request()
      c:answer "x"
      support.finish(things.done)
      things.active = support.get { method = "PUT", body = true, stream = true }
      things.active:write "some"
      things.queued = support.get()
      for _, name in ipairs(order) do
        things[name]:close()
        collectgarbage "step"
      end
      c:close()
    end
    support.poller = nil
  end)

  it("every order of collecting them", function()
    support.open()
    for round = 1, 60 do
      local p = core.poller()
      local e = core.engine(p, { unix = support.path, connections = 2, timeout = 1 })
      local r = {}
      for i = 1, 4 do
        r[i] = e:submit { method = "PUT", url = "http://lxd/", body = "x", stream = i % 2 == 0 }
      end
      if round % 2 == 0 then p = nil end
      if round % 3 == 0 then e = nil end
      collectgarbage()
      for i = 1, 4 do
        assert.is_string(r[i]:state()) -- a request keeps its engine, and that its poller
      end
      r[round % 4 + 1] = nil
      collectgarbage()
      if round % 5 == 0 then
        r[1], r[2], r[3], r[4] = nil, nil, nil, nil
      end
      collectgarbage()
      if p then p:step({}) end
      assert.is_true(e == nil or e:count() <= 2)
      while support.server:pending() do end -- luacheck: ignore
    end
  end)

  it("a request that nobody holds is cancelled, and the next takes its place", function()
    local engine, server = support.open { connections = 1 }
    support.get { url = "http://lxd/dropped" }
    local r = support.get { url = "http://lxd/held" }
    local c = server:accept()
    c:head()
    support.collect()
    c:wait_end()
    c = server:accept()
    assert.matches("GET /held ", (c:request()))
    c:answer "x"
    assert.equal(200, (support.finish(r)))
    assert.equal(0, (engine:count()))
  end)

  it("an engine lives as long as one of its requests", function()
    local _, server = support.open()
    local r = support.get()
    support.engine = nil
    support.collect()
    local c = server:accept()
    c:request()
    c:answer "x"
    assert.equal(200, (support.finish(r)))
    support.collect()
  end)

  it("a finalizer may close anything while a method runs", function()
    local _, server, p = support.open()
    local proxy = rawget(_G, "newproxy")
    local function finalizer(f)
      if proxy then
        getmetatable(proxy(true)).__gc = f
      else
        setmetatable({}, { __gc = f })
      end
    end
    usual_collector()
    for round = 1, 40 do
      local r = support.get { stream = round % 2 == 0 }
      local c = server:accept()
      c:request()
      c:send(("HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n") .. ("x"):rep(80000))
      p:wait(0.01)
      p:step({})
      local closed = 0
      local function close()
        closed = closed + 1
        r:close()
        finalizer(close)
      end
      collectgarbage "stop"
      finalizer(close)
      c:send(("x"):rep(10000))
      p:wait(0.01)
      p:step({})
      collectgarbage "restart"
      collectgarbage("setpause", 0)
      -- Whatever it gives, it doesn't crash; later on the request is closed.
      for _ = 1, 200 do
        local ok = pcall(function()
          if round % 2 == 0 then r:read() else r:result() end
          r:head()
          p:step({ {}, {}, {} })
        end)
        if not ok and closed > 0 then
          break
        end
      end
      collectgarbage()
      collectgarbage()
      assert.is_true(closed > 0)
      assert.has_error(function() r:state() end)
      c:close()
      usual_collector()
    end
  end)

  for name, set in pairs(COLLECTORS) do
    it("a busy life with the collector " .. name, function()
      local engine, server, p = support.open { connections = 3 }
      set()
      local path = support.file("file", ("f"):rep(5000))
      local news = {}
      for round = 1, 60 do
        local requests = {}
        for i = 1, 5 do
          local kind = (round + i) % 5
          requests[i] = engine:submit {
            method = kind == 0 and "GET" or "POST", url = "http://lxd/" .. round,
            headers = { "X-Round: " .. round },
            body = kind == 1 and "bytes" or kind == 2 and { "a", { path = path } }
              or kind == 3 and true or nil,
            stream = i % 2 == 0, once = i % 2 == 1, hash = kind == 2,
          }
          if kind == 3 then
            requests[i]:write("some" .. round)
            requests[i]:finish()
          end
        end
        if round % 7 == 0 then
          requests[2]:cancel()
          requests[5]:close()
          requests[5] = nil
        end
        if round % 11 == 0 then
          requests[4] = nil
        end
        local left = 200
        while left > 0 do
          left = left - 1
          local fresh = server:pending()
          if fresh then fresh.buffer = "" end
          for _, c in ipairs(server.connections) do
            if c.fd then
              c:peek()
              if c.ended then
                c:close()
              elseif c.buffer:find("\r\n\r\n", 1, true) then
                c.buffer = ""
                posix.send(c.fd, "HTTP/1.1 200 OK\r\nX: " .. round
                  .. "\r\nContent-Length: 5\r\n\r\nhello")
              end
            end
          end
          p:wait(0.001)
          p:step(news)
          collectgarbage()
          local all = true
          for i = 1, 5 do
            local r = requests[i]
            if r then
              if i % 2 == 0 then
                assert.is_true(r:read() ~= false)
              end
              all = all and r:state() == "done"
            end
          end
          if all then break end
        end
        for i = 1, 5 do
          local r = requests[i]
          if r then
            local status, failure = r:result()
            assert.is_true(status == 200 or failure.kind == "cancelled" or failure.kind == "lost")
            r:head()
            r:progress()
            r:hash()
          end
        end
      end
    end)
  end

  it("ten thousand requests leave neither memory nor descriptors behind", function()
    local engine, server, p = support.open()
    local c
    local news = {}
    local body = ("b"):rep(300)
    local answer = "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2000\r\n\r\n" .. ("x"):rep(2000)
    local function one(i)
      local r = engine:submit { method = "POST", url = "http://lxd/" .. i, body = body, once = true,
        headers = { "X-Number: " .. i } }
      c = c or server:accept()
      posix.recv(c.fd)
      posix.send(c.fd, answer)
      repeat
        p:wait(1)
      until p:step(news) > 0
      assert(r:result() == 200)
      r:close()
    end
    for i = 1, 2000 do one(i) end
    support.collect()
    local memory, descriptors = support.memory(), posix.descriptors()
    for i = 1, 10000 do one(i) end
    support.collect()
    assert.equal(1, engine:connects())
    assert.equal(descriptors, (posix.descriptors()))
    local grown = support.memory() - memory
    assert.is_true(grown < 512 * 1024, "grew by " .. grown)
  end)

  it("failures leave nothing behind either", function()
    local _, server, p = support.open()
    local function round()
      local r = support.get { method = "POST", body = ("x"):rep(10000) }
      local c = server:accept()
      posix.send(c.fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
      c:close()
      support.failure(r)
      r = support.get { method = "PUT", body = { { path = "/nowhere" } } }
      r:close()
      r = support.get { stream = true }
      server:accept()
      r:close()
      p:step({})
      for i, connection in pairs(server.connections) do
        connection:close()
        server.connections[i] = nil
      end
    end
    for _ = 1, 500 do round() end
    support.collect()
    local memory, descriptors = support.memory(), posix.descriptors()
    for _ = 1, 1000 do round() end
    support.collect()
    assert.equal(descriptors, (posix.descriptors()))
    local grown = support.memory() - memory
    assert.is_true(grown < 1024 * 1024, "grew by " .. grown)
  end)

  it("a queue of a thousand costs little and goes in one go", function()
    local engine, _, p = support.open { connections = 2 }
    support.collect()
    local memory = support.memory()
    local requests = {}
    for i = 1, 1000 do
      requests[i] = support.get { url = "http://lxd/1.0/operations/" .. i .. "/wait" }
    end
    local grown = support.memory() - memory
    assert.is_true(grown < 4 * 1024 * 1024, "grew by " .. grown)
    engine:close()
    local news = {}
    assert.equal(1000, p:step(news))
    table.sort(news)
    assert.equal(requests[1]:id(), news[1])
    assert.equal(requests[1000]:id(), news[1000])
  end)
end)
