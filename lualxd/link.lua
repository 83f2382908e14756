-- The connections to one server: opening them, and the handshake that tells what is at the other end.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local turns = require "lualxd.turns"
local which = require "lualxd.loop.which"

local link = {}

local TIMEOUT, CONNECTIONS = 30, 8 -- unless told

local function pollable()
  return {
    pollfd = function()
      return loop.pollfd()
    end,
    events = function()
      return "r"
    end,
    timeout = function()
      return loop.next_timeout()
    end,
    step = function()
      loop.turn()
    end,
  }
end

-- Why the server may not trust us, where we can tell.
local function advice(place)
  local ours = place.identity
  if place.unix then
    return nil
  elseif not ours then
    return "no client certificate was given: make one by lxd.identity, give it as cert and key, and join"
      .. " with a token (lxc config trust add) or a password"
  elseif ours.not_after and ours.not_after < os.time() then
    return "the client certificate expired on " .. os.date("!%Y-%m-%d", ours.not_after)
      .. ": make a new one by lxd.identity and join with it"
  end
  return "the server doesn't trust the client certificate " .. ours.fingerprint:sub(1, 12)
    .. ": join with a token (lxc config trust add) or a password"
end

---`GET /1.0`, whose answer must be LXD's.
---@param self lualxd.link
---@return true?
---@return lualxd.error? err
function link.shake_hands(self)
  local answer, err = http.ask({ link = self }, "GET", "/1.0", { tried = "connect" })
  if not answer then
    return nil, err
  end
  local server = answer.data
  if type(server) ~= "table" or type(server.api_version) ~= "string" then
    return nil, errors.new("protocol", {
      tried = "connect",
      message = "what answers at " .. self.where .. " is not LXD",
    })
  end
  self.server = server
  self.trusted = server.auth == "trusted"
  self.extensions = {}
  local extensions = type(server.api_extensions) == "table" and server.api_extensions or {}
  for _, name in ipairs(extensions) do
    self.extensions[name] = true
  end
  return true
end

---Opens connections to a server, which connect when they are first used.
---@param place lualxd.place
---@param settings { connections: integer?, timeout: number?, trace: function?, loop: string|table? }
---@return lualxd.link?
---@return lualxd.error? err
function link.open(place, settings)
  local self = {
    base = place.base,
    where = place.where,
    identity = place.identity,
    advice = advice(place),
    timeout = settings.timeout or TIMEOUT,
    connections = settings.connections or CONNECTIONS,
    trace = settings.trace,
    server = nil,
    trusted = nil,
    extensions = {},
    riders = setmetatable({}, { __mode = "v" }), -- operations that aren't known to have ended, by id
    feed = nil, -- the events of operations, while listened to
    orderly = setmetatable({}, { __mode = "k" }), -- what must end before the connections do -> how it is ended
    parting = {}, -- path -> condition of the console of it that is being let go
    feedless = nil, -- the server refused them
    bare_etags = nil, -- the server writes them without quotes
    editing = {}, -- object -> condition of the edit that is under way
    pollable = pollable(),
    loop = settings.loop and which.tell(settings.loop, "lxd.connect"),
  }
  -- A `/wait` holds a connection; one is left free for everything else.
  self.waits = turns.new(self, math.max(1, self.connections - 1))
  -- LXD gives up a command whose WebSockets aren't all connected within 5 s (lxd/instance_exec.go). So no more are
  -- opened at a time than there may be requests.
  self.openings = turns.new(self, self.connections)
  self.has = function(extension)
    return self.extensions[extension] == true
  end
  local engine, message = core.engine(loop.poller(), {
    unix = place.unix,
    tls = place.tls,
    connections = self.connections,
    timeout = self.timeout,
  })
  if not engine then
    return nil, errors.new("invalid", { tried = "connect", message = message })
  end
  self.engine = engine
  if self.loop then
    which.remember(self)
  end
  return self
end

---Closes what is open, without sending anything more.
---@param self lualxd.link
function link.close(self)
  local engine = self.engine
  if engine then
    self.engine = nil
    engine:close()
  end
end

return link
