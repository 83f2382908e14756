-- The remotes of an existing `lxc` configuration. Its config.yml is what Go's yaml.v2 writes of a few maps and
-- scalars, two spaces a level; exactly that is read here, and anything else is refused instead of guessed.
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
    or text:find(": ", 1, true) or text:find(" #", 1, true) or text:find(":$") then
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
  local number = 0
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
        if section == "remotes" and raw ~= "" and raw ~= "{}" then
          return nil, string.format("line %d: remotes isn't a map", number)
        end
      elseif section == "remotes" and indent == 2 and (raw == "" or raw == "{}") then
        remote = {}
        found[key] = remote
      elseif section == "remotes" and indent == 4 and remote then
        remote[key] = value
      else
        return nil, string.format("line %d isn't as lxc writes it", number)
      end
    end
  end
  return found
end

local function read_file(path)
  local file = io.open(path, "rb")
  local text = file and file:read(LIMIT + 1)
  if file then
    file:close()
  end
  return text
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

local function problem(kind, name, message, hint)
  return nil, errors.new(kind, {
    tried = "connect to remote " .. name,
    message = message,
    hint = hint,
  })
end

-- All known remotes and the directory that they came from.
local function load(name)
  local list = directories()
  for _, directory in ipairs(list) do
    local path = directory .. "/config.yml"
    local text = read_file(path)
    if text and #text > LIMIT then
      return problem("invalid", name, path .. " is too large")
    elseif text then
      local found, message = remotes.parse(text)
      if not found then
        return problem("invalid", name, path .. ": " .. message)
      end
      return found, directory
    end
  end
  return {}, nil
end

local function existing(path)
  local text = read_file(path)
  return text and path or nil
end

---How a remote of `lxc` is reached, as options of `lxd.connect`.
---@param name string
---@return table? settings `socket` or `url`, `cert`, `key`, `server_cert` or `ca` (paths), `project`
---@return lualxd.error? err
function remotes.find(name)
  local known, directory = load(name)
  if not known then
    return nil, directory
  end
  local remote = known[name] or BUILT_IN[name]
  if not remote then
    return problem("not_found", name, "no such remote in " .. (directory
      and directory .. "/config.yml" or table.concat(directories(), ", ") .. " (no config.yml)"),
      "see `lxc remote list`; add it by `lxc remote add`, or connect by { url = … }")
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
  if directory then
    -- A `public` one is used without a certificate of ours (lxc/config/remote.go).
    if remote.public ~= "true" then
      settings.cert = existing(directory .. "/client.crt")
      settings.key = settings.cert and existing(directory .. "/client.key")
      settings.cert = settings.key and settings.cert
    end
    settings.server_cert = not name:find("/", 1, true)
      and existing(directory .. "/servercerts/" .. name .. ".crt") or nil
    settings.ca = not settings.server_cert and existing(directory .. "/client.ca") or nil
  end
  return settings
end

return remotes
