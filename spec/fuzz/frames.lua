-- Everything that a server may say on a WebSocket, in pieces; the first byte says what we do meanwhile, and where the
-- bytes are cut. With its highest bit set, they come instead of the handshake's answer.
local digest = require "openssl.digest"
local mime = require "mime"
local support = require "spec.core.support"

support.begin()
local _, server = support.open { timeout = 1 }

local GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

local function accept_of(key)
  return mime.b64(digest.new("sha1"):final(key .. GUID))
end

return function(bytes)
  local how = bytes:byte() or 0
  bytes = bytes:sub(2)
  local request = support.get { upgrade = true, url = "http://lxd/1.0/events",
    silence = how & 32 ~= 0 and (how & 64 ~= 0 and math.huge or 1e-6) or nil }
  local connection = server:accept()
  local key = connection:head():match "[Kk]ey: ([^\r]+)"
  if how < 128 then
    bytes = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
      .. accept_of(key) .. "\r\n\r\n" .. bytes
  end
  local piece = math.max(1, math.ceil(#bytes / (how % 4 + 1)))
  for at = 1, #bytes, piece do
    support.posix.send(connection.fd, bytes:sub(at, at + piece - 1))
    support.poller:step({})
    if how & 4 ~= 0 and request:is_open() then
      request:send(("x"):rep(how), how & 8 ~= 0 and "text" or "binary")
    end
    if how & 16 ~= 0 then
      request:receive()
    end
  end
  connection:close()
  support.until_(function()
    while request:receive() do end -- luacheck: ignore 542
    return request:state() == "done"
  end)
  request:result()
  request:close()
  support.engine:close()
  support.engine = support.new_engine()
  server.connections = {}
end
