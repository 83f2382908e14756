-- The mark of ownership: what lualxd keeps on the objects it made, in three keys of their
-- config. It says whose the object is, what was last applied, and what is unfinished; there is
-- no other state.
--
-- The owner's text is bound to the kind, project and name of its object: `lxc copy`, a renaming
-- and a backup brought in under another name take the keys along, and what is copied isn't
-- ours.
--
--   user.lualxd.owner   shop/container/default/web1#9f3c2a7b8d1e4f60[@home]
--   user.lualxd.last    1 config.limits.memory=5be1f09a2c,description=…,keep
--   user.lualxd.todo    files,ready,restart:2026-11-23T23:49:50.68Z
--
-- These keys are readable inside the container (devlxd, lxd/devlxd.go), and a profile's are
-- handed down to its users' expanded config: there are no values in them, only hashes keyed
-- with the nonce.
local core = require "lualxd.core"
local options = require "lualxd.options"
local values = require "lualxd.reconcile.values"

local marker = {}

marker.OWNER, marker.LAST, marker.TODO = "user.lualxd.owner", "user.lualxd.last", "user.lualxd.todo"

-- How the contents of `last` are to be read; another number is another release's.
local FORMAT = "1"

---@class lualxd.reconcile.mark
---@field whose "ours"|"theirs"|"copy" a copy carries the mark of another object
---@field stack string
---@field noun string of the kind of what was marked
---@field project string
---@field name string
---@field nonce string
---@field home string the project of the client that declared it
---@field last table<string, string> path -> hash
---@field keep boolean
---@field todo table<string, string> what -> detail, or ""

-- A comma, an equals sign and what separates the owner's parts can be in names and keys.
local function encode(text)
  return (text:gsub("[%%,=/#@:%s%c]", function(char)
    return string.format("%%%02X", char:byte())
  end))
end

local function decode(text)
  return text:find("%", 1, true) and options.unescape(text) or text
end

---Reads the mark of an object.
---@param config table<string, string>? the object's own, not what profiles hand down
---@param stack string who asks
---@param noun string of the object's kind
---@param project string
---@param name string
---@return lualxd.reconcile.mark? mark nil: there is none
function marker.read(config, stack, noun, project, name)
  local owner = config and config[marker.OWNER]
  if not owner then
    return nil
  end
  local parts, nonce, home = owner:match("^([^#]*)#(%x+)@?([^@]*)$")
  local of, kind, where, called = (parts or ""):match("^([^/]*)/([^/]*)/([^/]*)/([^/]*)$")
  if not of then
    -- Written by nobody we know: as good as none.
    return nil
  end
  local mark = {
    stack = decode(of),
    noun = decode(kind),
    project = decode(where),
    name = decode(called),
    nonce = nonce,
    last = {},
    keep = false,
    todo = {},
  }
  mark.home = home ~= "" and decode(home) or mark.project
  if mark.noun ~= noun or mark.project ~= project or mark.name ~= name then
    mark.whose = "copy"
  else
    mark.whose = mark.stack == stack and "ours" or "theirs"
  end
  local format, list = (config[marker.LAST] or ""):match("^(%S+) (.*)$")
  if format == FORMAT then
    for path, hash in list:gmatch("([^,=]+)=([^,]*)") do
      mark.last[decode(path)] = hash
    end
    mark.keep = ("," .. list):find(",keep$") ~= nil
  end
  for item in (config[marker.TODO] or ""):gmatch("[^,]+") do
    local what, detail = item:match("^([^:]+):?(.*)$")
    if what then
      mark.todo[what] = decode(detail)
    end
  end
  return mark
end

---A mark for an object that has none.
---@param stack string
---@param noun string
---@param project string
---@param name string
---@param home string
---@return lualxd.reconcile.mark
function marker.new(stack, noun, project, name, home)
  return { whose = "ours", stack = stack, noun = noun, project = project, name = name,
    home = home, nonce = core.random(8), last = {}, keep = false, todo = {} }
end

-- Ten digits of a hash: 40 bits, so that an accident is out of the question and little can be
-- learnt.
local DIGITS = 10

---The hash that stands for a value in `last`.
---@param mark lualxd.reconcile.mark
---@param path string
---@param text string?
---@param kind string? of value, see values.canonical
---@param secret boolean? kept as a leading `s`, so that it isn't shown once it is undeclared either
---@return string
function marker.hash(mark, path, text, kind, secret)
  local canonical = text and "=" .. values.canonical(kind, text) or "-"
  local hex = core.sha256(mark.nonce .. "\0" .. path .. "\0" .. canonical)
  return (secret and "s" or "") .. hex:sub(1, DIGITS)
end

---Whether a value is what `last` has for its path.
---@param mark lualxd.reconcile.mark
---@param path string
---@param text string?
---@param kind string?
---@return boolean
function marker.matches(mark, path, text, kind)
  local hash = mark.last[path]
  return hash ~= nil and hash:gsub("^s", "") == marker.hash(mark, path, text, kind)
end

---@param mark lualxd.reconcile.mark
---@param path string
---@return boolean secret the value of this path was one when it was last applied
function marker.was_secret(mark, path)
  return mark.last[path] ~= nil and mark.last[path]:sub(1, 1) == "s"
end

local function sorted_keys(map)
  local keys = {}
  for key in pairs(map) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

---The config keys that say it. A key that has nothing to say is an empty text: LXD stores none.
---@param mark lualxd.reconcile.mark
---@return table<string, string>
function marker.keys(mark)
  local owner = table.concat({ encode(mark.stack), encode(mark.noun), encode(mark.project),
    encode(mark.name) }, "/") .. "#" .. mark.nonce
  if mark.home ~= mark.project then
    owner = owner .. "@" .. encode(mark.home)
  end
  local last = {}
  for index, path in ipairs(sorted_keys(mark.last)) do
    last[index] = encode(path) .. "=" .. mark.last[path]
  end
  if mark.keep then
    last[#last + 1] = "keep"
  end
  local todo = {}
  for index, what in ipairs(sorted_keys(mark.todo)) do
    local detail = mark.todo[what]
    todo[index] = what .. (detail ~= "" and ":" .. encode(detail) or "")
  end
  return {
    [marker.OWNER] = owner,
    [marker.LAST] = FORMAT .. " " .. table.concat(last, ","),
    [marker.TODO] = table.concat(todo, ","),
  }
end

return marker
