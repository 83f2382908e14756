-- Certificates, keys and tokens: texts that a user or a server gives.
local core = require "lualxd.core"
local trust = require "lualxd.trust"

local poller = assert(core.poller())
local cert, key = core.new_identity "fuzz"

local KINDS = { "cert", "key", "ca", "pin" }

return function(bytes)
  local which, text = bytes:byte() or 0, bytes:sub(2)
  core.certificate(text)
  local decoded = core.unbase64(text)
  assert(not decoded or core.unbase64(core.base64(decoded)) == decoded)
  trust.open_token(text, "fuzz")
  trust.open_token(core.base64(text), "fuzz")
  local tls = { host = "127.0.0.1", cert = cert, key = key, ca = cert }
  tls[KINDS[which % #KINDS + 1]] = text
  local ok, engine = pcall(core.engine, poller, { tls = tls, connections = 1, timeout = 1 })
  if ok and engine then
    engine:close()
  end
end
