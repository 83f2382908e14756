-- Everything that a server may answer to a request, in pieces: the first byte says how it is asked, and where the
-- bytes are cut.
local support = require "spec.core.support"

support.begin()
local _, server = support.open { timeout = 1 }

local ASKED = {
  {}, { stream = true }, { method = "HEAD" }, { method = "POST", body = "x", once = true }, { limit = 64 },
  { method = "PUT", body = ("x"):rep(3000) }, { stream = true, brief = true }, { headers = { "If-Match: x" } },
}

return function(bytes)
  local how = bytes:byte() or 0
  local asked = ASKED[how % #ASKED + 1]
  local request = support.get(asked)
  local connection = server:accept()
  bytes = bytes:sub(2)
  local piece = math.max(1, math.ceil(#bytes / (math.floor(how / 8) % 4 + 1)))
  for at = 1, #bytes, piece do
    support.posix.send(connection.fd, bytes:sub(at, at + piece - 1))
    support.poller:step({})
  end
  connection:close()
  support.until_(function()
    if asked.stream then
      request:read()
    end
    return request:state() == "done"
  end)
  request:result()
  request:close()
  support.engine:close()
  support.engine = support.new_engine()
  server.connections = {}
end
