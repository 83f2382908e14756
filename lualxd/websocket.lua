-- One WebSocket of the server: a request that goes on as messages both ways. Here everything waits; who has to read
-- and write at once does so in two tasks.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local options = require "lualxd.options"

local websocket = {}

---@class lualxd.websocket
---@field abandoned fun(condition: lualxd.condition)? called when the last who waited here is known to be killed
local methods = {}
local meta = { __name = "lualxd.websocket", __index = methods }

---Begins one; nothing waits yet.
---@param scope lualxd.scope
---@param path string
---@param settings { query: table?, tried: string?, silence: number? } as the core has them
---@return lualxd.websocket? socket
---@return lualxd.error? err
function websocket.start(scope, path, settings)
  local exchange, err = http.start(scope, "GET", path, {
    query = settings.query, tried = settings.tried, upgrade = true, silence = settings.silence,
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
  local answer, err = answers.read(exchange, status, head, body)
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
    news = loop.condition(self.exchange.link)
    news.abandoned = self.abandoned
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
      self.exchange:trace((self.request:result()))
      if err then
        return nil, err
      end
      return true -- and over already; what came is there to be read
    end
    self:await()
  end
  self.exchange:trace(101)
  return true
end

---Waits until the server has said anything at all on it, be it a ping, or until a deadline.
---@param deadline number of core.now()'s clock
function methods:hear(deadline)
  local request = self.request
  while not request:heard() and request:state() ~= "done" and self:await(deadline) do end -- luacheck: ignore 542
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
  while not self.parted do
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

---Ends it as RFC 6455 has it: says so, and waits until the peer has said so, too, or until a deadline. What comes
---meanwhile nobody gets.
---@param deadline number of core.now()'s clock
function methods:part(deadline)
  self.parted = true
  self:wake() -- who receives or sends
  local said = false
  repeat
    said = said or self.request:send("", "close") ~= false
    while self:take() do end -- luacheck: ignore 542
  until self:ended() or not self:await(deadline)
  self:close()
end

---Sends a message, once there is room for it.
---@param bytes string
---@param kind "text"|"binary"
---@return boolean taken false: it has ended
function methods:send(bytes, kind)
  while not self.parted do
    local taken = self.request:send(bytes, kind)
    if taken ~= false then
      return taken == true
    end
    self:await()
  end
  return false
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

-- Asks for an operation that talks by WebSockets.
local function begin(this, path, body)
  local answer, err = http.ask(this.scope, "POST", path, { json = body, tried = this.tried, needs = this.needs })
  if not answer then
    return nil, err
  elseif not answer.async then
    return nil, errors.new("protocol", { tried = this.tried, request = "POST " .. path,
      message = "the answer is no operation" })
  end
  this.first, this.request = answer.data, answer.request
  return answer
end

-- Starts the WebSockets of these names and waits until all are there.
local function connect(this, sockets, names)
  local fds = type(this.first.metadata) == "table" and this.first.metadata.fds
  local path = "/1.0/operations/" .. options.escape(this.first.id) .. "/websocket"
  for _, name in ipairs(names) do
    local secret = type(fds) == "table" and fds[name]
    if type(secret) ~= "string" then
      return errors.new("protocol", {
        tried = this.tried, request = this.request, message = "no WebSocket " .. name .. " in the answer",
      })
    end
    local err
    sockets[name], err = websocket.start({ link = this.scope.link }, path, {
      query = { secret = secret }, tried = this.tried, silence = this.silence and this.silence[name],
    })
    if err then
      return err
    end
  end
  for _, name in ipairs(names) do
    local ready, err = sockets[name]:ready()
    if not ready then
      return err
    end
  end
end

local function close_all(sockets)
  for _, socket in pairs(sockets) do
    socket:close()
  end
end

local function open(this, path, body, stages, begun)
  local answer, err = begin(this, path, body)
  if not answer then
    return nil, err
  elseif begun then
    begun(this, answer)
  end
  local sockets = {}
  for _, names in ipairs(stages) do
    err = connect(this, sockets, names)
    if err then
      close_all(sockets)
      return nil, err
    end
  end
  return sockets
end

-- In a task: who waits may be killed, and would keep its turn. Made by a function that has returned by then: in nginx
-- one's own variables go with it.
local function start_opening(this, path, body, stages, begun)
  local link = this.scope.link
  local opening = { over = loop.condition(link), killed = false, ok = nil, sockets = nil, err = nil }
  local function give_up()
    opening.killed = true
    if opening.ok and opening.sockets then
      close_all(opening.sockets)
    end
  end
  opening.over.abandoned = give_up -- maybe when it is over, but who waited hasn't heard of it
  loop.start(function()
    link.openings:take()
    if not opening.killed then
      opening.ok, opening.sockets, opening.err = pcall(open, this, path, body, stages, begun)
    end
    link.openings:give()
    if opening.killed then
      give_up()
    end
    loop.fire(opening.over)
  end)
  return opening
end

---Has an operation made that talks by WebSockets, and connects them: all or none.
---@param this { scope: lualxd.scope, tried: string, silence: table<string, number>? } gets `first`, the operation, and
---`request`; `silence`, by name, of those that nothing will be sent over
---@param path string
---@param body string JSON
---@param stages string[][] their names; those of a stage are there before the next one's are asked for
---@param begun fun(this: table, answer: lualxd.answer)? is called when the operation is there
---@return table<string, lualxd.websocket>? sockets by name
---@return lualxd.error? err
function websocket.open(this, path, body, stages, begun)
  loop.admit(this.scope.link)
  local opening = start_opening(this, path, body, stages, begun)
  loop.await(opening.over)
  if not opening.ok then
    error(opening.sockets, 0)
  end
  return opening.sockets, opening.err
end

return websocket
