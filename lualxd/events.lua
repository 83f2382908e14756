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

local LONGEST_MESSAGE = 16 * 1024 * 1024 -- bytes; more is no event of any LXD

-- What a server that is coming back answers.
local PASSING = { connect = true, unavailable = true, timeout = true }

---@class lualxd.event
---@field type "operation"|"lifecycle"|"logging"|"gap" `gap`: events may have been lost before this one
---@field metadata table of an operation: its data; of lifecycle: `action`, `source`, `context`, `requestor`; of
---logging: `message`, `level`, `context`; of a gap: empty (doc/events.md of LXD)
---@field timestamp string? RFC 3339
---@field project string? where the server tells it
---@field location string? the cluster member

---@class lualxd.events a stream of events
local methods = {}
local meta = { __name = "lualxd.events", __index = methods }

function meta:__tostring()
  local this = self._events
  return "lualxd.events: " .. this.scope.link.where .. (this.closed and " (closed)" or "")
end

local function connect(this)
  local socket, err = websocket.start(this.scope, "/1.0/events", { query = this.query, tried = "events" })
  if not socket then
    return nil, err
  end
  this.socket = socket
  local ready
  ready, err = socket:ready()
  if not ready then
    socket:close()
    return nil, err
  end
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
    if not PASSING[err.kind] or now + pause > give_up then
      return nil, err
    end
    this.woken = loop.condition()
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

-- The next event; nil: the stream is closed.
local function next_event(this)
  if this.closed then
    return nil, this.err
  end
  local text, err = next_message(this)
  if this.closed then
    return nil
  elseif text then
    return read(text)
  elseif err and not PASSING[err.kind] or not this.scope.link.engine then
    return nil, err
  end
  local ok
  ok, err = reconnect(this)
  if ok then
    return { type = "gap", metadata = {} }
  end
  return nil, err
end

local function close(this)
  if not this.closed then
    this.closed = true
    this.socket:close()
    if this.woken then
      loop.fire(this.woken)
    end
  end
end

local OPTIONS = { types = "table", all_projects = "boolean" }

---Follows what happens on the server, from now on; waits until it is connected.
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
  local this = {
    scope = client._scope,
    query = {
      type = settings.types and table.concat(types, ",") or nil,
      ["all-projects"] = settings.all_projects or nil,
    },
    socket = nil,
    woken = nil, -- set while it pauses between two attempts
    closed = false,
    err = nil, -- why it can't go on
  }
  local ok, err = connect(this)
  if not ok then
    return nil, err
  end
  local stream = setmetatable({ _events = this }, meta)
  -- A stream that nobody has any more takes its connection along.
  stream._collected = loop.on_collect(function()
    close(this)
  end)
  return stream
end

---The events, one after another, each as soon as it is there; waits in between. Where the connection was lost it
---connects again and gives one `{ type = "gap", metadata = {} }`: read anew what you know of the server. Raises an
---error where it can't go on: the server is gone for longer than `timeout`, doesn't trust us any more, talks
---nonsense. Ends after `close`.
---@return fun(): lualxd.event?
function methods:each()
  return function()
    local this = self._events -- holds the stream, too
    local event, err = next_event(this)
    if not event and err then
      this.err = err
      close(this)
      error(err, 0)
    end
    return event
  end
end

---Ends it; idempotent. Whoever waits for the next event is told that there is none.
function methods:close()
  close(self._events)
end

meta.__close = methods.close

return events
