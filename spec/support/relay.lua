-- SPDX-License-Identifier: MIT
-- Starts spec/support/relay for a spec: a way to the real LXD that can be cut.
local relay = {}

local methods = {}
local meta = { __index = methods }

local function command(self, line)
  self.input:write(line, "\n")
  self.input:flush()
  assert(self.replies:read "*l" == "done", "the relay has died")
end

---Ends its connections, refuses new ones.
function methods:cut()
  command(self, "cut")
end

---Takes connections again.
function methods:mend()
  command(self, "mend")
end

---Says bytes to every client, as if the server had.
function methods:inject(bytes)
  command(self, "inject " .. bytes:gsub(".", function(byte)
    return string.format("%02x", byte:byte())
  end))
end

---New connections end when the server has said so many bytes on them; nil: they don't.
---@param bytes integer?
function methods:limit(bytes)
  command(self, "limit " .. (bytes or -1))
end

---New connections go silent when the server has said so many bytes on them.
---@param bytes integer
function methods:stall(bytes)
  command(self, "stall " .. bytes)
end

---What the server says on an operation's WebSocket of this name comes so much later.
---@param name string
---@param seconds number
function methods:late(name, seconds)
  command(self, "late " .. name .. " " .. seconds)
end

---An operation's WebSocket of this name ends after so many bytes.
---@param name string
---@param bytes integer
function methods:end_after(name, bytes)
  command(self, "end " .. name .. " " .. bytes)
end

---Ends it; idempotent.
function methods:stop()
  if self.input then
    self.input:close()
    self.replies:close()
    self.input = nil
    os.execute("rm -r '" .. self.directory .. "'")
  end
end

---@param target string path of the server's socket
function relay.start(target)
  local pipe = assert(io.popen [[d=$(mktemp -d) && mkfifo "$d/replies" && echo "$d"]])
  local directory = assert(pipe:read "*l")
  pipe:close()
  local self = setmetatable({ directory = directory, socket = directory .. "/socket" }, meta)
  self.input = assert(io.popen(string.format("exec spec/support/relay '%s' '%s' > '%s/replies'",
    self.socket, target, directory), "w"))
  self.replies = assert(io.open(directory .. "/replies"))
  assert(self.replies:read "*l" == "ready", "the relay didn't start")
  return self
end

return relay
