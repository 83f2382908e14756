-- A shell in a container, from a terminal.
--
--   lua examples/shell.lua CONTAINER [COMMAND [ARGUMENT...]]
--
-- The terminal's keys go there as they are typed, its size follows the window. Needs luv, whose loop reads the terminal
-- while lualxd waits in the same. The exit status is the command's.
local lxd = require "lualxd"
local uv = require "luv"

local name = arg[1]
if not name then
  io.stderr:write "usage: shell.lua CONTAINER [COMMAND [ARGUMENT...]]\n"
  os.exit(2)
end
local command = { (table.unpack or unpack)(arg, 2) }
if #command == 0 then
  command = { "sh", "-l" }
end

if uv.guess_handle(0) ~= "tty" then
  io.stderr:write "shell.lua: not at a terminal; examples/everywhere.lua runs commands without one\n"
  os.exit(2)
end
local terminal = uv.new_tty(0, true)

-- What was typed, until the command takes it.
local typed, reader = {}, nil
local function next_input()
  while #typed == 0 do
    reader = coroutine.running()
    coroutine.yield()
  end
  return table.remove(typed, 1) or nil
end

local function take(err, bytes)
  table.insert(typed, not err and bytes or false) -- false: the end
  local waiting = reader
  reader = nil
  if waiting then
    assert(coroutine.resume(waiting))
  end
end

local function write(bytes)
  io.write(bytes)
  io.flush()
end

local function size()
  local width, height = terminal:get_winsize()
  return { width = width, height = height }
end

local function run()
  local client, err = lxd.connect { loop = "luv" }
  local process
  if client then
    process, err = client.containers(name):spawn(command, {
      tty = size(), env = { TERM = os.getenv "TERM" or "xterm" }, stdin = next_input, stdout = write,
    })
  end
  if not process then
    return nil, err
  end
  terminal:set_mode(1) -- raw: every key goes there
  terminal:read_start(take)
  local window = uv.new_signal()
  window:start("sigwinch", function()
    coroutine.wrap(function()
      local now = size()
      process:resize(now.width, now.height)
    end)()
  end)
  local result
  result, err = process:wait()
  window:close()
  client:close()
  return result, err
end

local result, err
coroutine.wrap(function()
  result, err = run()
  uv.stop()
end)()
uv.run()
terminal:set_mode(0)
if not result then
  io.stderr:write(tostring(err), "\n")
  os.exit(1)
end
os.exit(result.status or 1)
