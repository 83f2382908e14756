-- One WebSocket of the server: a request that goes on as messages both ways. Here everything waits; who has to read
-- and write at once does so in two tasks.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"
local http = require "lualxd.http"
local loop = require "lualxd.loop"

local websocket = {}

---@class lualxd.websocket
local methods = {}
local meta = { __name = "lualxd.websocket", __index = methods }

---Begins one; nothing waits yet.
---@param scope lualxd.scope
---@param path string
---@param settings { query: table?, tried: string? }
---@return lualxd.websocket? socket
---@return lualxd.error? err
function websocket.start(scope, path, settings)
  local exchange, err = http.start(scope, "GET", path, {
    query = settings.query, tried = settings.tried, upgrade = true,
  })
  if not exchange then
    return nil, err
  end
  return setmetatable({ exchange = exchange, request = exchange.request, news = exchange }, meta)
end

-- Finds out why it ended, once: nil where it ended as such things do. The request stays, with what came.
local function failure(this)
  local request = this.request
  local status, head, body = request:result()
  if status == 101 or this.closed then
    return nil
  end
  local exchange = this.exchange
  if not status then
    return exchange:explain(head)
  end
  local answer, err = http.read(exchange, status, head, body)
  return err or errors.new("protocol", {
    message = "the answer to a WebSocket's handshake is an ordinary one", code = answer.status,
  })
end

---Waits for news, or until a deadline. Several may: what was set stays so, the next wait is for another condition.
---@param deadline number? of core.now()'s clock
---@return boolean news
function methods:await(deadline)
  local news = self.news
  if news.set then
    news = loop.condition()
    self.news = news
    loop.watch(self.request:id(), news)
  end
  return loop.await(news, deadline)
end

---Has those who wait look again.
function methods:wake()
  loop.fire(self.news)
end

---Waits for the handshake.
---@return true?
---@return lualxd.error? err
function methods:ready()
  while not self.request:is_open() do
    if self.request:state() == "done" then
      local err = failure(self)
      if err then
        return nil, err
      end
      return true -- and over already; what came is there to be read
    end
    self:await()
  end
  return true
end

---What there is of the next message, without waiting.
---@return string? bytes nil: nothing, for now, or for good
---@return "text"|"binary"|nil kind
---@return boolean? final the message ends here
function methods:take()
  return self.request:receive()
end

---Whether nothing will come any more.
---@return boolean ended
---@return lualxd.error? err where that was no good end
function methods:ended()
  if self.request:state() ~= "done" then
    return false
  end
  return true, failure(self)
end

---The next piece of a message, once there is one.
---@return string? bytes nil: it has ended (with `err` where that was no good end)
---@return "text"|"binary"|lualxd.error|nil kind_or_err
---@return boolean? final the message ends here
function methods:receive()
  while true do
    local bytes, kind, final = self:take()
    if bytes then
      return bytes, kind, final
    end
    local ended, err = self:ended()
    if ended then
      return nil, err
    end
    self:await()
  end
end

---Sends a message, once there is room for it.
---@param bytes string
---@param kind "text"|"binary"
---@return boolean taken false: it has ended
function methods:send(bytes, kind)
  while true do
    local taken = self.request:send(bytes, kind)
    if taken ~= false then
      return taken == true
    end
    self:await()
  end
end

---Ends it; idempotent. Who waits is told that it is over.
function methods:close()
  if not self.closed then
    self.closed = true
    local id = self.request:id()
    self.request:cancel()
    loop.unwatch(id)
    self:wake()
  end
end

return websocket
