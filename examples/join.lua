-- Joins a server with a token, and keeps what it takes to come back.
--
--   on the server:   lxc config trust add --name laptop
--   here:            lua examples/join.lua TOKEN laptop
--
-- The first time this makes a key and a certificate (laptop.key, laptop.crt), compares the server's certificate
-- with the token's fingerprint, joins, and keeps the server's certificate (laptop.server.crt). From then on all
-- three are enough: the token is used up.
local lxd = require "lualxd"

local token, name = arg[1], arg[2]
if not token then
  io.stderr:write "usage: join.lua TOKEN [NAME]\n"
  os.exit(1)
end
name = name or "lualxd"

local identity, err = lxd.identity { name = name, path = name }
if not identity and err.kind ~= "exists" then
  error(err)
end

local client = assert(lxd.connect {
  token = token, -- its addresses are tried in turn
  cert = name .. ".crt",
  key = name .. ".key",
})
print("joined", client)
for _, project in ipairs(assert(client.projects:names())) do
  print("project", project)
end

-- What the token has proved: from now on exactly this certificate is accepted.
local certificate = client.server.environment.certificate
local file = assert(io.open(name .. ".server.crt", "w"))
file:write(certificate)
file:close()
client:close()
