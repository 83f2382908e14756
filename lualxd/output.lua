-- The outputs of a command: when they end, and what takes them to their end.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local loop = require "lualxd.loop"

local output = {}

-- Seconds. LXD closes the control when the command has ended, and a stream when nobody in the instance holds it any
-- more. What the command left running may do so for ever. So when nothing came for QUIET the operation is looked at:
-- as long as it goes on (twice, lest a stall be taken for silence), something does hold the stream, and it is over for
-- us; so it is after LINGER seconds of waiting or MUCH bytes in all, for what is never silent.
local QUIET, LINGER, MUCH = 0.5, 2, 16 * 1024 * 1024

---@class lualxd.output
---@field socket lualxd.websocket
---@field sink function? of the script, which gets each piece
---@field pieces string[] otherwise
---@field size integer bytes in `pieces`
---@field ended boolean
---@field pumped boolean a task takes it to its end
---@field done lualxd.condition
---@field quiet number since the command itself has ended: seconds of waiting since something came,
---@field idle number and in all,
---@field late integer and bytes
---@field suspected boolean what the command left behind may hold it
---@field lost lualxd.error? it broke off

---@param this table the process
---@param socket lualxd.websocket
---@param sink function?
---@return lualxd.output
function output.new(this, socket, sink)
  return {
    socket = socket, sink = sink, pieces = {}, size = 0, ended = false, pumped = false,
    quiet = 0, idle = 0, late = 0, suspected = false, lost = nil, done = loop.condition(this.scope.link),
  }
end

-- An output broke off: what there is of it mustn't be taken for all.
local function lose(this, stream, kind, message)
  stream.ended = true
  message = "output was lost: " .. message
  stream.lost = errors.new(kind, { tried = this.tried, request = this.request, message = message })
  this.trouble = this.trouble or stream.lost
end

-- Whether the operation is known to go on.
local function goes_on(this)
  local rider = this.rider
  return not rider.over and not rider.gone and feed.look(this.scope.link, rider) ~= nil and not rider.over
end

-- The command has ended, and more came, or nothing: is there more to come?
local function look_after(this, stream)
  -- A terminal ends by itself, whatever was left behind; and its operation goes on as long as we are there.
  local goes, limit = not this.tty and goes_on(this), this.scope.link.timeout
  if stream.ended then -- while we looked
    return
  elseif goes and (stream.idle >= LINGER or stream.late >= MUCH or stream.suspected) then
    stream.ended, this.daemon = true, true
  elseif limit > 0 and stream.quiet >= limit then
    lose(this, stream, "timeout", string.format("the command has ended, but nothing came for %g s", stream.quiet))
  end
  -- Once the operation has ended, all output was sent.
  stream.suspected = goes and stream.quiet >= QUIET
  stream.idle, stream.late = 0, 0
end

local function await_more(this, stream)
  if not this.left then
    stream.socket:await()
    return
  end
  local before = core.now()
  stream.socket:await(before + QUIET)
  local waited = core.now() - before
  stream.quiet, stream.idle = stream.quiet + waited, stream.idle + waited
  if waited >= QUIET or stream.idle >= LINGER then
    look_after(this, stream)
  end
end

---The next piece of an output, once there is one.
---@param this table the process
---@param stream lualxd.output
---@return string? bytes nil: it has ended
---@return lualxd.error? err where that was no good end
function output.next(this, stream)
  local socket = stream.socket
  while not stream.ended do
    local bytes, kind = socket:take()
    if bytes and kind == "binary" then
      stream.quiet, stream.suspected = 0, false
      stream.late = this.left and stream.late + #bytes or 0
      if stream.late >= MUCH then
        look_after(this, stream)
      end
      if #bytes > 0 then
        return bytes
      end
    elseif bytes then
      stream.ended = true -- an empty text says so, shared/ws of LXD
    else
      local over, err = socket:ended()
      if over and socket.closed then
        stream.ended = true -- by us
      elseif over then
        lose(this, stream, err and err.kind or "connect", err and err.message or "its connection ended before it")
      else
        await_more(this, stream)
      end
    end
  end
  return nil, stream.lost
end

local function collect(this, stream, bytes)
  local room = this.limit and this.limit - stream.size or #bytes
  if room < #bytes then
    this.truncated = true
    bytes = bytes:sub(1, math.max(0, room))
  end
  stream.size = stream.size + #bytes
  if #bytes > 0 then
    table.insert(stream.pieces, bytes)
  end
end

---Takes an output to its end, in a task. Nobody has to hold a process whose function is told of output: `holder`, the
---handle, isn't collected before the end of that.
---@param this table the process
---@param stream lualxd.output
---@param holder any
---@param killed function? is called when what runs the function was killed
function output.pump(this, stream, holder, killed)
  if stream.pumped then
    return
  end
  stream.pumped = true
  local function run()
    local held = holder -- luacheck: ignore 211
    for bytes in function() return output.next(this, stream) end do
      if not stream.sink then
        collect(this, stream, bytes)
      elseif not this.problem then
        local ok, problem = pcall(stream.sink, bytes)
        if not ok then
          -- It is raised where the command is waited for; the command has nobody to talk to.
          this.problem = { problem }
          this.control:send('{"command":"signal","signal":9}', "text")
        end
      end
    end
    loop.fire(stream.done)
  end
  if stream.sink then
    loop.fork(run, killed, this.scope.link) -- the script's own functions may use the loop that the script is in
  else
    loop.start(run)
  end
end

return output
