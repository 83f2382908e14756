-- A plan for people, and for programs: text and JSON, both made of the plan's data alone.
local json = require "lualxd.json"
local kinds = require "lualxd.reconcile.kinds"
local values = require "lualxd.reconcile.values"

local render = {}

local SYMBOLS = { create = "+", update = "~", replace = "-+", rebuild = "-+", start = ">",
  stop = "#", restart = "#>", snapshot = "+", push = "+", exec = "?", adopt = "=", release = "o",
  delete = "-" }

-- The order in which an object's steps are told; it is the one in which they are run.
local ORDER = {}
for index, action in ipairs { "adopt", "create", "update", "push", "restart", "stop", "start",
  "exec", "replace", "rebuild", "snapshot", "release", "delete" } do
  ORDER[action] = index
end

local EFFECTS = { live = "live", replug = "re-plugged", next_start = "at next start",
  stop = "while stopped", replace = "made anew" }

local DANGERS = { [2] = "short interruption", [3] = "downtime", [4] = "data loss" }

local COLORS = { green = "32", yellow = "33", red = "31", cyan = "36", dim = "2", bold = "1" }

local ACTION_COLORS = { create = "green", update = "yellow", replace = "red", rebuild = "red",
  start = "green", stop = "red", restart = "red", snapshot = "green", push = "green",
  exec = "cyan", adopt = "yellow", release = "yellow", delete = "red" }

local LONGEST = 48

local function sorted_keys(map)
  local keys = {}
  for key in pairs(map) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

-- One line, not too long, whatever the value is. Nothing in it can move a terminal's cursor.
local function show_text(text)
  local lines = select(2, text:gsub("\n", "\n"))
  local shown = text:gsub("[%c\127]", function(char)
    return char == "\n" and "\\n" or char == "\t" and "\\t"
      or string.format("\\x%02x", char:byte())
  end)
  if #shown > LONGEST then
    local cut = LONGEST - 3
    while cut > 0 and (shown:byte(cut + 1) or 0) >= 128 and shown:byte(cut + 1) < 192 do
      cut = cut - 1 -- not in the middle of a UTF-8 sequence
    end
    shown = shown:sub(1, cut) .. "..."
    if lines > 1 then
      shown = shown .. " (" .. lines .. " lines)"
    end
  end
  return shown
end

local function show_device(device)
  local parts = { device.type or "device" }
  for _, key in ipairs(sorted_keys(device)) do
    if key ~= "type" then
      parts[#parts + 1] = key .. " " .. device[key]
    end
  end
  return show_text(table.concat(parts, ", "))
end

local function show(value)
  if value == nil then
    return "(none)"
  elseif type(value) ~= "table" then
    return show_text(tostring(value))
  elseif next(value) == nil then
    return "(empty)"
  elseif value[1] ~= nil then
    return show_text(table.concat(value, ", "))
  end
  return show_device(value)
end

-- By the values themselves: long ones that differ at their ends are shown alike.
local function same(change)
  return not values.differs(change.from, change.to)
end

-- A device that is added in one line: its fields are told together.
local function merge_devices(changes)
  local whole, merged = {}, {}
  for _, change in ipairs(changes) do
    local device = change.from == nil and change.to and change.path:match("^(devices%..+)%.type$")
    if device then
      whole[device] = { path = device, to = { type = change.to }, why = change.why,
        effect = change.effect }
    end
  end
  for _, change in ipairs(changes) do
    local into
    for device, line in pairs(whole) do
      local key = change.from == nil and change.to ~= nil
        and change.path:sub(1, #device + 1) == device .. "." and change.path:sub(#device + 2)
      if key and (not into or #device > #into.path) then
        into = line
        if not line.told then
          line.told = true
          merged[#merged + 1] = line
        end
        line.to[key] = change.to
      end
    end
    if not into then
      merged[#merged + 1] = change
    end
  end
  return merged
end

local function value_of(step, change)
  if change.path == "state" then
    return change.from ~= change.to and (change.to == "frozen" or change.from == "frozen"
      or step.action == "replace")
      and show(change.from) .. " -> " .. show(change.to) or ""
  elseif same(change) then
    return show(change.to or "")
  elseif step.action == "create" or change.from == nil and step.action ~= "update" then
    return show(change.to)
  end
  return show(change.from) .. " -> " .. show(change.to)
end

local function margin_of(step, change)
  local parts = {}
  if step.action == "create" or step.action == "start" then
    parts[1] = nil
  elseif same(change) and step.action ~= "restart" then
    parts[1] = change.why == "released" and "left as it is, no longer ours"
      or "is so already, ours from now on"
  else
    parts[1] = EFFECTS[change.effect]
    if step.action ~= "update" and step.action ~= "release" then
      parts[1] = nil
    end
  end
  if change.why ~= "declared" and not same(change) then
    parts[#parts + 1] = change.why
  end
  return table.concat(parts, ", ")
end

-- The lines of one step: { indent, left, value, margin, color }.
local function step_lines(step, base, out)
  local changes = step.changes
  local line = { indent = 4, left = SYMBOLS[step.action] .. " " .. step.action, value = "",
    margin = "", color = ACTION_COLORS[step.action] }
  out[#out + 1] = line
  local marks = {}
  if DANGERS[step.danger] then
    marks[1] = DANGERS[step.danger]
  end
  local single = changes[1] and #changes == 1 and step.action ~= "update"
    and step.action ~= "create" and step.action ~= "release"
  if single then
    local change = changes[1]
    if step.action == "push" then
      line.left = line.left .. " " .. change.path:gsub("^files%.", "")
    elseif step.action == "snapshot" then
      line.left = line.left .. " " .. change.path:gsub("^snapshots%.", "")
    elseif step.action == "exec" then
      line.left = "? ready"
    end
    if step.action ~= "snapshot" or change.to ~= "taken" then
      line.value = value_of(step, change)
    end
    local margin = margin_of(step, change)
    marks[#marks + 1] = margin ~= "" and margin or nil
  end
  if step.blocked then
    marks[#marks + 1] = "BLOCKED: " .. step.blocked:gsub(base .. ":", "its ")
    line.color = "red"
  end
  line.margin = table.concat(marks, ", ")
  if not single then
    for _, change in ipairs(merge_devices(changes)) do
      out[#out + 1] = {
        indent = 8,
        left = step.action == "push" and change.path:gsub("^files%.", "") or change.path,
        value = value_of(step, change),
        margin = margin_of(step, change),
      }
    end
  end
end

local function plain(text)
  return (text:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?]", "%%%0"))
end

-- The objects of a plan with their steps, in the order of their kinds.
local function objects_of(plan)
  local objects, by_base = {}, {}
  for _, list in ipairs { plan.steps, plan.blocked } do
    for _, step in ipairs(list) do
      local base = step.id:match("^(.-):") or step.id
      local object = by_base[base]
      if not object then
        object = { base = base, kind = kinds.by_section[step.kind], project = step.project,
          name = step.name, steps = {} }
        by_base[base] = object
        objects[#objects + 1] = object
      end
      object.steps[#object.steps + 1] = step
      object.last = step.action == "delete" and 1 or 0
    end
  end
  for _, object in ipairs(objects) do
    table.sort(object.steps, function(a, b)
      if ORDER[a.action] ~= ORDER[b.action] then
        return ORDER[a.action] < ORDER[b.action]
      end
      return a.id < b.id
    end)
  end
  table.sort(objects, function(a, b)
    if a.last ~= b.last then
      return a.last < b.last
    elseif a.kind.rank ~= b.kind.rank then
      return (a.kind.rank < b.kind.rank) == (a.last == 0)
    elseif a.project ~= b.project then
      return a.project < b.project
    end
    return a.name < b.name
  end)
  return objects
end

local function heading(noun, names, project)
  local title
  if #names == 1 then
    title = noun .. " " .. names[1]
  elseif #names <= 4 then
    title = noun .. "s " .. table.concat(names, ", ")
  else
    title = string.format("%ss %s, %s ... %s (%d, all alike)", noun, names[1], names[2],
      names[#names], #names)
  end
  return title .. (project ~= "default" and " in project " .. project or "")
end

-- Objects to which the same happens are told once.
local function groups_of(plan)
  local groups, by_key = {}, {}
  for _, object in ipairs(objects_of(plan)) do
    local lines, parts = {}, { object.kind.section, object.project, tostring(object.last) }
    for _, step in ipairs(object.steps) do
      step_lines(step, plain(object.base), lines)
    end
    for _, line in ipairs(lines) do
      parts[#parts + 1] = line.left .. "\1" .. line.value .. "\1" .. line.margin
    end
    local key = table.concat(parts, "\0")
    if by_key[key] then
      local names = by_key[key].names
      names[#names + 1] = object.name
    else
      by_key[key] = { names = { object.name }, noun = object.kind.noun, project = object.project,
        lines = lines }
      groups[#groups + 1] = by_key[key]
    end
  end
  return groups
end

local COUNTED = { "create", "adopt", "update", "replace", "push", "restart", "stop", "start",
  "snapshot", "release", "delete" }
local VERBS = { push = "to push files to" }

local function summary(plan)
  local counts, parts = {}, {}
  for _, step in ipairs(plan.steps) do
    counts[step.action] = (counts[step.action] or 0) + 1
  end
  for _, action in ipairs(COUNTED) do
    if counts[action] then
      parts[#parts + 1] = counts[action] .. " " .. (VERBS[action] or "to " .. action)
    end
  end
  if #parts == 0 and counts.exec then
    parts[1] = counts.exec .. " to wait for"
  end
  local blocked = #plan.blocked
  local rest = blocked == 0 and "" or blocked == 1 and "1 step is blocked."
    or blocked .. " steps are blocked."
  if #plan.steps == 0 and blocked == 0 then
    return string.format("Nothing to do: %s.", plan.declared == 1
      and "the 1 declared object is as it should be"
      or "all " .. plan.declared .. " declared objects are as they should be")
  elseif #parts == 0 then
    return (#plan.steps == 0 and "Nothing can be done: " or "Plan: ") .. rest
  end
  return "Plan: " .. table.concat(parts, ", ") .. "." .. (rest ~= "" and " " .. rest or "")
end

-- What is owned and no longer declared, unless its deletion is told already.
local function add_orphans(plan, out, paint)
  local lines, going = {}, {}
  for _, list in ipairs { plan.steps, plan.blocked } do
    for _, step in ipairs(list) do
      going[step.kind .. "/" .. step.project .. "/" .. step.name] = true
    end
  end
  for _, orphan in ipairs(plan.orphans) do
    if not going[orphan.kind .. "/" .. orphan.project .. "/" .. orphan.name] then
      lines[#lines + 1] = "    " .. heading(kinds.by_section[orphan.kind].noun, { orphan.name },
        orphan.project) .. (orphan.keep and "  (keep = true)" or "")
    end
  end
  if #lines > 0 then
    out[#out + 1] = ""
    out[#out + 1] = "  " .. paint("bold", "no longer declared")
      .. (plan.prune and "" or paint("dim", "  (prune = true deletes what isn't kept)"))
    for _, line in ipairs(lines) do
      out[#out + 1] = line
    end
  end
end

---The plan as text. What is secret isn't in it, because it isn't in the plan.
---@param plan table steps, blocked, orphans, notes, stack, declared
---@param color boolean? with the escape sequences of a terminal
---@return string
function render.text(plan, color)
  local function paint(name, text)
    return color and name and "\27[" .. COLORS[name] .. "m" .. text .. "\27[0m" or text
  end
  local out, groups = {}, groups_of(plan)
  local left, value = 0, 0
  for _, group in ipairs(groups) do
    for _, line in ipairs(group.lines) do
      left = math.max(left, math.min(line.indent + #line.left, 44))
      value = math.max(value, math.min(#line.value, 40))
    end
  end
  out[1] = paint("bold", "Stack " .. plan.stack)
  for _, group in ipairs(groups) do
    out[#out + 1] = ""
    out[#out + 1] = "  " .. paint("bold", heading(group.noun, group.names, group.project))
    for _, line in ipairs(group.lines) do
      local text = (" "):rep(line.indent) .. line.left
      local tail = ""
      if line.value ~= "" or line.margin ~= "" then
        tail = (" "):rep(math.max(left - #text, 0) + 2) .. line.value
      end
      if line.margin ~= "" then
        tail = tail .. (" "):rep(math.max(value - #line.value, 0) + 2)
      end
      out[#out + 1] = paint(line.color, text) .. tail
        .. paint(line.color == "red" and "red" or "dim", line.margin)
    end
  end
  add_orphans(plan, out, paint)
  if #plan.notes > 0 then
    out[#out + 1] = ""
    for _, note in ipairs(plan.notes) do
      out[#out + 1] = "  " .. paint("cyan", "note") .. "  " .. note.path .. ": " .. note.message
    end
  end
  out[#out + 1] = ""
  out[#out + 1] = paint("bold", summary(plan))
  return table.concat(out, "\n")
end

local function step_data(step)
  local changes = json.array {}
  for index, change in ipairs(step.changes) do
    changes[index] = { path = change.path, from = change.from, to = change.to, why = change.why,
      effect = change.effect }
    for _, side in ipairs { "from", "to" } do
      if change.path == "profiles" and type(change[side]) == "table" then
        changes[index][side] = json.array(change[side])
      end
    end
  end
  return { id = step.id, action = step.action, kind = step.kind, project = step.project,
    name = step.name, changes = changes, danger = step.danger, needs = json.array(step.needs),
    blocked = step.blocked }
end

---The plan as JSON: keys sorted, the same bytes for the same plan.
---@param plan table
---@return string
function render.json(plan)
  local data = { format = 1, stack = plan.stack, empty = plan.empty, steps = json.array {},
    blocked = json.array {}, orphans = json.array(plan.orphans), notes = json.array(plan.notes) }
  for _, list in ipairs { "steps", "blocked" } do
    for index, step in ipairs(plan[list]) do
      data[list][index] = step_data(step)
    end
  end
  -- lua-cjson escapes slashes, which makes ids hard to read; nothing else has a `\/`.
  return (json.encode(data):gsub("\\/", "/"))
end

return render
