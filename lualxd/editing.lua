-- Editing an object that others may write, too: get, edit, put with the ETag, again when it changed.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local answers = require "lualxd.answer"
local json = require "lualxd.json"
local loop = require "lualxd.loop"
local outcome = require "lualxd.outcome"
local words = require "lualxd.words"

local editing = {}

local TRIES = 10
local MUST_NOT_WAIT = "the function given to update must not wait"

local function edit_now(change, node, f, encode)
  local err
  for try = 1, TRIES do
    local answer
    answer, err = change:ask("GET", node.path, { object = true })
    if not answer then
      return nil, err
    end
    local data = answer.data
    local before = encode(node, data)
    loop.without_waiting(MUST_NOT_WAIT, f, data)
    local after = encode(node, data)
    if before == after then
      return true
    elseif node.kind.unset then
      node.kind.unset(json.decode(before), data)
      after = encode(node, data)
    end
    local result
    result, err = change:complete("PUT", node.path, {
      json = after,
      etag = answers.etag(node.scope.link, answer.head),
    }, outcome.unknown(change.tried))
    if not err or err.kind ~= "conflict" then
      return result, err
    end
    loop.sleep(0.02 * try * (0.5 + math.random()))
  end
  return nil, err
end

-- One object has several names: an instance three paths, a profile one in each project that has those of another. So
-- where a name is in several projects, these take turns, too.
local function object_of(node)
  local kind, rest = node.path:match("^/1%.0/([^/]*)(.*)$")
  local instance = kind == "instances" or kind == "virtual-machines"
  return instance and "/1.0/containers" .. rest or node.path
end

---The flow of a change that edits an object. Edits of one object by this client go one after the other, each to its
---end: LXD compares the ETag when the request comes and writes later, in the background (lxd#12189), so two at
---once could both pass and one would be lost.
---@param change lualxd.change
---@param node lualxd.node
---@param f fun(data: table) edits in place; must not wait
---@param encode fun(node: lualxd.node, data: table): string raises where JSON can't hold it
---@return any result
---@return lualxd.error? err
function editing.edit(change, node, f, encode)
  local turns = node.scope.link.editing
  local key = object_of(node)
  while turns[key] do
    loop.await(turns[key])
  end
  local turn = loop.condition(node.scope.link)
  turns[key] = turn
  local ok, result, err = pcall(edit_now, change, node, f, encode)
  turns[key] = nil
  loop.fire(turn)
  if not ok then
    error(result, 0)
  end
  return result, err
end

local function is_map(value)
  return type(value) == "table" and getmetatable(value) ~= json.array_meta and #value == 0
end

local function copy_of(value)
  if type(value) ~= "table" or value == words.unset then
    return value
  end
  local copy = setmetatable({}, getmetatable(value))
  for key, inner in pairs(value) do
    copy[key] = copy_of(inner)
  end
  return copy
end

-- A map that isn't there yet is merged into an empty one: what it unsets isn't to come into it.
local function merge(data, patch)
  for key, value in pairs(patch) do
    if value == words.unset then
      data[key] = nil
    elseif is_map(value) then
      data[key] = merge(is_map(data[key]) and data[key] or setmetatable({}, getmetatable(value)), value)
    else
      data[key] = copy_of(value)
    end
  end
  return data
end

---What a patch does to an object's data.
---@param data table the patch, as it is now: later edits of it don't count
---@return fun(live: table)
function editing.merger(data)
  local patch = copy_of(data)
  return function(live)
    merge(live, patch)
  end
end

return editing
