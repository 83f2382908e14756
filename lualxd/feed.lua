-- The ends of all operations of a server on one connection: its operation events, read by one task for whoever waits
-- on this client. A connection of its own pays as soon as two wait at once; it goes when nobody waits any more.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local events = require "lualxd.events"
local loop = require "lualxd.loop"

local feed = {}

local IDLE = 10 -- seconds without anybody who waits, after which the connection goes

-- An operation may end before the answer that names it was read; so many ends are remembered.
local REMEMBERED = 512

---@class lualxd.feed
---@field epoch integer? which connection it is; nil while there is none
---@field riders table<string, lualxd.rider> by the operation's id
---@field ends table<string, table> the last REMEMBERED operations that ended
---@field ring string[] their ids
---@field at integer
---@field used number when somebody waited last

---@class lualxd.rider : lualxd.condition fires at the next news of the operation, or when there will be none
---@field data table? what the server said; nil: the connection is lost

---@param operation any
---@return boolean
function feed.ended(operation)
  return type(operation) == "table" and type(operation.status_code) == "number"
    and operation.status_code >= 200
end

local epochs = 0

local function up(link, this)
  epochs = epochs + 1
  this.epoch = epochs
  -- Those who stand in line for a connection need none now.
  local line = link.line
  link.line = {}
  for _, place in ipairs(line) do
    loop.fire(place)
  end
end

-- Whoever rides must find out otherwise.
local function down(this)
  this.epoch = nil
  local riders = this.riders
  this.riders, this.ends, this.ring, this.at = {}, {}, {}, 0
  for _, rider in pairs(riders) do
    loop.fire(rider)
  end
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

local function deliver(this, data)
  local id = data.id
  if type(id) ~= "string" then
    return
  elseif feed.ended(data) then
    remember(this, id, data)
  end
  local rider = this.riders[id]
  if rider then
    this.riders[id] = nil
    this.used = core.now()
    rider.data = this.ends[id] or data -- the wire doesn't keep the order: what has ended stays so
    loop.fire(rider)
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
    down(this)
  end
  up(link, this)
  while true do
    local event = events.next(stream)
    if not event then
      break
    elseif event.type == "gap" then
      up(link, this)
    elseif event.type == "operation" then
      deliver(this, event.metadata)
    end
    if next(this.riders) == nil and core.now() - this.used > IDLE then
      break
    end
  end
  events.stop(stream)
end

---Has the events of operations listened to.
---@param link lualxd.link
function feed.want(link)
  if link.feed or link.feedless or not link.engine then
    return
  elseif link.has "projects" and not link.has "event_project" then
    -- Whether such a server tells the events of all projects isn't known; an event that doesn't come costs a minute.
    link.feedless = true
    return
  end
  local this = { epoch = nil, riders = {}, ends = {}, ring = {}, at = 0, used = core.now() }
  link.feed = this
  loop.start(function()
    read(link, this)
    link.feed = nil
    down(this)
  end)
end

---Which connection events come on now. Nothing of an operation is missed that was begun under the same.
---@param link lualxd.link
---@return integer? epoch nil: on none
function feed.epoch(link)
  return link.feed and link.feed.epoch
end

---Waits for the next news of an operation along with all others.
---@param link lualxd.link
---@param id string
---@return lualxd.rider? rider nil: nothing is listened to
function feed.ride(link, id)
  local this = link.feed
  if not this or not this.epoch then
    return nil
  elseif this.ends[id] then
    return { set = true, data = this.ends[id] }
  end
  local rider = this.riders[id]
  if not rider then
    rider = loop.condition()
    this.riders[id] = rider
  end
  this.used = core.now()
  return rider
end

---Nobody waits for this operation any more.
---@param link lualxd.link
---@param id string
function feed.leave(link, id)
  if link.feed then
    link.feed.riders[id] = nil
  end
end

return feed
