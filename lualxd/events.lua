-- What happens on a server, as it happens: the WebSocket of `/1.0/events`, connected again whenever it is lost.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local websocket = require "lualxd.websocket"

local events = {}

-- Seconds between two attempts to connect again: the first follows at once, each pause is twice the one before.
local FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2

-- LXD (5.0.2, lxd/events.go) says that the connection is there a moment before it listens for it, and what happens in
-- between it tells nobody. The first thing that it does when it listens is to ping (AddListener, lxd/events/events.go);
-- one that doesn't ping, as old ones, listens after so many seconds.
local SETTLING = 1

local LONGEST_MESSAGE = 16 * 1024 * 1024 -- bytes; more is no event of any LXD

-- What a server that is coming back answers.
local PASSING = { connect = true, unavailable = true, timeout = true }

---Whether an error may pass by itself: the server is away, or restarts.
---@param err lualxd.error
---@return boolean
function events.passing(err)
  return PASSING[err.kind] == true
end

---@class lualxd.event
---@field type "operation"|"lifecycle"|"logging"|"gap" `gap`: events may have been lost before this one
---@field metadata table of an operation: its data; of lifecycle: `action`, `source`, `context`, `requestor`; of
---logging: `message`, `level`, `context`; of a gap: empty (doc/events.md of LXD)
---@field timestamp string? RFC 3339
---@field project string? where the server tells it
---@field location string? the cluster member

---@class lualxd.listener one who follows them
---@field scope lualxd.scope
---@field query table
---@field socket lualxd.websocket?
---@field woken lualxd.condition? set while it pauses between two attempts
---@field closed boolean
---@field lost function? is called when the connection is lost, before it is made again

---@class lualxd.events a stream of events
local methods = {}
local meta = { __name = "lualxd.events", __index = methods }

function meta:__tostring()
  local this = self._events
  return "lualxd.events: " .. this.scope.link.where .. (this.closed and " (closed)" or "")
end

-- What is done when the last who waits for this was killed. Made by a function that has returned by then: in nginx
-- one's own variables go with that.
local function abandoned(this)
  return function(condition)
    if not condition.set then
      events.stop(this)
    end
  end
end

local function connect(this)
  local socket, err = websocket.start(this.scope, "/1.0/events", { query = this.query, tried = "events" })
  if not socket then
    return nil, err
  end
  this.socket = socket
  socket.abandoned = this.abandoned
  local ready
  ready, err = socket:ready()
  if not ready then
    socket:close()
    return nil, err
  end
  socket:hear(core.now() + SETTLING)
  return true
end

-- Until it is there again; events were lost meanwhile, or may have been.
local function reconnect(this)
  local pause, give_up = 0, nil
  while not this.closed do
    local ok, err = connect(this)
    if ok then
      return true
    elseif this.closed then
      break
    end
    local now = core.now()
    give_up = give_up or now + this.scope.link.timeout
    if not events.passing(err) or now + pause > give_up then
      return nil, err
    end
    this.woken = loop.condition(this.scope.link)
    this.woken.abandoned = this.abandoned
    loop.await(this.woken, now + pause)
    pause = math.min(LONGEST_PAUSE, math.max(FIRST_PAUSE, pause * 2))
  end
end

-- The next whole message; nil: the connection has ended.
local function next_message(this)
  local pieces, size = {}, 0
  while true do
    local bytes, kind, final = this.socket:receive()
    if not bytes then
      return nil, kind
    end
    if final and size == 0 then
      return bytes
    end
    size = size + #bytes
    if size > LONGEST_MESSAGE then
      return nil, errors.new("protocol", { tried = "events", message = "an event of more than 16 MiB" })
    end
    pieces[#pieces + 1] = bytes
    if final then
      return table.concat(pieces)
    end
  end
end

local function read(text)
  local event = json.decode(text)
  if type(event) == "table" and type(event.type) == "string" and type(event.metadata) == "table" then
    return event
  end
  return nil, errors.new("protocol", { tried = "events", message = "not an event: " .. text:sub(1, 60) })
end

---The next event, which may be a gap.
---@param this lualxd.listener
---@return lualxd.event? event nil: it was stopped
---@return lualxd.error? err or can't go on
function events.next(this)
  if this.closed then
    return nil
  end
  local text, err = next_message(this)
  if this.closed then
    return nil
  elseif text then
    return read(text)
  elseif err and not events.passing(err) or not this.scope.link.engine then
    return nil, err
  end
  this.socket:close()
  if this.lost then
    this.lost()
  end
  local ok
  ok, err = reconnect(this)
  if this.closed then
    return nil
  elseif ok then
    return { type = "gap", metadata = {} }
  end
  return nil, err
end

---Ends it; idempotent. Whoever waits for the next event is told that there is none.
---@param this lualxd.listener
function events.stop(this)
  if not this.closed then
    this.closed = true
    this.socket:close()
    if this.woken then
      loop.fire(this.woken)
    end
  end
end

---Follows events; waits until the server listens for what happens.
---@param scope lualxd.scope
---@param query table
---@return lualxd.listener?
---@return lualxd.error? err
function events.start(scope, query)
  local this = { scope = scope, query = query, closed = false }
  this.abandoned = abandoned(this)
  local ok, err = connect(this)
  if not ok then
    return nil, err
  end
  return this
end

local OPTIONS = { types = "table", all_projects = "boolean" }

---Follows what happens on the server, from now on: all that happens after this has returned.
---@param client lualxd.client what happens in its project
---@param settings { types: string[]?, all_projects: boolean? }? `types`: `operation`, `lifecycle`, `logging`; all
---unless told
---@return lualxd.events? stream
---@return lualxd.error? err
function events.open(client, settings)
  settings = options.check(settings, OPTIONS, "client:events")
  local types = {}
  for index, name in ipairs(settings.types or {}) do
    types[index] = options.argument(name, "string", "client:events: types[" .. index .. "]")
  end
  if settings.types and #types == 0 then
    error("client:events: option 'types' is empty", 2)
  end
  local this, err = events.start(client._scope, {
    type = settings.types and table.concat(types, ",") or nil,
    ["all-projects"] = settings.all_projects or nil,
  })
  if not this then
    return nil, err
  end
  local stream = setmetatable({ _events = this }, meta)
  -- A stream that nobody has any more takes its connection along.
  stream._collected = loop.on_collect(function()
    events.stop(this)
  end)
  loop.on_leaving(this, events.stop)
  return stream
end

---The events, one after another, each as soon as it is there; waits in between. Where the connection was lost it
---connects again and gives one `{ type = "gap", metadata = {} }`: read anew what you know of the server. Raises an
---error where it can't go on: the server is gone for longer than `timeout`, doesn't trust us any more, talks
---nonsense. Ends after `close`, and in a worker of nginx that is to end.
---@return fun(): lualxd.event?
function methods:each()
  return function()
    if self._err then
      error(self._err, 0)
    end
    local event, err = events.next(self._events)
    if not event and err then
      self._err = err
      self:close()
      error(err, 0)
    end
    return event
  end
end

---Ends it; idempotent. Whoever waits for the next event is told that there is none.
function methods:close()
  events.stop(self._events)
end

meta.__close = methods.close

return events
