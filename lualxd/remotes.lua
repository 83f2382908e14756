-- The remotes of an existing `lxc` configuration. Its config.yml is what Go's yaml.v2 writes of a few maps and
-- scalars, and what people make of that: comments, another indentation. Exactly that is read here, and anything else
-- is refused instead of guessed.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"

local remotes = {}

local LIMIT = 1024 * 1024 -- bytes of a config.yml that are read

-- What `lxc` knows without being told (lxd: lxc/config/default.go).
local BUILT_IN = {
  ["local"] = { addr = "unix://" },
  images = { addr = "https://images.linuxcontainers.org", protocol = "simplestreams" },
  ubuntu = { addr = "https://cloud-images.ubuntu.com/releases", protocol = "simplestreams" },
  ["ubuntu-daily"] = { addr = "https://cloud-images.ubuntu.com/daily", protocol = "simplestreams" },
}

local ESCAPES = { n = "\n", t = "\t", r = "\r", ["0"] = "\0", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

-- A scalar as yaml.v2 writes it: plain, 'single', or "double" with simple escapes. nil where it is none of these.
local function scalar(text)
  if not text:find("^['\"]") then
    text = (" " .. text):gsub(" +#.*$", ""):sub(2)
  end
  local single = text:match("^'(.*)'$")
  if single then
    local plain = single:gsub("''", "")
    return not plain:find("'", 1, true) and (single:gsub("''", "'")) or nil
  end
  local double = text:match('^"(.*)"$')
  if double then
    local good = true
    local value = double:gsub("\\(.?)", function(letter)
      good = good and ESCAPES[letter] ~= nil
      return ESCAPES[letter]
    end)
    return good and not double:gsub("\\.", ""):find('"', 1, true) and value or nil
  elseif text == "" or text == "{}" or text == "[]" then
    return ""
  elseif text:find("^[%[{&*!|>%%@`'\",?#%-]") and not text:find("^%-[^%s]")
    or text:find(": ", 1, true) or text:find(":$") then
    return nil
  end
  return text
end

-- One line: how deep, its key, its value ("" opens a deeper level). nil for one that isn't `key: value`.
local function read_line(line)
  local indent, key, rest = line:match("^( *)([^%s:'\"#][^:]*):(.*)$")
  if not key then
    local quoted
    indent, quoted, rest = line:match("^( *)('[^']*'):(.*)$")
    if not quoted then
      indent, quoted, rest = line:match('^( *)("[^"\\]*"):(.*)$')
    end
    key = quoted and quoted:sub(2, -2)
  end
  if not key or rest ~= "" and rest:sub(1, 1) ~= " " then
    return nil
  end
  return #indent, key, rest:match("^ *(.-) *$")
end

---The remotes in the text of a config.yml.
---@param text string
---@return table<string, table<string, string>>? remotes by name, their fields as strings
---@return string? message
function remotes.parse(text)
  local found, section, remote = {}, nil, nil
  local number, names_at, fields_at = 0, nil, nil -- how deep remotes are, and the fields of this one
  for line in (text:gsub("\r\n", "\n") .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    local ignored = line:find("^%s*$") or line:find("^%s*#") or line:find("^%-%-%-")
      or section and section ~= "remotes" and line:find("^ ") -- of no interest, whatever its form
    if not ignored then
      local indent, key, raw = read_line(line)
      local value = indent and scalar(raw)
      if not value then
        return nil, string.format("line %d isn't as lxc writes it", number)
      elseif indent == 0 then
        section, remote = key, nil
        if section == "remotes" and value ~= "" then
          return nil, string.format("line %d: remotes isn't a map", number)
        end
      elseif section == "remotes" and indent == (names_at or indent) and value == "" then
        remote, names_at, fields_at = {}, indent, nil
        found[key] = remote
      elseif remote and indent > names_at and indent == (fields_at or indent) then
        remote[key], fields_at = value, indent
      else
        return nil, string.format("line %d isn't as lxc writes it", number)
      end
    end
  end
  return found
end

local ABSENT = { [2] = true, [20] = true } -- by errno: ENOENT, ENOTDIR

-- What is in a file; nil where there is none, and with a message where it is there and can't be read.
local function read_file(path)
  local file, message, errno = io.open(path, "rb")
  local text
  if file then
    text, message = file:read(LIMIT + 1)
    file:close()
    text = text or not message and "" or nil
  elseif ABSENT[errno] then
    message = nil
  end
  return text, message and message:gsub("^.*: ", "")
end

-- Where `lxc` keeps its configuration: the first of these in which there is one.
local function directories()
  local home, list = os.getenv "HOME", {}
  local told = os.getenv "LXD_CONF"
  if told and told ~= "" then
    return { told }
  end
  if home and home ~= "" then
    list[1] = home .. "/.config/lxc"
    list[2] = home .. "/snap/lxd/common/config"
  end
  return list
end

-- Where it finds the remotes of the whole machine (lxd: doc/remotes.md).
local function common_directories()
  local told = os.getenv "LXD_GLOBAL_CONF"
  return told and told ~= "" and { told } or { "/etc/lxd", "/var/snap/lxd/common/global-conf" }
end

local function problem(kind, name, message, hint)
  return nil, errors.new(kind, {
    tried = "connect to remote " .. name,
    message = message,
    hint = hint,
  })
end

-- The remotes that are configured in the first of some directories that has a config.yml, and which that is.
local function load(list, name)
  for _, directory in ipairs(list) do
    local path = directory .. "/config.yml"
    local text, message = read_file(path)
    if message then
      return problem("failed", name, path .. " can't be read: " .. message)
    elseif text and #text > LIMIT then
      return problem("invalid", name, path .. " is too large")
    elseif text then
      local found
      found, message = remotes.parse(text)
      if not found then
        return problem("invalid", name, path .. ": " .. message)
      end
      return found, directory
    end
  end
  return {}, nil
end

-- A path, where something is there. It may be that it can't be read; then that is to be said, rather than to connect
-- without: a server whose certificate is kept here must not be taken for one whose isn't.
local function existing(path)
  local file, _, errno = io.open(path, "rb")
  if file then
    file:close()
  end
  return (file or not ABSENT[errno]) and path or nil
end

local function unknown(name, directory)
  local where = directory and directory .. "/config.yml" or table.concat(directories(), ", ") .. " (no config.yml)"
  if not directory and #directories() == 0 then
    where = "the configuration of lxc, which neither $LXD_CONF nor $HOME tells"
  end
  return problem("not_found", name, "no such remote in " .. where,
    "see `lxc remote list`; add it by `lxc remote add`, or connect by { url = … }")
end

---How a remote of `lxc` is reached, as options of `lxd.connect`.
---@param name string
---@return table? settings `socket` or `url`, `cert`, `key`, `server_cert` or `ca` (paths), `project`
---@return lualxd.error? err
function remotes.find(name)
  local known, directory = load(directories(), name)
  if not known then
    return nil, directory
  end
  local remote, certificates = known[name], directory
  if not remote then
    known, certificates = load(common_directories(), name)
    if not known then
      return nil, certificates
    end
    remote = known[name] or BUILT_IN[name]
  end
  if not remote then
    return unknown(name, directory)
  end
  local address = remote.addr or ""
  if remote.protocol and remote.protocol ~= "" and remote.protocol ~= "lxd"
    and remote.protocol ~= "incus" then
    return problem("unsupported", name, "it is an image server (" .. remote.protocol .. ")")
  elseif remote.auth_type and remote.auth_type ~= "" and remote.auth_type ~= "tls" then
    return problem("unsupported", name, "it asks for authentication by " .. remote.auth_type)
  end
  local settings = { project = remote.project ~= "" and remote.project or nil }
  local path = address:match("^unix:/*(.*)$")
  if path then -- without one it is the usual socket
    settings.socket = path ~= "" and "/" .. path or nil
    return settings
  end
  settings.url = address
  -- A `public` one is used without a certificate of ours (lxc/config/remote.go).
  if directory and remote.public ~= "true" then
    settings.cert = existing(directory .. "/client.crt")
    settings.key = settings.cert and existing(directory .. "/client.key")
    settings.cert = settings.key and settings.cert
  end
  if certificates and not name:find("/", 1, true) then
    settings.server_cert = existing(certificates .. "/servercerts/" .. name .. ".crt")
  end
  settings.ca = directory and not settings.server_cert and existing(directory .. "/client.ca") or nil
  return settings
end

return remotes
