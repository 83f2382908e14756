-- A command in an instance: LXD gives its input, its outputs and its control as WebSockets of one operation.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local command = require "lualxd.command"
local core = require "lualxd.core"
local errors = require "lualxd.error"
local feed = require "lualxd.feed"
local follow = require "lualxd.follow"
local http = require "lualxd.http"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local outcome = require "lualxd.outcome"
local output = require "lualxd.output"
local websocket = require "lualxd.websocket"

local process = {}

---@class lualxd.process a command that runs
local methods = {}
local meta = { __name = "lualxd.process", __index = methods }

-- Seconds from TERM to KILL, and from KILL until we no longer believe that it ends.
local TO_KILL, TO_GIVE_UP = 2, 5

-- Seconds in which the rest of the outputs is taken when the time is up and the command had ended by itself.
local TO_TAKE = 0.5

-- Seconds before Ctrl-D is typed, and typed again.
local FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2

local PIECE = 64 * 1024 -- bytes of input in one message

-- As Linux numbers them wherever LXD runs.
local SIGNALS = { HUP = 1, INT = 2, QUIT = 3, ILL = 4, TRAP = 5, ABRT = 6, BUS = 7, FPE = 8, KILL = 9, USR1 = 10,
  SEGV = 11, USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15, STKFLT = 16, CHLD = 17, CONT = 18, STOP = 19, TSTP = 20,
  TTIN = 21, TTOU = 22, URG = 23, XCPU = 24, XFSZ = 25, VTALRM = 26, PROF = 27, WINCH = 28, IO = 29, PWR = 30,
  SYS = 31 }

function meta:__tostring()
  return "lualxd.process: " .. self._process.tried
end

----------------------------------------------------------------------------------------------------
-- Input

local function kill(this)
  this.control:send('{"command":"signal","signal":9}', "text")
end

-- An empty text ends the input, but for a terminal: LXD closes that, and HUP kills what still reads from it. There one
-- types Ctrl-D; after a while, for a shell that has yet to take the terminal over takes it for a NUL; and again, for a
-- line that was not ended takes one, and an input that has ended stays so.
local function end_input(this)
  if this.input_ended then
    return
  end
  this.input_ended = true
  if not this.tty then
    this.input:send("", "text")
    return
  end
  loop.start(function()
    local pause = FIRST_PAUSE
    while not loop.await(this.leaving, core.now() + pause) and this.input:send("\4", "binary") do
      pause = math.min(LONGEST_PAUSE, pause * 2)
    end
  end)
end

local function pour(this, source)
  local input = this.input
  if type(source) == "string" then
    for at = 1, #source, PIECE do
      if not input:send(source:sub(at, at + PIECE - 1), "binary") then
        return
      end
    end
  else
    local bytes, problem = source()
    while bytes ~= nil do
      if type(bytes) ~= "string" then
        error("exec: stdin must return a string or nil, got " .. type(bytes), 0)
      elseif #bytes > 0 and not input:send(bytes, "binary") then
        return
      end
      bytes, problem = source()
    end
    if problem ~= nil then -- as `file:read` fails: the command mustn't take what it got for all
      this.trouble = this.trouble or errors.new("failed", {
        tried = this.tried, request = this.request, message = "its input broke off: " .. tostring(problem),
      })
      kill(this)
      return
    end
  end
  end_input(this)
end

local function start_feeding(this, source, holder, killed)
  loop.fork(function()
    local held = holder -- luacheck: ignore 211
    local ok, problem = pcall(pour, this, source)
    if not ok then
      this.problem = this.problem or { problem }
      kill(this)
    end
  end, killed, this.scope.link)
end

----------------------------------------------------------------------------------------------------
-- Beginning

-- The control comes first. LXD starts the command when the others are there (it waits 5 s for them,
-- lxd/instance_exec.go), and a short one would be over before; and it is what kills a command whose script has died.
local function close_all(this)
  for _, socket in pairs(this.sockets) do
    socket:close()
  end
end

-- The command goes along with whoever had it.
local function drop(this)
  this.dropped = true
  close_all(this)
  for _, stream in pairs(this.streams) do
    stream.ended = true
    loop.fire(stream.done) -- what took it may have been killed
  end
end

-- What is done when the last who waits for this was killed, unless another has had the news already and waits for more.
local function abandoned(this)
  return function(condition)
    if not condition.set then
      drop(this)
    end
  end
end

-- What is done when what runs one of the script's functions was killed.
local function killed(this)
  return function()
    drop(this)
  end
end

local function new_stream(this, socket, sink)
  socket.abandoned = abandoned(this)
  return output.new(this, socket, sink)
end

-- Learns when the command itself has ended.
local function await_leaving(this)
  loop.start(function()
    repeat
      local bytes = this.control:receive()
    until not bytes
    this.left = true
    loop.fire(this.leaving)
    for _, stream in pairs(this.streams) do
      stream.socket:wake()
    end
  end)
end

-- TERM, then KILL, then away with it: without anybody who waits, too, since one may as well read or write.
local function keep_time(this)
  loop.start(function()
    -- Who was kept from all news until then first takes what came meanwhile.
    if loop.await(this.leaving, this.started + this.timeout) or loop.await(this.leaving, core.now()) or this.left then
      return
    end
    this.timed_out = true
    for _, step in ipairs { { 15, TO_KILL }, { 9, TO_GIVE_UP } } do
      this.control:send(json.encode { command = "signal", signal = step[1] }, "text")
      if loop.await(this.leaving, core.now() + step[2]) then
        return
      end
    end
    this.gave_up = true
    close_all(this)
  end)
end

-- A process that nobody has any more takes its command along. What goes on by itself must not hold the handle, but for
-- the script's functions.
local function handle(this)
  local self = setmetatable({ _process = this }, meta)
  self._collected = loop.on_collect(function()
    drop(this)
  end)
  return self
end

-- The operation is there.
local function listen(this, answer)
  this.rider = feed.expect(this.scope.link, this.first.id, answer.sent, this.tried)
  this.rider.asked = true -- as soon as the control has ended
end

---Starts a command.
---@param node lualxd.node the instance
---@param argv string[]
---@param settings table?
---@param who "exec"|"spawn"
---@return lualxd.process?
---@return lualxd.error? err
function process.start(node, argv, settings, who)
  local words = command.check(argv, who)
  settings = settings or {}
  command.check_settings(settings, who)
  local scope = node.scope
  local this = {
    tried = "exec " .. argv[1] .. " in " .. node.kind.one .. " " .. node.name,
    scope = scope,
    tty = settings.tty,
    silence = { ["1"] = 1, ["2"] = math.huge }, -- LXD reads nothing of the latter, not even pongs
    limit = settings.max_output,
    started = core.now(),
    timeout = settings.timeout,
    streams = {},
    left = false, -- the command itself has ended
    leaving = loop.condition(scope.link),
    input_ended = false, -- by us
    daemon = false, -- and something of it holds an output still
    timed_out = false,
    gave_up = false, -- it doesn't end
    dropped = false, -- by who had it
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
  local sockets, err = websocket.open(this, node.path .. "/exec", command.body(words, settings),
    { { "control" }, this.tty and { "0" } or { "0", "1", "2" } }, listen)
  if not sockets then
    return nil, err
  end
  this.sockets, this.input, this.control = sockets, sockets["0"], sockets.control
  this.streams.stdout = new_stream(this, sockets["1"] or sockets["0"], settings.stdout)
  this.streams.stderr = sockets["2"] and new_stream(this, sockets["2"], settings.stderr)
  await_leaving(this)
  if this.timeout then
    keep_time(this)
  end
  local self = handle(this)
  for _, stream in pairs(this.streams) do
    if stream.sink then
      output.pump(this, stream, self, killed(this))
    end
  end
  if settings.stdin then
    start_feeding(this, settings.stdin, type(settings.stdin) ~= "string" and self, killed(this))
  elseif who == "exec" and not settings.tty then
    end_input(this)
  end
  return self
end

----------------------------------------------------------------------------------------------------
-- The end

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

-- The time is up, and it isn't over. What the command left behind, or a connection that stalls, isn't waited for: only
-- what came already, and was not read, is taken.
local function stop(this)
  local left = loop.await(this.leaving, core.now() + TO_KILL + TO_GIVE_UP)
  if not left or not drained(this, core.now() + (this.timed_out and TO_KILL or TO_TAKE)) then
    this.timed_out, this.gave_up = true, true
    close_all(this)
    for _, stream in pairs(this.streams) do
      stream.ended = stream.ended or stream.sink ~= nil -- a slow one would be told of what has come for long
    end
    drained(this)
  end
end

-- What the operation says of the end: the status, or why there is none.
local function read_status(this)
  local last, err
  if this.daemon or this.gave_up or this.dropped then
    -- The operation goes on as long as what holds the output does, or for ever.
    local answer = http.ask({ link = this.scope.link }, "GET", feed.path(this.first.id))
    last = answer and answer.data
  else
    last, err = follow.operation(this.scope, this.first, {
      tried = this.tried, request = this.request, rider = this.rider, proof = outcome.unknown(this.tried),
      progress = false,
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

-- All there is to be done at the end, for all that wait for it.
local function finish(this)
  local deadline = this.timeout and this.started + this.timeout
  for _, stream in pairs(this.streams) do
    output.pump(this, stream)
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
  elseif this.dropped then
    return nil, errors.new("cancelled", {
      tried = this.tried, request = this.request, result = result,
      message = "who waited for its input or output was killed, and took it along",
    })
  elseif not err and not this.trouble and not status and not this.daemon then
    err = errors.new("protocol", {
      tried = this.tried, request = this.request, message = "the operation ended without a status",
    })
  end
  err = err or this.trouble
  if err then
    err.result = result
    return nil, err
  end
  return result
end

-- In a task that belongs to none of those who wait: any may be killed. (In nginx, a function that is made where one
-- waits would lose its variables when that is killed.)
local function start_finishing(this)
  loop.start(function()
    local ok, result, err = pcall(finish, this)
    if ok then
      this.outcome = { result, err }
    else
      this.problem = this.problem or { result }
    end
    loop.fire(this.finishing)
  end)
end

---Waits for the end of the command; outputs that nobody took are collected.
---@param timeout number? seconds; none: as long as it takes. The command goes on, one may wait for it again
---@return { status: integer?, stdout: string?, stderr: string?, truncated: true? }? result `status` is 128+n for
---signal n; nil where the command has ended and left something behind that holds its outputs: LXD tells no
---status before that has ended, too. `stdout`, `stderr`: nil where a function took them, and stderr on a terminal
---@return lualxd.error? err it has `result`: what there is, unless it is about `timeout`
function methods:wait(timeout)
  local this = self._process
  if timeout ~= nil then
    options.argument(timeout, "seconds", "process:wait: timeout")
  end
  if not this.finishing then
    this.finishing = loop.condition(this.scope.link)
    this.finishing.abandoned = abandoned(this)
    start_finishing(this)
  end
  if not loop.await(this.finishing, timeout and core.now() + timeout) then
    return nil, errors.new("timeout", {
      tried = this.tried, request = this.request, message = "not done in time",
      hint = "it goes on; one may wait for it again",
    })
  end
  if this.problem then
    error(this.problem[1], 0)
  end
  return this.outcome[1], this.outcome[2]
end

----------------------------------------------------------------------------------------------------
-- Talking to it

---The next piece of an output, as it comes.
---@param name "stdout"|"stderr"|nil stdout unless told; a terminal has no other
---@return string? bytes nil at the end
---@return lualxd.error? err where that was no good end: output was lost
function methods:read(name)
  local stream = self._process.streams[name or "stdout"]
  if not stream then
    error("process:read: there is no output " .. tostring(name), 2)
  elseif stream.sink or stream.pumped then
    error("process:read: a function takes this output, or it is being waited for", 2)
  end
  local bytes, err = output.next(self._process, stream)
  return bytes, err -- no tail call: what waits holds the process
end

---Sends input; waits until there is room for it.
---@param bytes string
---@return true?
---@return lualxd.error? err where the command has ended
function methods:write(bytes)
  options.argument(bytes, "string", "process:write: bytes")
  local this = self._process
  if this.input_ended then
    return nil, errors.new("state", { tried = this.tried, message = "its input was ended" })
  end
  for at = 1, #bytes, PIECE do
    if not this.input:send(bytes:sub(at, at + PIECE - 1), "binary") then
      return nil, errors.new("state", { tried = this.tried, message = "it reads no more input" })
    end
  end
  return true
end

---Ends the input; on a terminal by Ctrl-D.
function methods:close_stdin()
  end_input(self._process)
end

---Sends a signal to the command (to it alone, not to its children).
---@param signal integer|string 15, or `TERM`, or `SIGTERM`
---@return boolean sent false: it has ended
function methods:signal(signal)
  local number = type(signal) == "string" and SIGNALS[(signal:upper():gsub("^SIG", ""))] or signal
  if type(number) ~= "number" or number % 1 ~= 0 or number < 1 or number > 64 then
    error("process:signal: no such signal: " .. tostring(signal), 2)
  end
  local sent = self._process.control:send(json.encode { command = "signal", signal = number }, "text")
  return sent
end

---Tells a terminal its size.
---@param width integer
---@param height integer
---@return boolean sent false: the command has ended
function methods:resize(width, height)
  options.argument(width, "integer", "process:resize: width")
  options.argument(height, "integer", "process:resize: height")
  local sent = self._process.control:send(json.encode {
    command = "window-resize",
    args = { width = json.number_text(width), height = json.number_text(height) },
  }, "text")
  return sent
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
