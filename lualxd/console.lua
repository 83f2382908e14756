-- The console of an instance: a terminal that shows what the instance says of itself and takes what one types, and
-- the log of what it said.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local options = require "lualxd.options"
local tasks = require "lualxd.loop.task"
local websocket = require "lualxd.websocket"

local console = {}

---@class lualxd.console
local methods = {}
local meta = { __name = "lualxd.console", __index = methods }

function meta:__tostring()
  return "lualxd.console: " .. self._console.tried
end

-- Seconds: in which a server says that the terminal has ended, and then closes the control. Who has a quiet console
-- doesn't: it waits for what that says next.
local PATIENCE, GRACE = 10, 0.5

-- Those that haven't been let go. To do that takes a while, so what it is done with mustn't be collected together with
-- the handle, or with the client.
local attached = {} -- luacheck: ignore 241

-- The terminal first, by its closing frame: 5.0 (lxd/instance_console.go) writes to the terminal when the control has
-- gone, and the whole daemon dies where it was still writing output there ("concurrent write to websocket connection",
-- tried). Once it has answered a closing frame it writes nothing there any more; but it notes that a moment after the
-- answer is out (gorilla/websocket, WriteControl), so the control may close by itself first.
local function let_go(this)
  if this.closed then
    return
  end
  this.closed = true
  local link = this.scope.link
  attached[this], link.orderly[this] = nil, nil
  local parting = loop.condition(link)
  link.parting[this.path] = parting
  -- A flow: the client's end waits for it.
  loop.start(function()
    local task = tasks.running()
    local control = this.control
    this.terminal:part(core.now() + PATIENCE)
    local deadline = core.now() + GRACE
    while not control:ended() and control:await(deadline) do
      while control:take() do end -- luacheck: ignore 542
    end
    control:close()
    if link.parting[this.path] == parting then
      link.parting[this.path] = nil
    end
    loop.fire(parting)
    loop.handed_over(task)
  end, link)
end

-- What is done when the last who waits for it, in a foreign loop, was killed.
local function abandoned(this)
  return function(condition)
    if not condition.set then
      let_go(this)
    end
  end
end

local OPTIONS = { width = "integer", height = "integer" }

---Attaches to the console. One at a time may: of another LXD says in its terminal that attaching failed, and ends it.
---@param node lualxd.node the instance
---@param settings { width: integer?, height: integer? }? of the terminal, 80 by 24 unless told
---@return lualxd.console?
---@return lualxd.error? err
function console.open(node, settings)
  settings = options.check(settings, OPTIONS, "console", 3)
  local this = {
    scope = node.scope,
    path = http.path(node.scope, node.path),
    tried = "console of " .. node.kind.one .. " " .. node.name,
    needs = "console",
  }
  local parting = this.scope.link.parting[this.path]
  if parting then
    loop.await(parting) -- until then our last one is the one that may
  end
  local body = json.encode { type = "console", width = settings.width or 80, height = settings.height or 24 }
  -- The control comes first: 5.0 waits for it no longer once it has the other, and dies when that ends without it
  -- (lxd/instance_console.go).
  local sockets, err = websocket.open(this, node.path .. "/console", body, { { "control" }, { "0" } })
  if not sockets then
    return nil, err
  end
  this.terminal, this.control = sockets["0"], sockets.control
  this.terminal.abandoned = abandoned(this)
  attached[this], this.scope.link.orderly[this] = true, let_go
  local self = setmetatable({ _console = this }, meta)
  self._collected = loop.on_collect(function()
    let_go(this)
  end)
  return self
end

---What it says next, as it comes.
---@return string? bytes nil: it has ended
---@return lualxd.error? err where that was no good end
function methods:read()
  local this = self._console
  while not this.over and not this.closed do
    local bytes, kind = this.terminal:receive()
    if not bytes then
      this.over, this.err = true, kind
    elseif kind == "text" then
      -- An empty text is the end (shared/ws of LXD), and the operation waits for us to go. It then calls itself
      -- failed, however good the end was (5.0.2, tried): that says nothing.
      self:close()
      this.over = true
    elseif #bytes > 0 then
      return bytes
    end
  end
  return nil, this.err
end

---Types something.
---@param bytes string
---@return true?
---@return lualxd.error? err where it has ended
function methods:write(bytes)
  options.argument(bytes, "string", "console:write: bytes")
  local this = self._console
  if not this.terminal:send(bytes, "binary") then
    return nil, errors.new("state", { tried = this.tried, message = "it has ended" })
  end
  return true
end

---Tells it the size of the terminal.
---@param width integer
---@param height integer
---@return boolean sent false: it has ended
function methods:resize(width, height)
  options.argument(width, "integer", "console:resize: width")
  options.argument(height, "integer", "console:resize: height")
  local this = self._console
  return not this.over and not this.closed and this.control:send(json.encode {
    command = "window-resize",
    args = { width = json.number_text(width), height = json.number_text(height) },
  }, "text")
end

---Lets go of it; idempotent. The instance goes on.
function methods:close()
  let_go(self._console)
end

meta.__close = methods.close

---What the console has shown so far, as far as it is kept.
---@param node lualxd.node
---@return string? text
---@return lualxd.error? err
function console.log(node)
  local answer, err = http.ask(node.scope, "GET", node.path .. "/console", {
    raw = true, tried = "log of the console of " .. node.kind.one .. " " .. node.name, needs = "console",
  })
  if answer then
    return answer.body or ""
  elseif err.message and err.message:find("^open .*: no such file") then
    return "" -- as 5.0.2 says of a container that has said nothing, or was never started (tried)
  end
  return nil, err
end

return console
