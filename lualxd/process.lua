-- A command in an instance: LXD gives its input, its outputs and its control as WebSockets of one operation.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local follow = require "lualxd.follow"
local http = require "lualxd.http"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"
local websocket = require "lualxd.websocket"

local process = {}

---@class lualxd.process a command that runs
local methods = {}
local meta = { __name = "lualxd.process", __index = methods }

local OPTIONS = {
  stdin = "string|callable", stdout = "callable", stderr = "callable", env = "table", cwd = "string",
  user = "integer", group = "integer", timeout = "seconds", max_output = "integer", tty = "table",
}
local TTY = { width = "integer", height = "integer" }

-- Seconds. LXD closes the control when the command has ended, and a stream when nobody in the instance holds it any
-- more. What the command left running may do so for ever: an output that has been quiet for QUIET is over then.
local QUIET = 0.5
-- From TERM to KILL, and from KILL until we no longer believe that it ends.
local TO_KILL, TO_GIVE_UP = 2, 5

local PIECE = 64 * 1024 -- bytes of input in one message

local SIGNALS = { HUP = 1, INT = 2, QUIT = 3, KILL = 9, USR1 = 10, USR2 = 12, TERM = 15, CONT = 18, STOP = 19,
  TSTP = 20, WINCH = 28 }

function meta:__tostring()
  return "lualxd.process: " .. self._process.tried
end

----------------------------------------------------------------------------------------------------
-- Output

-- The next piece of an output; nil: it has ended.
local function next_piece(this, stream)
  local socket = stream.socket
  while not stream.ended do
    local bytes, kind = socket:take()
    if bytes and kind == "binary" then
      if #bytes > 0 then
        return bytes
      end
    elseif bytes then
      stream.ended = true -- an empty text says so, shared/ws of LXD
    else
      local over, err = socket:ended()
      if over then
        stream.ended, this.trouble = true, this.trouble or err
      elseif not socket:await(this.left and core.now() + QUIET or nil) and this.left then
        stream.ended, this.daemon = true, true
      end
    end
  end
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

-- Takes an output to its end, in a task.
local function pump(this, stream)
  if stream.pumped then
    return
  end
  stream.pumped = true
  this.pumps = this.pumps + 1
  loop.start(function()
    for bytes in function() return next_piece(this, stream) end do
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
    this.pumps = this.pumps - 1
    loop.fire(stream.done)
  end)
end

----------------------------------------------------------------------------------------------------
-- Input

local function feed(this, source)
  local input = this.input
  if type(source) == "string" then
    for at = 1, #source, PIECE do
      if not input:send(source:sub(at, at + PIECE - 1), "binary") then
        return
      end
    end
  else
    for bytes in source do
      if type(bytes) ~= "string" then
        error("exec: stdin must return a string or nil, got " .. type(bytes), 0)
      elseif #bytes > 0 and not input:send(bytes, "binary") then
        return
      end
    end
  end
  input:send("", "text")
end

local function start_feeding(this, source)
  loop.start(function()
    local ok, problem = pcall(feed, this, source)
    if not ok then
      this.problem = this.problem or { problem }
      this.control:send('{"command":"signal","signal":9}', "text")
    end
  end)
end

----------------------------------------------------------------------------------------------------
-- Beginning

local function request_body(command, settings)
  return json.encode(json.as_strings { environment = settings.env or {} }):sub(1, -2) .. ","
    .. json.encode({
      command = command,
      cwd = settings.cwd,
      user = settings.user,
      group = settings.group,
      interactive = settings.tty ~= nil,
      width = settings.tty and settings.tty.width,
      height = settings.tty and settings.tty.height,
      ["wait-for-websocket"] = true,
    }):sub(2)
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
      query = { secret = secret }, tried = this.tried,
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

-- The control comes first. LXD starts the command when the others are there (it waits 5 s for them,
-- lxd/instance_exec.go), and a short one would be over before; and it is what kills a command whose script has died.
local function open_sockets(this)
  local sockets = {}
  local err = connect(this, sockets, { "control" })
    or connect(this, sockets, this.tty and { "0" } or { "0", "1", "2" })
  if err then
    for _, socket in pairs(sockets) do
      socket:close()
    end
    return nil, err
  end
  return sockets
end

local function new_stream(socket, sink)
  return { socket = socket, sink = sink, pieces = {}, size = 0, ended = false, pumped = false, done = loop.condition() }
end

---Starts a command.
---@param node lualxd.node the instance
---@param argv string[]
---@param settings table?
---@param who "exec"|"spawn"
---@return lualxd.process?
---@return lualxd.error? err
function process.start(node, argv, settings, who)
  options.argument(argv, "table", who .. ": argv", 3)
  if #argv == 0 then
    error(who .. ": argv is empty", 3)
  end
  local command = json.array {} -- the script's table stays as it is (`arg` has more in it)
  for index, word in ipairs(argv) do
    command[index] = options.argument(word, "string", who .. ": argv[" .. index .. "]", 3)
  end
  settings = options.check(settings, OPTIONS, who, 3)
  if settings.tty then
    options.check(settings.tty, TTY, who .. ": tty", 3)
  end
  local scope = node.scope
  local this = {
    tried = "exec " .. argv[1] .. " in " .. node.kind.one .. " " .. node.name,
    scope = scope,
    tty = settings.tty,
    limit = settings.max_output,
    started = core.now(),
    timeout = settings.timeout,
    streams = {},
    pumps = 0,
    left = false, -- the command itself has ended
    daemon = false, -- and something of it holds an output still
    timed_out = false,
    truncated = nil,
    problem = nil, -- what a function of the script raised
    trouble = nil, -- why an output broke off
    outcome = nil,
  }
  if settings.cwd or settings.user or settings.group then
    local extension = "container_exec_user_group_cwd"
    if not scope.link.has(extension) then
      return nil, errors.new("unsupported", { extension = extension, tried = this.tried,
        message = "the server lacks the API extension " .. extension })
    end
  end
  local answer, err = http.ask(scope, "POST", node.path .. "/exec", {
    json = request_body(command, settings), tried = this.tried,
  })
  if not answer then
    return nil, err
  end
  this.first, this.request = answer.data, answer.request
  local sockets
  sockets, err = open_sockets(this)
  if not sockets then
    return nil, err
  end
  this.sockets, this.input, this.control = sockets, sockets["0"], sockets.control
  this.streams.stdout = new_stream(sockets["1"] or sockets["0"], settings.stdout)
  this.streams.stderr = sockets["2"] and new_stream(sockets["2"], settings.stderr)
  loop.start(function()
    repeat
      local bytes = this.control:receive()
    until not bytes
    this.left = true
    for _, stream in pairs(this.streams) do
      stream.socket:wake()
    end
  end)
  for _, stream in pairs(this.streams) do
    if stream.sink then
      pump(this, stream)
    end
  end
  if settings.stdin then
    start_feeding(this, settings.stdin)
  elseif who == "exec" and not settings.tty then
    this.input:send("", "text")
  end
  return setmetatable({ _process = this }, meta)
end

----------------------------------------------------------------------------------------------------
-- The end

local function close_all(this)
  for _, socket in pairs(this.sockets) do
    socket:close()
  end
end

local function result_of(this, status)
  local function text(stream)
    if stream and not stream.sink then
      return table.concat(stream.pieces)
    end
  end
  return {
    status = status,
    stdout = text(this.streams.stdout),
    stderr = text(this.streams.stderr),
    truncated = this.truncated,
  }
end

-- Waits until the outputs have ended; false: the deadline came first.
local function drained(this, deadline)
  for _, stream in pairs(this.streams) do
    if not loop.await(stream.done, deadline) then
      return false
    end
  end
  return true
end

-- TERM, then KILL, then away with it.
local function stop(this)
  this.timed_out = true
  for _, step in ipairs { { 15, TO_KILL }, { 9, TO_GIVE_UP } } do
    this.control:send(json.encode { command = "signal", signal = step[1] }, "text")
    if drained(this, core.now() + step[2]) then
      return
    end
  end
  close_all(this)
  drained(this)
end

-- What the operation says of the end: the status, or why there is none.
local function read_status(this)
  local last, err
  if this.daemon then
    -- The operation goes on as long as what holds the output does.
    local answer = http.ask({ link = this.scope.link }, "GET", "/1.0/operations/" .. options.escape(this.first.id))
    last = answer and answer.data
  else
    last, err = follow.operation(this.scope, this.first, {
      tried = this.tried, request = this.request, proof = outcome.unknown(this.tried), progress = false,
      wanted = function() return true end,
      latest = function() end,
    })
  end
  local status = type(last) == "table" and type(last.metadata) == "table" and last.metadata["return"]
  -- 126 and 127 are failures of the operation; -1: it couldn't be started.
  if type(status) == "number" and status >= 0 then
    return status
  end
  return nil, err
end

local function finish(this)
  local deadline = this.timeout and this.started + this.timeout
  for _, stream in pairs(this.streams) do
    pump(this, stream)
  end
  if not drained(this, deadline) then
    stop(this)
  end
  close_all(this) -- of a terminal, the operation goes on while its socket is open
  local status, err = read_status(this)
  local result = result_of(this, status)
  if this.timed_out then
    return nil, errors.new("timeout", {
      tried = this.tried, request = this.request, result = result,
      message = string.format("it ran for more than %g s and was stopped", this.timeout),
    })
  elseif err then
    return nil, err
  elseif not status and not this.daemon then
    return nil, this.trouble or errors.new("protocol", {
      tried = this.tried, request = this.request, message = "the operation ended without a status",
    })
  end
  return result
end

---Waits for the end of the command; outputs that nobody took are collected.
---@return { status: integer?, stdout: string?, stderr: string?, truncated: true? }? result `status` is 128+n for
---signal n; nil where the command has ended and left something behind that holds its outputs: LXD tells no
---status before that has ended, too. `stdout`, `stderr`: nil where a function took them, and stderr on a terminal
---@return lualxd.error? err of kind `timeout` it has `result`
function methods:wait()
  local this = self._process
  if not this.outcome then
    if this.finishing then
      loop.await(this.finishing)
    else
      this.finishing = loop.condition()
      this.outcome = { finish(this) }
      loop.fire(this.finishing)
    end
  end
  if this.problem then
    local problem = this.problem[1]
    this.problem = nil
    error(problem, 0)
  end
  return this.outcome[1], this.outcome[2]
end

----------------------------------------------------------------------------------------------------
-- Talking to it

---The next piece of an output, as it comes.
---@param name "stdout"|"stderr"|nil stdout unless told; a terminal has no other
---@return string? bytes nil at the end
function methods:read(name)
  local stream = self._process.streams[name or "stdout"]
  if not stream then
    error("process:read: there is no output " .. tostring(name), 2)
  elseif stream.sink or stream.pumped then
    error("process:read: a function takes this output, or it is being waited for", 2)
  end
  return next_piece(self._process, stream)
end

---Sends input; waits until there is room for it.
---@param bytes string
---@return true?
---@return lualxd.error? err where the command has ended
function methods:write(bytes)
  options.argument(bytes, "string", "process:write: bytes")
  local this = self._process
  for at = 1, #bytes, PIECE do
    if not this.input:send(bytes:sub(at, at + PIECE - 1), "binary") then
      return nil, errors.new("state", { tried = this.tried, message = "it reads no more input" })
    end
  end
  return true
end

---Ends the input.
function methods:close_stdin()
  self._process.input:send("", "text")
end

---Sends a signal to the command (to it alone, not to its children).
---@param signal integer|string 15, or `TERM`, or `SIGTERM`
---@return boolean sent false: it has ended
function methods:signal(signal)
  local number = type(signal) == "string" and SIGNALS[(signal:upper():gsub("^SIG", ""))] or signal
  if type(number) ~= "number" or number % 1 ~= 0 or number < 1 or number > 64 then
    error("process:signal: no such signal: " .. tostring(signal), 2)
  end
  return self._process.control:send(json.encode { command = "signal", signal = number }, "text")
end

---Tells a terminal its size.
---@param width integer
---@param height integer
---@return boolean sent false: the command has ended
function methods:resize(width, height)
  options.argument(width, "integer", "process:resize: width")
  options.argument(height, "integer", "process:resize: height")
  return self._process.control:send(json.encode {
    command = "window-resize",
    args = { width = json.number_text(width), height = json.number_text(height) },
  }, "text")
end

---Runs a command to its end.
---@param node lualxd.node the instance
---@param argv string[]
---@param settings table?
---@return table? result as of `process:wait`
---@return lualxd.error? err
function process.exec(node, argv, settings)
  local this, err = process.start(node, argv, settings, "exec")
  if not this then
    return nil, err
  end
  return this:wait()
end

return process
