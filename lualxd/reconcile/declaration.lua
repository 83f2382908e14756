-- A declaration checked before the server is asked: every mistake at once, and what is right of
-- it made into entries, one an object, in which nothing is left of how a script may write
-- things.
local errors = require "lualxd.error"
local options = require "lualxd.options"
local check = require "lualxd.reconcile.check"
local fields = require "lualxd.reconcile.fields"
local kinds = require "lualxd.reconcile.kinds"
local values = require "lualxd.reconcile.values"
local words = require "lualxd.words"

local declaration = {}

---@class lualxd.reconcile.entry one declared object
---@field kind lualxd.reconcile.kind
---@field name string
---@field path string where in the declaration: `containers.web1`
---@field project string? as declared
---@field absent boolean? it must not exist
---@field adopt boolean?
---@field keep boolean?
---@field target string? cluster member to create it on
---@field leaves lualxd.reconcile.leaf[] sorted by path
---@field after { path: string, section: string, name: string }[]
---@field image { text: string, source: table?, word: string? }? `word`: ignore
---@field state lualxd.reconcile.leaf?
---@field files table[]? sorted by name
---@field snapshots { name: string, expires_at: string? }[]? sorted by name
---@field ready { exec: string[], timeout: number }?
---@field secrets string[] texts that must not be shown

---@class lualxd.reconcile.declared
---@field stack string
---@field entries lualxd.reconcile.entry[] sorted by kind and name
---@field by_path table<string, lualxd.reconcile.entry>

-- Deeper than any declaration, and far from the depth at which Lua gives up.
local DEEPEST = 40

local function step(path, key)
  if type(key) == "string" then
    return path == "" and key or path .. "." .. key
  end
  return path .. "[" .. tostring(key) .. "]"
end

-- For people: on one line, and not endless, whatever names are in it.
local function shown(text, longest)
  text = text:gsub("%c", function(char)
    return string.format("\\%d", char:byte())
  end)
  return #text > longest and text:sub(1, longest - 3) .. "..." or text
end

-- The keys of a table in an order that is the same each time: what is told first doesn't depend on
-- where a table has what.
local function ordered(map)
  local keys = {}
  for key in pairs(map) do
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b)
    return tostring(a) < tostring(b)
  end)
  return keys
end

-- Tables that contain themselves, and what is too deep to be one. Returns the paths at which it
-- found either.
local function find_cycles(root, fail)
  local found, open, walked = {}, {}, {}
  local function walk(value, path, depth)
    if walked[value] then
      return -- one table in many places is looked at once, however many ways lead to it
    elseif open[value] or depth > DEEPEST then
      local inside = open[value]
      fail(path, not inside and "too deep" or "a cycle: it contains "
        .. (inside == "" and "the declaration itself" or inside))
      found[path] = true
      return
    end
    open[value] = path
    for _, key in ipairs(ordered(value)) do
      local inner = value[key]
      if type(inner) == "table" and not words.name(inner) then
        walk(inner, step(path, key), depth + 1)
      end
    end
    open[value] = nil
    walked[value] = true
  end
  walk(root, "", 0)
  return found
end

-- RFC 1123's labels, as LXD wants its instances to be called (shared/validate, IsHostname).
local function name_problem(kind, name)
  if kind.runs then
    if #name > 63 then
      return "not a name for a container: longer than 63 characters"
    elseif not name:find("^[%w-]+$") or name:find("^[%d-]") or name:find("-$") then
      return "not a name for a container: letters, digits and dashes, a letter first, no dash last"
    end
  elseif name == "" or name == "." or name == ".." or name:find("[/%c]") or #name > 255
    or values.problem(name) then
    return "not a name for a " .. kind.noun
  end
end

local function read_entry(kind, name, value, fail)
  local path = step(kind.section, name)
  local entry = { kind = kind, name = name, path = path, leaves = {}, after = {}, secrets = {} }
  local function fail_here(inner, message)
    fail(path .. "." .. inner, message)
  end
  local problem = name_problem(kind, name)
  if problem then
    fail(path, problem)
  end
  if words.name(value) == "absent" then
    entry.absent = true
    return entry
  elseif type(value) ~= "table" or words.name(value) then
    fail(path, "expected a table or lxd.absent, got " .. check.say(value))
    return
  end
  local this = { fail = fail_here, entry = entry, kind = kind }
  for key, given in pairs(value) do
    if type(key) ~= "string" then
      fail(step(path, key), "a key must be a string, got " .. type(key))
    elseif kind.fields[key] then
      fields.read(this, kind.fields[key], key, given)
    else
      local meant = options.close_name(key, kind.fields)
      fail(step(path, key), "unknown field"
        .. (meant and "; did you mean " .. meant .. "?" or ""))
    end
  end
  if entry.ready and entry.state and entry.state.text ~= "running" then
    fail_here("ready", "only what is running can be ready, and state is " .. entry.state.text)
  end
  table.sort(entry.leaves, function(a, b)
    return a.path < b.path
  end)
  for _, leaf in ipairs(entry.leaves) do
    if leaf.secret then
      entry.secrets[#entry.secrets + 1] = leaf.text
    end
  end
  for _, file in ipairs(entry.files or {}) do
    if file.secret then
      entry.secrets[#entry.secrets + 1] = file.content
    end
  end
  return entry
end

local function read_stack(stack, fail)
  if stack == nil then
    fail("stack", "required: the name of who owns what this table declares")
  elseif type(stack) ~= "string" then
    fail("stack", "expected a string, got " .. check.say(stack))
  elseif stack == "" or #stack > 100 or stack:find("%c") or values.problem(stack) then
    fail("stack", "must be a name of 1 to 100 characters")
  end
end

-- What `after` names must be declared, and must not wait for its own followers.
local function check_after(declared, fail)
  for _, entry in ipairs(declared.entries) do
    for _, ref in ipairs(entry.after) do
      local target = declared.by_path[step(ref.section, ref.name)]
      ref.entry = target
      if not target then
        local known = {}
        for _, other in ipairs(declared.entries) do
          if other.kind.section == ref.section then
            known[other.name] = true
          end
        end
        local meant = options.close_name(ref.name, known)
        fail(entry.path .. "." .. ref.path, string.format("no %s %q is declared%s",
          kinds.by_section[ref.section].noun, ref.name,
          meant and "; did you mean " .. meant .. "?" or ""))
      elseif target.absent then
        fail(entry.path .. "." .. ref.path, ref.name .. " is declared absent")
      end
    end
  end
  local done, open, trail = {}, {}, {}
  local function visit(entry)
    if done[entry] then
      return
    end
    trail[#trail + 1] = entry.name
    if open[entry] then
      local from = open[entry]
      fail(entry.path .. ".after", "a cycle: " .. table.concat(trail, " -> ", from))
    else
      open[entry] = #trail
      for _, ref in ipairs(entry.after) do
        if ref.entry then
          visit(ref.entry)
        end
      end
      open[entry] = nil
      done[entry] = true
    end
    trail[#trail] = nil
  end
  for _, entry in ipairs(declared.entries) do
    visit(entry)
  end
end

local function in_order(a, b)
  if a.kind.rank ~= b.kind.rank then
    return a.kind.rank < b.kind.rank
  end
  return a.name < b.name
end

---The error of mistakes in a declaration, sorted, each told once.
---@param list { path: string, message: string }[]
---@return lualxd.error
function declaration.mistakes(list)
  local told, lines = {}, {}
  for index, mistake in ipairs(list) do
    told[index] = { path = shown(mistake.path, 160), message = shown(mistake.message, 300) }
  end
  table.sort(told, function(a, b)
    if a.path ~= b.path then
      return a.path < b.path
    end
    return a.message < b.message
  end)
  for index, mistake in ipairs(told) do
    lines[index] = mistake.path .. ": " .. mistake.message
  end
  return errors.new("invalid", { message = table.concat(lines, "; "), errors = told })
end

---@param source table the declaration, as the script wrote it
---@return lualxd.reconcile.declared?
---@return lualxd.error? err of kind `invalid`, with `errors`
function declaration.read(source)
  local list, cycles = {}, {}
  local function fail(path, message)
    -- What is in a cycle is wrong in every other way, too; one word about it is enough.
    local above = next(cycles) and path
    while above do
      if cycles[above] then
        return
      end
      above = above:match("^(.+)[.%[]")
    end
    list[#list + 1] = { path = path, message = message }
  end
  cycles = find_cycles(source, fail)
  read_stack(source.stack, fail)
  local declared = { stack = source.stack, entries = {}, by_path = {} }
  local known = { stack = true }
  for section in pairs(kinds.by_section) do
    known[section] = true
  end
  for key, section in pairs(source) do
    local kind = kinds.by_section[key]
    if kinds.later[key] then
      fail(key, "not supported yet; what can be declared is profiles and containers")
    elseif not known[key] then
      local meant = type(key) == "string" and options.close_name(key, known)
      fail(step("", key), "unknown field" .. (meant and "; did you mean " .. meant .. "?" or ""))
    elseif kind and (type(section) ~= "table" or words.name(section)) then
      fail(key, "expected a table, got " .. check.say(section))
    elseif kind then
      for name, value in pairs(section) do
        if type(name) ~= "string" then
          fail(step(key, name), "a name must be a string, got " .. type(name))
        else
          local entry = read_entry(kind, name, value, fail)
          if entry then
            declared.entries[#declared.entries + 1] = entry
            declared.by_path[entry.path] = entry
          end
        end
      end
    end
  end
  table.sort(declared.entries, in_order)
  check_after(declared, fail)
  if #list > 0 then
    return nil, declaration.mistakes(list)
  end
  return declared
end

return declaration
