-- The ends of all operations of a server on one connection: its operation events, read by one task for whoever waits
-- on this client. A connection of its own pays as soon as two wait at once; it goes when nobody waits any more.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local events = require "lualxd.events"
local http = require "lualxd.http"
local loop = require "lualxd.loop"
local options = require "lualxd.options"

local feed = {}

-- Seconds without an operation to listen for, after which the connection goes: it keeps a client that nobody has.
feed.IDLE = 10

-- An operation may end before the answer that names it was read; so many ends are remembered.
local REMEMBERED = 512

-- So many requests at once look at what may have been missed.
local LOOKING = 4

-- Seconds after which one that is alone and that nobody asks for is listened for, too: 5 s after its end LXD has
-- forgotten it.
feed.ALONE = 3

-- Seconds after which an operation of which no event came is looked at: to be sure.
feed.LOOK = 60

---@class lualxd.feed
---@field since number? since when the connection tells of what happens; nil while there is none
---@field ends table<string, table> the last REMEMBERED operations that ended and that nobody had heard of
---@field ring string[] their ids
---@field at integer
---@field used number when there was news last for anyone
---@field stream lualxd.listener? once it is there
---@field ended lualxd.condition

---@class lualxd.rider : lualxd.condition an operation to listen for; fires at news, or when it must be asked for again
---@field id string
---@field tried string? in words, for errors
---@field from number what happened to it since then is known, or will be, as long as the connection lasts
---@field owner { heard: fun(self: table, data: table?) }? is told of news without waiting; nil: it must be asked for
---@field data table? what the server said last
---@field over table? what it said of the end
---@field gone lualxd.error? it wasn't there any more
---@field asked boolean? somebody asks for it, or will where no news come

---@param operation any
---@return boolean
function feed.ended(operation)
  return type(operation) == "table" and type(operation.status_code) == "number"
    and operation.status_code >= 200
end

local function remember(this, id, data)
  if this.ends[id] then
    return
  end
  this.at = this.at % REMEMBERED + 1
  local oldest = this.ring[this.at]
  if oldest then
    this.ends[oldest] = nil
  end
  this.ring[this.at], this.ends[id] = id, data
end

local function notify(rider, data)
  rider.data = data
  loop.fire(rider)
  if rider.owner then
    rider.owner:heard(data)
  end
end

local function tell(link, rider, data)
  if feed.ended(data) then
    -- The wire doesn't keep the order: what has ended stays so.
    rider.over = data
    feed.leave(link, rider)
  end
  rider.from = core.now()
  notify(rider, data)
end

local function deliver(link, this, data)
  local id = data.id
  if type(id) ~= "string" then
    return
  end
  local rider = link.riders[id]
  if rider then
    this.used = core.now()
    tell(link, rider, data)
  elseif feed.ended(data) then
    remember(this, id, data)
  end
end

---The path of an operation.
---@param id string
---@return string
function feed.path(id)
  return "/1.0/operations/" .. options.escape(id)
end

---Asks the server for an operation of which something may have been missed.
---@param link lualxd.link
---@param rider lualxd.rider
---@return lualxd.answer? answer
---@return lualxd.error? err
function feed.look(link, rider)
  local before = rider.from
  rider.from = core.now()
  -- LXD forgets an end after 5 s, so this doesn't stand in line behind all that a script has begun.
  local answer, err = http.ask({ link = link }, "GET", feed.path(rider.id), { tried = rider.tried, urgent = true })
  if answer and type(answer.data) == "table" then
    tell(link, rider, answer.data)
  elseif err and err.kind == "not_found" then
    rider.gone = err
    feed.leave(link, rider)
    notify(rider)
  else
    rider.from = before
    notify(rider)
  end
  return answer, err
end

-- Looks at the operations of which nothing is known since then.
local function catch_up(link, time)
  local since, missed = feed.since(link), {}
  for _, rider in pairs(link.riders) do
    if rider.from < time then
      missed[#missed + 1] = rider
    end
  end
  for _ = 1, math.min(LOOKING, #missed) do
    loop.start(function()
      while #missed > 0 do
        local rider = table.remove(missed)
        if rider.from < time and feed.since(link) == since then
          feed.look(link, rider)
        end
      end
    end)
  end
end

local function up(link, this)
  this.since = core.now()
  link.waits:disperse() -- who stands in line for a connection needs none now
  catch_up(link, this.since) -- what was said before was said to others
end

-- Whoever listens must find out otherwise.
local function down(link, this)
  this.since = nil
  this.ends, this.ring, this.at = {}, {}, 0
  for _, rider in pairs(link.riders) do
    notify(rider)
  end
end

local function read(link, this)
  local stream, err = events.start({ link = link }, { type = "operation", ["all-projects"] = true })
  if not stream then
    -- Who may not listen won't be asked again.
    link.feedless = not events.passing(err)
    return
  end
  stream.lost = function()
    down(link, this)
  end
  this.stream = stream
  up(link, this)
  while true do
    local event = events.next(stream)
    if not event then
      break
    elseif event.type == "gap" then
      up(link, this)
    elseif event.type == "operation" then
      deliver(link, this, event.metadata)
    end
  end
  events.stop(stream)
end

-- Sees to what no event tells. True: nothing is listened for any more.
local function look_round(link, this)
  local now = core.now()
  if next(link.riders) == nil and now - this.used >= feed.IDLE then
    return true
  elseif this.since then
    catch_up(link, now - feed.LOOK)
  end
end

-- Has the events of operations listened to.
local function want(link)
  if link.feed or link.feedless or not link.engine then
    return
  elseif link.has "projects" and not link.has "event_project" then
    -- Whether such a server tells the events of all projects isn't known; an event that doesn't come costs a minute.
    link.feedless = true
    return
  end
  local this = { since = nil, ends = {}, ring = {}, at = 0, used = core.now(), ended = loop.condition(link),
    stream = nil }
  link.feed = this
  loop.start(function()
    read(link, this)
    link.feed = nil
    down(link, this)
    loop.fire(this.ended)
  end)
  loop.start(function()
    while not loop.await(this.ended, core.now() + math.min(feed.IDLE, feed.LOOK / 2)) do
      if look_round(link, this) and this.stream then
        events.stop(this.stream)
      end
    end
  end)
end

---Since when events come on the connection that is there now.
---@param link lualxd.link
---@return number? since by core.now's clock; nil: none come
function feed.since(link)
  return link.feed and link.feed.since
end

local function several(set)
  local one = next(set)
  return one ~= nil and next(set, one) ~= nil
end

local WEAK = { __mode = "v" }

---Has an operation listened to in time that nobody asks for.
---@param link lualxd.link
---@param id string
function feed.attend(link, id)
  local held = setmetatable({ link = link }, WEAK) -- a client that nobody has any more goes at once
  loop.start(function()
    loop.sleep(feed.ALONE)
    local rider = held.link and held.link.riders[id]
    if rider and not rider.asked then
      want(held.link)
    end
  end)
end

---Listens for an operation that has been begun, whether somebody waits or not: LXD forgets its end after 5 s.
---@param link lualxd.link
---@param id string
---@param sent number when the request was sent that began it, by core.now's clock
---@param tried string? in words, for errors
---@return lualxd.rider
function feed.expect(link, id, sent, tried)
  local rider = link.riders[id]
  if rider then
    return rider
  end
  rider = loop.condition(link)
  rider.id, rider.tried, rider.from = id, tried, sent
  rider.over = link.feed and link.feed.ends[id]
  if not rider.over then
    link.riders[id] = rider
    local since = feed.since(link)
    if since and sent < since then
      loop.start(function()
        feed.look(link, rider)
      end)
    elseif several(link.riders) then
      want(link)
    else
      feed.attend(link, id)
    end
  end
  return rider
end

---Whether news of an operation will come without anybody asking.
---@param link lualxd.link
---@param rider lualxd.rider
---@return boolean
function feed.hears(link, rider)
  local since = feed.since(link)
  return since ~= nil and rider.from >= since and not rider.over and not rider.gone
end

---Nothing more is to be heard of an operation.
---@param link lualxd.link
---@param rider lualxd.rider
function feed.leave(link, rider)
  link.riders[rider.id] = nil
end

return feed
