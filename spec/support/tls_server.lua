-- Starts spec/support/tls-server and talks to it; certificates for it. Commands go into its standard input, answers
-- come back through a FIFO, so that reading one waits and never polls. It ends when this process does.
local cjson = require "cjson"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

---@class tls_server
---@field url string
---@field port integer
---@field directory string where the certificates are
local Server = {}
Server.__index = Server

local function run(command)
  local ok = os.execute(command)
  assert(ok == true or ok == 0, command)
end

---@param command table
---@return table answer
function Server:command(command)
  self.input:write(cjson.encode(command), "\n")
  self.input:flush()
  local line = assert(self.replies:read "*l", "the TLS server has died")
  return cjson.decode(line)
end

---What it does with connections from now on; see spec/support/tls-server.
---@param mode string
---@param certificate string? a name given to `certificate`
function Server:mode(mode, certificate)
  local path = self.directory .. "/" .. (certificate or "server")
  return self:command { ["do"] = "mode", mode = mode, cert = path .. ".crt", key = path .. ".key" }
end

function Server:drop()
  return self:command { ["do"] = "drop" }
end

---@return { connections: integer, handshakes: integer, requests: string[], plain: string }
function Server:record()
  return self:command { ["do"] = "record" }
end

function Server:forget()
  return self:command { ["do"] = "forget" }
end

---Makes a certificate.
---@param name string
---@param options string? of spec/support/certificate
---@return string path without its ending
function Server:certificate(name, options)
  run(string.format("'%s/certificate' '%s' '%s' %s", here, self.directory, name, options or ""))
  return self.directory .. "/" .. name
end

---@param path string below the directory
---@return string
function Server:read(path)
  local file = assert(io.open(self.directory .. "/" .. path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

function Server:stop()
  if self.input then
    self.input:write('{"do":"quit"}\n')
    self.input:close() -- waits for the process
    self.replies:close()
    self.input = nil
    run("rm -rf '" .. self.directory .. "'")
  end
end

local M = {}

---A server with a self-signed certificate `server` for 127.0.0.1.
---@return tls_server
function M.start()
  local pipe = assert(io.popen 'd=$(mktemp -d) && mkfifo "$d/replies" && echo "$d"')
  local directory = assert(pipe:read "*l", "no temporary directory")
  pipe:close()
  local self = setmetatable({ directory = directory }, Server)
  self:certificate("server", "--san IP:127.0.0.1,DNS:localhost")
  self.input = assert(io.popen(string.format("exec '%s/tls-server' > '%s/replies'", here, directory), "w"))
  self.replies = assert(io.open(directory .. "/replies", "r"))
  local line = assert(self.replies:read "*l", "the TLS server didn't start")
  self.port = cjson.decode(line).port
  self.url = string.format("https://127.0.0.1:%d", self.port)
  self:mode "serve"
  return self
end

return M
