-- Who we are to a server, and how it comes to trust us: identities, tokens, passwords. A secret leaves only for a
-- server whose certificate was verified in the handshake of the connection that carries it.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local http = require "lualxd.http"
local json = require "lualxd.json"
local link = require "lualxd.link"
local options = require "lualxd.options"
local place = require "lualxd.place"

local trust = {}

local EEXIST, ENOENT, EACCES = 17, 2, 13

----------------------------------------------------------------------------------------------------
-- Identities

local IDENTITY = { name = "string", path = "string" }
local NAME_LIMIT = 64 -- characters of a common name (RFC 5280, ub-common-name)

local function write(path, text)
  local ok, message, errno = core.write_private(path, text)
  if ok then
    return true
  end
  local kinds = { [EEXIST] = "exists", [ENOENT] = "not_found", [EACCES] = "forbidden" }
  return nil, errors.new(kinds[errno] or "failed", {
    tried = "make an identity",
    message = path .. ": " .. message,
    hint = errno == EEXIST and "no key is written over; give the two files as cert and key" or nil,
  })
end

---Makes a key (EC P-384) and a certificate that it signs itself, good for ten years.
---@param settings { name: string?, path: string? }? `name` is what servers list it as (`lualxd` unless told); with
---`path`, `path.crt` and `path.key` are written, for their owner alone, and never over files that are there
---@return { cert: string, key: string, fingerprint: string }? identity PEM texts
---@return lualxd.error? err
function trust.identity(settings)
  settings = options.check(settings, IDENTITY, "lxd.identity")
  local name = settings.name or "lualxd"
  if name == "" or name:find("%z") or #name > 4 * NAME_LIMIT then
    error("lxd.identity: option 'name' must have 1 to 64 characters", 2)
  elseif settings.path and (settings.path == "" or settings.path:sub(-1) == "/") then
    error("lxd.identity: option 'path' must end with a name, to which .crt and .key are added", 2)
  end
  local made, cert, key = pcall(core.new_identity, name)
  if not made then
    error("lxd.identity: option 'name': " .. tostring(cert):gsub("^bad argument.-%((.*)%)$", "%1"), 2)
  end
  if settings.path then
    local ok, err = write(settings.path .. ".key", key)
    if ok then
      ok, err = write(settings.path .. ".crt", cert)
      if not ok then
        os.remove(settings.path .. ".key") -- ours, made a moment ago
      end
    end
    if not ok then
      return nil, err
    end
  end
  return { cert = cert, key = key, fingerprint = core.certificate(cert).fingerprint }
end

----------------------------------------------------------------------------------------------------
-- Tokens

local TOKEN_LIMIT = 64 * 1024

---Opens a token of `lxc config trust add`: base64 of JSON (lxd: shared/api/certificate.go).
---@param text string
---@param tried string for errors
---@return { fingerprint: string, addresses: string[], name: string?, expires_at: string?, text: string }?
---@return lualxd.error? err
function trust.open_token(text, tried)
  local bare = text:gsub("%s", "") -- lines get broken in mails
  local bytes = #bare <= TOKEN_LIMIT and core.unbase64(bare)
  local data = bytes and json.decode(bytes)
  local fingerprint = type(data) == "table" and type(data.fingerprint) == "string"
    and place.fingerprint(data.fingerprint)
  if not fingerprint or type(data.secret) ~= "string" then
    return nil, errors.new("invalid", {
      tried = tried,
      message = "this is no token",
      hint = "a token is what `lxc config trust add --name NAME` prints",
    })
  end
  local token = { fingerprint = fingerprint, addresses = {}, text = bare }
  for _, address in ipairs(type(data.addresses) == "table" and data.addresses or {}) do
    token.addresses[#token.addresses + 1] = type(address) == "string" and address or nil
  end
  -- It goes out again, in the request.
  token.name = type(data.client_name) == "string" and options.is_utf8(data.client_name) and data.client_name or nil
  token.expires_at = type(data.expires_at) == "string" and data.expires_at or nil
  return token
end

-- "2026-11-24T04:09:38.45Z" has passed by this machine's clock, or passes in this second; Go's zero time means never.
-- Where the server is in another zone, the Z is an offset like +09:00.
local function has_passed(time)
  local there, zone = (time or ""):match "^(%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d)[.%d]*([Z+-].*)$"
  if not there or there:find "^0001%-" then
    return false
  end
  local sign, hours, minutes = zone:match "^([+-])(%d%d):(%d%d)$"
  local offset = sign and (hours * 60 + minutes) * 60 or 0
  return there <= os.date("!%Y-%m-%dT%H:%M:%S", os.time() + (sign == "-" and -offset or offset))
end

local TOKEN = { name = "string", projects = "table", restricted = "boolean" }

---`client.certificates:token{ name }`: a token by which one client may join the server, once.
---@param settings { name: string, projects: string[]?, restricted: boolean? } `projects` restrict the client to these
---@return string? token
---@return lualxd.error? err
function trust.token(self, settings)
  settings = options.check(settings, TOKEN, "client.certificates:token")
  if not settings.name or settings.name == "" then
    error("client.certificates:token: option 'name' is missing", 2)
  elseif not options.is_utf8(settings.name) then
    error("client.certificates:token: option 'name' is not UTF-8", 2)
  end
  local tried = "make a token for " .. settings.name
  local projects = settings.projects and json.array {}
  for index, project in ipairs(settings.projects or {}) do
    projects[index] = options.argument(project, "string", "client.certificates:token: a project")
  end
  local restricted = settings.restricted
  if restricted == nil and projects then
    restricted = true
  end
  local answer, err = http.ask(self.scope, "POST", self.path, {
    json = json.encode {
      type = "client", token = true, name = settings.name, restricted = restricted,
      projects = projects,
    },
    tried = tried,
    object = true,
    needs = "certificate_token",
  })
  if not answer then
    return nil, err
  end
  -- The operation's metadata is all; a token is put together by who asked for it.
  local data = type(answer.data.metadata) == "table" and answer.data.metadata or {}
  local request = type(data.request) == "table" and data.request or {}
  if type(data.secret) ~= "string" or type(data.fingerprint) ~= "string" then
    return nil, errors.new("protocol", { tried = tried, message = "the answer holds no token" })
  end
  return core.base64(json.encode {
    client_name = request.name or settings.name,
    fingerprint = data.fingerprint,
    addresses = json.array(type(data.addresses) == "table" and data.addresses or {}),
    secret = data.secret,
    expires_at = type(data.expiresAt) == "string" and data.expiresAt or "0001-01-01T00:00:00Z",
  })
end

----------------------------------------------------------------------------------------------------
-- Joining

---@class lualxd.joining
---@field token table? opened
---@field password string?

local NOBODY = ("\0"):rep(32) -- the SHA-256 of no certificate

---Before anything is opened: a password must not meet a server that is merely valid. What comes of it then is a
---refusal, so that a person can look at the certificate.
---@param at lualxd.place
---@param how lualxd.joining
function trust.guard(at, how)
  if how.password and at.tls and not at.tls.pin and not at.tls.ca then
    at.tls.pin = NOBODY
    at.unknown = true
  end
end

---The refusal that a guarded place ends with, in words.
---@param err lualxd.error
---@return lualxd.error
function trust.explain(err)
  if err.fingerprint then
    err.message = "a password is sent only to a server that is known, by its certificate or by its CA"
    err.hint = "if its administrator tells the fingerprint " .. err.fingerprint
      .. ", give that as server_cert"
  end
  return err
end

local function refused(how, err, self)
  if err.kind ~= "untrusted" and not (err.message or ""):find("[Tt]oken has expired") then
    return err
  end
  local hint
  if how.token then
    hint = "the token was used already, was revoked or is another server's; ask for a new one:"
      .. " lxc config trust add --name NAME"
    if err.kind ~= "untrusted" or has_passed(how.token.expires_at) then
      hint = "the token has expired; ask for a new one: lxc config trust add --name NAME"
    end
  else
    hint = "the password is wrong, or the server has none (lxc config set core.trust_password)"
  end
  return errors.new("untrusted", {
    tried = "join " .. self.where, message = err.message, code = err.code, request = err.request,
    hint = hint,
  })
end

---Makes the server trust us, unless it does.
---@param self lualxd.link after its handshake
---@param how lualxd.joining
---@return true?
---@return lualxd.error? err
function trust.join(self, how)
  if self.trusted then
    return true
  end
  local tried, ours = "join " .. self.where, self.identity
  if not ours then
    return nil, errors.new("untrusted", {
      tried = tried,
      message = "there is no client certificate to be trusted",
      hint = "make one by lxd.identity and give it as cert and key",
    })
  elseif ours.not_after and ours.not_after < os.time() then
    -- A token is good for one try: it isn't spent on a certificate that LXD takes for nothing.
    return nil, errors.new("untrusted", {
      tried = tried,
      message = "the client certificate expired on " .. os.date("!%Y-%m-%d", ours.not_after),
      hint = "make a new one by lxd.identity",
    })
  end
  local body = { type = "client", name = how.token and how.token.name or ours.name }
  if how.token and self.has "explicit_trust_token" then
    body.trust_token = how.token.text
  else
    body.password = how.token and how.token.text or how.password
  end
  local answer, err = http.ask({ link = self }, "POST", "/1.0/certificates", {
    json = json.encode(body),
    tried = tried,
  })
  -- Joined already, or perhaps just now: the server tells.
  if not answer and err.kind ~= "exists" and err.kind ~= "unknown_outcome" then
    return nil, refused(how, err, self)
  end
  local ok, problem = link.shake_hands(self)
  if not ok then
    return nil, problem
  elseif not self.trusted then
    return nil, err or errors.new("untrusted", { tried = tried, hint = self.advice })
  end
  return true
end

---How to join, from options.
---@param settings { token: string?, password: string? }
---@param tried string
---@return lualxd.joining?
---@return lualxd.error? err
function trust.how(settings, tried)
  if not settings.token then
    return { password = settings.password }
  end
  local token, err = trust.open_token(settings.token, tried)
  return token and { token = token }, err
end

local TRUST = {
  token = "string", password = "string", cert = "string", key = "string", server_cert = "string",
  ca = "string",
}

---Opens a place, and joins it where there is a token or a password.
---@param at lualxd.place
---@param settings table as of `link.open`
---@param how lualxd.joining
---@return lualxd.link?
---@return lualxd.error? err
function trust.open(at, settings, how)
  trust.guard(at, how)
  local self, err = link.open(at, settings)
  if not self then
    return nil, err
  end
  local ok
  ok, err = link.shake_hands(self)
  if ok and (how.token or how.password) then
    ok, err = trust.join(self, how)
  end
  if ok then
    return self
  end
  link.close(self)
  return nil, at.unknown and trust.explain(err) or err
end

---Makes a server trust a client certificate.
---@param url string `https://host:8443`
---@param settings { token: string?, password: string?, cert: string, key: string, server_cert: string?, ca: string? }
---with a token the server's fingerprint is compared before the secret is sent; with a password `server_cert` or
---`ca` is required, and without them nothing is sent
---@return string? certificate the server's, as PEM text
---@return lualxd.error? err
function trust.trust(url, settings)
  options.argument(url, "string", "lxd.trust: url")
  settings = options.check(settings, TRUST, "lxd.trust")
  local all = { url = url }
  for name in pairs(TRUST) do
    all[name] = settings[name]
  end
  place.check(all, "lxd.trust")
  if not settings.token and not settings.password then
    error("lxd.trust: option 'token' or 'password' is missing", 2)
  end
  local how, err = trust.how(settings, "trust " .. url)
  local places = how
  if how then
    places, err = place.find(all, how.token)
  end
  if not places then
    return nil, err
  end
  local self
  self, err = trust.open(places[1], {}, how)
  if not self then
    return nil, err
  end
  local certificate = self.engine:certificate()
  link.close(self)
  return certificate
end

return trust
