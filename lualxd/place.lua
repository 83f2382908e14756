-- Where a server is, and who we are to it: from the options of `lxd.connect` and `lxd.trust` to what the core's
-- engine is told. Reads files, opens no connection.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local core = require "lualxd.core"
local errors = require "lualxd.error"
local options = require "lualxd.options"
local remotes = require "lualxd.remotes"

local place = {}

---@class lualxd.place
---@field where string for people
---@field base string scheme and host of every URL
---@field unix string? path of the socket
---@field tls table? `host`, `cert`, `key`, `pin`, `ca` as of the core's engine
---@field identity table? what core.certificate says of our certificate
---@field project string? of a remote

local DEFAULT_PORT = 8443 -- of LXD, and what `lxc remote add` takes where none is named
local FILE_LIMIT = 1024 * 1024

----------------------------------------------------------------------------------------------------
-- The socket of this machine

-- Where the environment says, and where it is otherwise, in this order.
local function candidates()
  local socket, directory = os.getenv "LXD_SOCKET" or "", os.getenv "LXD_DIR" or ""
  local told = { socket ~= "" and socket or nil }
  told[#told + 1] = directory ~= "" and directory .. "/unix.socket" or nil
  return told, {
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
  }
end

-- Whether something is there, be it for us or not: to open a socket as a file fails, but otherwise.
local function is_there(path)
  local file, message = io.open(path, "rb")
  if file then
    file:close()
    return true
  end
  return not message:find("No such file", 1, true) and not message:find("Not a directory", 1, true)
end

local function first(list, fits)
  for _, path in ipairs(list) do
    if fits(path) then
      return path
    end
  end
end

-- The first that is there. One that isn't for us is to be refused with a reason, and if it was told, then before any
-- other: changes must not go to another server than the one that was meant.
local function find_socket()
  local told, usual = candidates()
  local path = first(told, is_there) or first(usual, core.is_socket) or first(usual, is_there)
  if path then
    return path
  end
  for _, other in ipairs(usual) do
    told[#told + 1] = other
  end
  return nil, errors.new("connect", {
    tried = "connect",
    message = "no LXD socket is there: " .. table.concat(told, ", "),
    hint = "is LXD running? Another place is told by { socket = path } or $LXD_SOCKET",
  })
end

local function at_socket(path)
  return { where = path, base = "http://lxd", unix = path }
end

----------------------------------------------------------------------------------------------------
-- A URL, and the texts that TLS needs

---Splits a URL of a server.
---@param url string
---@return string? host without brackets; nil where it is none, then a message
---@return string authority_or_message with a port
function place.split(url)
  local authority = url:match("^[Hh][Tt][Tt][Pp][Ss]://([^/?#]+)/?$")
  if not authority then
    return nil, url:find("^[Hh][Tt][Tt][Pp]://") and "must begin with https://"
      or "must be like https://host:8443"
  end
  local host, port = authority:match("^%[([%x:.]+)%]:?(%d*)$")
  if not host then
    host, port = authority:match("^([%w][%w._-]*):?(%d*)$")
  end
  local number = host and (port == "" and DEFAULT_PORT or tonumber(port))
  if not host or authority:sub(-1) == ":" or number < 1 or number > 65535 then
    return nil, "must be like https://host:8443"
  end
  local shown = host:find(":", 1, true) and "[" .. host .. "]" or host
  return host, string.format("%s:%d", shown, number)
end

local KINDS = { [2] = "not_found", [13] = "forbidden" } -- by errno: ENOENT, EACCES

-- The PEM text that an option holds or is the path of. What a key's option holds is shown to nobody unless
-- it looks like a path (base64 has no dots).
local function read_text(value, option, tried)
  if value:find("-----BEGIN", 1, true) or value:find("[\r\n]") then
    return value
  end
  local file, message, errno, text
  if not value:find("%z") then -- the system would take what is before it for the path
    file, message, errno = io.open(value, "rb")
  end
  if file then
    text, message, errno = file:read(FILE_LIMIT)
    file:close()
  end
  if text then
    return text
  elseif file then
    message = value .. (message and ": " .. message or " is empty")
  end
  local shown = message and value ~= "" and (option ~= "key" or value:find(".", 1, true))
  local hint = option == "server_cert" and not file and "it is a SHA-256 (64 digits), PEM text or a path" or nil
  return nil, errors.new(KINDS[errno] or errno and "failed" or "invalid", {
    tried = tried,
    message = option .. ": " .. (shown and message or "neither PEM text nor a file"),
    hint = hint,
  })
end

local function raw(hex)
  return (hex:gsub("%x%x", function(byte)
    return string.char(tonumber(byte, 16))
  end))
end

---The SHA-256 in a fingerprint as people write it.
---@param text string
---@return string? hex in lower case, without colons
function place.fingerprint(text)
  local hex = text:gsub("[:%s]", ""):lower()
  return #hex == 64 and hex:find("^%x+$") and hex or nil
end

-- The fingerprint that `server_cert` stands for: PEM text, a path, or itself.
local function read_pin(value, tried)
  local fingerprint = place.fingerprint(value)
  if fingerprint then
    return fingerprint
  end
  local text, err = read_text(value, "server_cert", tried)
  if not text then
    return nil, err
  end
  local info, message = core.certificate(text)
  if not info then
    return nil, errors.new("invalid", { tried = tried, message = "server_cert: " .. message })
  end
  return info.fingerprint
end

-- Both texts of our identity, and what the certificate says of itself.
local function read_identity(settings, tried)
  if not settings.cert then
    return {}
  end
  local cert, key, err, info, message
  cert, err = read_text(settings.cert, "cert", tried)
  if cert then
    key, err = read_text(settings.key, "key", tried)
  end
  if not key then
    return nil, err
  end
  info, message = core.certificate(cert)
  if not info then
    return nil, errors.new("invalid", { tried = tried, message = "cert: " .. message })
  end
  return { cert = cert, key = key, info = info }
end

---A server by its URL.
---@param settings { cert: string?, key: string?, server_cert: string?, ca: string? }
---@param authority string host and port
---@param host string
---@param tried string for errors
---@param fingerprint string? of the server as a token has it: must hold as well
---@return lualxd.place?
---@return lualxd.error? err
function place.at_host(settings, authority, host, tried, fingerprint)
  local tls = { host = host }
  local ours, err = read_identity(settings, tried)
  if not ours then
    return nil, err
  end
  tls.cert, tls.key = ours.cert, ours.key
  local pin = fingerprint
  if settings.server_cert then
    pin, err = read_pin(settings.server_cert, tried)
    if not pin then
      return nil, err
    elseif fingerprint and fingerprint ~= pin then
      return nil, errors.new("tls", {
        tried = tried,
        message = "the token is of another server than server_cert",
        hint = "ask for a token of this one",
      })
    end
  end
  tls.pin = pin and raw(pin)
  if settings.ca then
    tls.ca, err = read_text(settings.ca, "ca", tried)
    if not tls.ca then
      return nil, err
    end
  end
  return {
    where = "https://" .. authority,
    base = "https://" .. authority,
    tls = tls,
    identity = ours.info,
  }
end

----------------------------------------------------------------------------------------------------
-- From options

---Raises where options don't go together.
---@param settings table as of `lxd.connect`
---@param who string
---@param level integer? as of `error`; 3 unless told: the caller of the caller
function place.check(settings, who, level)
  level = level or 3
  local function one_of(a, b)
    if settings[a] and settings[b] then
      error(string.format("%s: give '%s' or '%s', not both", who, a, b), level + 1)
    end
  end
  one_of("socket", "url")
  one_of("socket", "remote")
  one_of("url", "remote")
  one_of("server_cert", "ca")
  one_of("token", "password")
  if settings.cert and not settings.key or settings.key and not settings.cert then
    error(who .. ": options 'cert' and 'key' go together", level)
  elseif settings.url then
    local host, message = place.split(settings.url)
    if not host then
      error(string.format("%s: option 'url' %s", who, message), level)
    end
  elseif not settings.remote and not settings.token or settings.socket then
    for _, name in ipairs { "cert", "key", "server_cert", "ca", "token", "password" } do
      if settings[name] then
        error(string.format("%s: option '%s' needs 'url' or 'remote'", who, name), level)
      end
    end
  end
  if settings.password and not options.is_utf8(settings.password) then
    error(who .. ": option 'password' is not UTF-8", level) -- JSON can't carry it
  end
  if (settings.token or settings.password) and not settings.cert and not settings.remote then
    error(who .. ": to join a server one needs 'cert' and 'key' (see lxd.identity)", level)
  end
end

-- What a remote's configuration says, and over it what the script says.
local function with_remote(settings)
  local found, err = remotes.find(settings.remote)
  if not found then
    return nil, err
  end
  for _, name in ipairs { "cert", "key", "server_cert", "ca", "token", "password" } do
    found[name] = settings[name] or found[name]
  end
  if settings.server_cert then
    found.ca = nil
  elseif settings.ca then
    found.server_cert = nil
  end
  return found
end

local function by_url(settings, url, tried, token)
  local host, authority = place.split(url)
  if not host then
    return nil, errors.new("invalid", {
      tried = tried,
      message = url:gsub("%c", "?") .. " is not the address of a server: it " .. authority,
    })
  end
  return place.at_host(settings, authority, host, tried, token and token.fingerprint)
end

-- The addresses of a token, those that make sense.
local function by_token(settings, token)
  local places, err = {}, nil
  for _, address in ipairs(token.addresses) do
    local at
    at, err = by_url(settings, "https://" .. address, "connect", token)
    places[#places + 1] = at
  end
  if #places > 0 then
    return places
  end
  return nil, err or errors.new("invalid", {
    tried = "connect", message = "the token names no address of a server",
  })
end

---The places to try, in this order.
---@param settings table as of `lxd.connect`, checked
---@param token table? the opened token
---@return lualxd.place[]?
---@return lualxd.error? err
function place.find(settings, token)
  local tried, found, err = "connect", settings, nil
  if settings.remote then
    tried = "connect to remote " .. settings.remote
    found, err = with_remote(settings)
    if not found then
      return nil, err
    end
  elseif token and not settings.url then
    return by_token(settings, token)
  end
  local at
  if found.url then
    at, err = by_url(found, found.url, tried, token)
  elseif found.socket then
    at = at_socket(found.socket)
  else
    local path
    path, err = find_socket()
    at = path and at_socket(path)
  end
  if not at then
    return nil, err
  end
  at.project = found.project
  return { at }
end

return place
