-- SPDX-License-Identifier: MIT
-- Starts spec/support/imitation for a spec and talks to it. Plain io and os: commands go into its
-- standard input, answers come back through a FIFO, so that reading one waits and never polls. It
-- ends, and takes its directory along, when this process is gone, however that came about.

local cjson = require "cjson"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

---@class imitation
---@field socket string path of the unix socket
---@field directory string private to this imitation; a spec may put files there
---@field pid string
local Imitation = {}
Imitation.__index = Imitation

local function quote(word)
  return "'" .. tostring(word):gsub("'", "'\\''") .. "'"
end

---@param command table
---@return table answer
function Imitation:command(command)
  assert(self.input, "the imitation was stopped")
  self.input:write(cjson.encode(command), "\n")
  self.input:flush()
  local line = assert(self.replies:read "*l", "the imitation has died")
  local answer = cjson.decode(line)
  if answer.error then
    error("imitation: " .. answer.error, 2)
  end
  return answer
end

---Adds rules; the first that fits a request is used (see spec/support/imitation).
function Imitation:rules(...)
  return self:command { ["do"] = "rules", rules = { ... } }
end

---Forgets the rules.
function Imitation:drop_rules()
  return self:command { ["do"] = "drop_rules" }
end

---Forgets rules, record and model; connections stay.
function Imitation:reset()
  return self:command { ["do"] = "reset" }
end

---Every request so far, in order: `method`, `target`, `headers` (lower-case names), `body` (its
---first 4,096 bytes), `length`, `sha256`, `complete`, `connection`, `number` (on its connection),
---`time`, `answered` (number of the rule, or "model").
---@return table[] requests
---@return integer connections opened so far
---@return integer open now
function Imitation:record()
  local answer = self:command { ["do"] = "record" }
  return answer.requests, answer.connections, answer.open
end

---Waits until `requests` have come, `complete` came whole, or at most `open` connections are left.
function Imitation:await(condition)
  local command = { ["do"] = "await" }
  for key, value in pairs(condition) do
    command[key] = value
  end
  local answer = self:command(command)
  return answer.requests, answer.connections, answer.open
end

function Imitation:release(gate)
  return self:command { ["do"] = "release", gate = gate }
end

---Ends operations of the model: those named by `ids`, or all; `code` 200 unless told, `err`; `silently`: no event
---tells of it.
function Imitation:finish(options)
  local command = { ["do"] = "finish" }
  for key, value in pairs(options or {}) do
    command[key] = value
  end
  return self:command(command)
end

---How it tells events from now on: `late` seconds after it has said that it does, with `pings` unless that is false;
---`cut`: those who listen now have to come again.
function Imitation:events(options)
  return self:command { ["do"] = "events", late = options.late, pings = options.pings, cut = options.cut }
end

---Drops operations as LXD does 5 s after their end.
function Imitation:forget(ids)
  return self:command { ["do"] = "forget", ids = ids }
end

---@return table model `containers`, `operations`, `config`
function Imitation:model()
  return self:command { ["do"] = "model" }
end

---Ends it and waits for its end. Idempotent.
function Imitation:stop()
  if not self.input then
    return
  end
  self.input:write('{"do":"quit"}\n')
  self.input:close() -- waits for the process
  self.replies:close()
  self.input, self.replies = nil, nil
end

Imitation.__gc = Imitation.stop

local M = {}

---@class imitation.options
---@field mode "scripted"|"lxd2"|"operations"|nil
---@field operation_seconds number? how long operations run
---@field operation_kept number? for how long ended ones are remembered
---@field events true? tell of operations by events

---@param options? imitation.options
---@return imitation
function M.start(options)
  options = options or {}
  local pipe = assert(io.popen [[
    d=$(mktemp -d) && mkfifo "$d/replies" && chmod 711 "$d" && echo "$d"]])
  local directory = assert(pipe:read "*l", "no temporary directory")
  pipe:close()
  local words = { "exec", quote(here .. "/imitation"), quote(directory), "--remove" }
  local names = { mode = "--mode", operation_seconds = "--operation-seconds",
    operation_kept = "--operation-kept" }
  for name, value in pairs(options) do
    if name == "events" then
      words[#words + 1] = "--events"
    else
      words[#words + 1] = assert(names[name], "unknown option: " .. name) .. " " .. quote(value)
    end
  end
  words[#words + 1] = ">" .. quote(directory .. "/replies")
  local self = setmetatable({ directory = directory }, Imitation)
  self.input = assert(io.popen(table.concat(words, " "), "w"))
  self.replies = assert(io.open(directory .. "/replies", "r"))
  local first = self.replies:read "*l"
  if not first then
    self.input:close()
    os.execute("rm -r " .. quote(directory))
    error("the imitation didn't start", 2)
  end
  local ready = cjson.decode(first)
  self.socket, self.pid = ready.socket, string.format("%d", ready.pid)
  return self
end

return M
