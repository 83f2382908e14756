-- The steps of one object, one after the other: pure. What blocks a step by itself is said
-- here; what waits for a blocked step is found out by plan.lua, which knows the steps of all.
local core = require "lualxd.core"
local diff = require "lualxd.reconcile.diff"
local effects = require "lualxd.reconcile.effects"
local impact = require "lualxd.reconcile.impact"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"

local chain = {}

---@class lualxd.reconcile.step
---@field id string
---@field action string
---@field kind string the section
---@field project string
---@field name string
---@field changes lualxd.reconcile.change[]
---@field danger integer
---@field needs string[]
---@field blocked string? why it isn't run

---@class lualxd.reconcile.subject one object and what is to be known of it
---@field entry lualxd.reconcile.entry for an orphan: kind, name and no leaves
---@field project string
---@field data table? as the server has it
---@field mark lualxd.reconcile.mark? ours; nil: it has none that counts
---@field copied boolean? it carries the mark of another object
---@field difference lualxd.reconcile.difference?
---@field body table? what its difference makes of it
---@field impact lualxd.reconcile.impact? of an instance
---@field image table? `fingerprint` to create it from, `moved` from what it was made of

-- A profile's name may have in it what ids are made with: `a@b` isn't `a` in the project b.
local function encode(name)
  return (name:gsub("[%%@:]", function(char)
    return string.format("%%%02X", char:byte())
  end))
end

---What a step's id begins with.
---@param section string
---@param project string
---@param name string
---@return string
function chain.base(section, project, name)
  return section .. "/" .. encode(name) .. (project ~= "default" and "@" .. encode(project) or "")
end

local function new(subject, policy)
  local entry = subject.entry
  local this = { subject = subject, policy = policy, steps = {} }
  this.base = chain.base(entry.kind.section, subject.project, entry.name)
  return this
end

local function add(this, action, changes, danger, suffix)
  local entry = this.subject.entry
  local step = {
    id = this.base .. ":" .. (suffix or action),
    action = action,
    kind = entry.kind.section,
    project = this.subject.project,
    name = entry.name,
    changes = changes,
    danger = danger,
    needs = {},
  }
  local previous = this.steps[#this.steps]
  if previous then
    step.needs[1] = previous.id
  end
  this.steps[#this.steps + 1] = step
  return step
end

---What `last` has for a file: content, mode and owner in one.
---@param mark lualxd.reconcile.mark
---@param file table of an entry
---@return string
function chain.file_hash(mark, file)
  local text = table.concat({ core.sha256(file.content), tostring(file.mode or ""),
    tostring(file.uid or ""), tostring(file.gid or "") }, "\n")
  return marker.hash(mark, "files." .. file.name, text, nil, file.secret)
end

local function describe_file(file)
  local parts = { file.secret and diff.SECRET
    or #file.content == 1 and "1 byte" or #file.content .. " bytes" }
  if file.mode then
    parts[#parts + 1] = string.format("mode %04o", file.mode)
  end
  if file.uid then
    parts[#parts + 1] = "uid " .. file.uid
  end
  if file.gid then
    parts[#parts + 1] = "gid " .. file.gid
  end
  return table.concat(parts, ", ")
end

-- Which files are to be pushed. `there`: what was read (verify = "files"), by path.
local function file_changes(subject, mark, there)
  local changes = {}
  for _, file in ipairs(subject.entry.files or {}) do
    local id = "files." .. file.name
    local known = mark and mark.last[id] == chain.file_hash(mark, file)
    local found = there and there[file.name]
    local from = mark and mark.last[id] and "other content" or nil
    local wrong = not known
    if found then
      wrong = found.missing or found.sha256 ~= core.sha256(file.content)
        or file.mode and found.mode ~= file.mode or file.uid and found.uid ~= file.uid
        or file.gid and found.gid ~= file.gid
      from = not found.missing and "other content" or nil
    end
    if wrong then
      local why = "declared"
      if known then
        why = "drift"
      elseif mark and mark.todo.files then
        why = "finish"
      end
      changes[#changes + 1] = { path = id, from = from, to = describe_file(file), why = why,
        effect = subject.impact and subject.impact.running and "live" or "none" }
    elseif found and not known then
      -- It is as declared already; pushing it once more is the shortest way to say so in the mark.
      changes[#changes + 1] = { path = id, from = "as declared", to = describe_file(file),
        why = "declared", effect = "none" }
    end
  end
  return changes
end

local function add_push(this, mark, there)
  local changes = file_changes(this.subject, mark, there)
  if #changes > 0 then
    add(this, "push", changes, effects.danger.live)
  end
end

local function add_ready(this, why)
  local ready = this.subject.entry.ready
  if ready then
    add(this, "exec", { { path = "ready", to = table.concat(ready.exec, " "), why = why,
      effect = "none" } }, 1)
  end
end

local function add_snapshots(this, there)
  for _, snapshot in ipairs(this.subject.entry.snapshots or {}) do
    if not (there and there[snapshot.name]) then
      add(this, "snapshot", { {
        path = "snapshots." .. snapshot.name, effect = "none", why = "declared",
        to = snapshot.expires_at and "taken, expires " .. snapshot.expires_at or "taken",
      } }, 1, "snapshot:" .. snapshot.name)
    end
  end
end

-- Every declared value, as what the new object gets.
local function initial_changes(subject)
  local entry, changes = subject.entry, {}
  for _, leaf in ipairs(entry.leaves) do
    if leaf.text or leaf.list then
      changes[#changes + 1] = { path = leaf.path,
        to = leaf.secret and diff.SECRET or diff.copy(leaf.list or leaf.text),
        why = "declared", effect = "none" }
    end
  end
  if entry.image then
    local fingerprint = subject.image and subject.image.fingerprint
    changes[#changes + 1] = { path = "image", why = "declared", effect = "none",
      to = entry.image.text .. (fingerprint and fingerprint:sub(1, #entry.image.text)
        ~= entry.image.text and " (" .. fingerprint:sub(1, 12) .. ")" or "") }
  end
  table.sort(changes, function(a, b)
    return a.path < b.path
  end)
  return changes
end

-- What follows a creation. `live`: the state of the one that was there before.
local function add_first_run(this, live)
  local entry = this.subject.entry
  add_push(this, nil)
  local wanted = entry.state and entry.state.text or live
  if wanted == "running" or wanted == "frozen" then
    add(this, "start", { { path = "state", from = "stopped", to = wanted, why = "declared",
      effect = "none" } }, 1)
    add_ready(this, "declared")
  end
  add_snapshots(this)
end

local function add_create(this)
  add(this, "create", initial_changes(this.subject), 1)
  if this.subject.entry.kind.runs then
    add_first_run(this)
  end
end

local function add_adopt(this)
  local step = add(this, "adopt", {}, 0)
  if not this.subject.entry.adopt and not this.policy.adopt_existing then
    step.blocked = (this.subject.copied and "it carries the mark of another object, so it is a copy"
      or "it exists and is nobody's") .. "; adopt = true makes it this stack's"
  end
end

-- A step's danger is that of the worst it does; what only marks or describes is none.
local function danger_of(changes)
  local danger = 0
  for _, change in ipairs(changes) do
    local least = change.leaf and effects.least(change.path) or 0
    danger = math.max(danger, least, effects.danger[change.effect])
  end
  return danger
end

-- An interrupted run's promise of a state that came true and is still in the mark: kept there, it
-- would one day undo what somebody else does.
local function paid(subject)
  local owed = subject.mark and subject.mark.todo or {}
  local live = kinds.live_states[subject.data.status]
  if owed.start and (live == "running" or live == "frozen") or owed.freeze and live == "frozen" then
    return { path = "state", from = live, to = live, why = "finish", effect = "none" }
  end
end

-- The change that LXD refuses: the root disk of an instance stays in its pool (lxd/device/disk.go, Update).
local function moved_root(subject)
  local inherited = subject.data.expanded_devices or {}
  for _, change in ipairs(subject.difference.changes) do
    local leaf = change.leaf
    local live = leaf and leaf.device and leaf.key == "pool" and leaf.text and inherited[leaf.device]
    if live and live.path == "/" and live.pool and live.pool ~= leaf.text then
      return change
    end
  end
end

local function add_update(this)
  local subject = this.subject
  local changes = subject.difference.changes
  if not subject.mark then
    -- Adopting says what is as declared; what isn't is changed.
    changes = {}
    for _, change in ipairs(subject.difference.changes) do
      if change.leaf then
        changes[#changes + 1] = change
      end
    end
  end
  changes[#changes + 1] = paid(subject)
  if #changes == 0 then
    return
  end
  for _, change in ipairs(changes) do
    if change.leaf and subject.impact then
      change.effect = impact.at(subject.impact, change.leaf)
    elseif change.leaf and subject.effect_at then
      change.effect = subject.effect_at(change.leaf)
    end
  end
  local moved = subject.entry.kind.runs and moved_root(subject)
  if moved then
    moved.effect = "replace"
  end
  local step = add(this, "update", changes, danger_of(changes))
  if moved then
    step.blocked = "LXD can't move a root disk to another pool; replacing the " .. subject.entry.kind.noun .. " can"
  end
  if subject.impact and subject.impact.stop and subject.data.ephemeral then
    step.blocked = "it can be changed only while it is stopped, and an ephemeral one is gone then"
  end
end

-- Whether something stored waits for the next start since before this plan. LXD notes each start
-- (last_used_at), so a restart by anybody counts.
local function is_pending(subject)
  local since = subject.mark and subject.mark.todo.restart
  return since ~= nil and since == (subject.data.last_used_at or "")
end

local function restart_reason(subject)
  if is_pending(subject) then
    return "finish"
  end
  for _, change in ipairs(subject.difference.changes) do
    if change.effect == "next_start" then
      return change.why
    end
  end
  return "declared"
end

local function state_reason(subject, live)
  local mark, wanted = subject.mark, subject.entry.state
  if not mark then
    return "declared"
  end
  local never = kinds.never_started(subject.data)
  local known = marker.matches(mark, "state", wanted and wanted.text)
  if live == "stopped" and (mark.todo.start or known and never) or mark.todo.freeze then
    return "finish"
  end
  return known and "drift" or "declared"
end

-- Whether it would be gone once it was stopped as declared: LXD deletes what is ephemeral.
local function ends_by_stopping(subject)
  local wanted, live = subject.entry.state, kinds.live_states[subject.data.status]
  return wanted ~= nil and wanted.word ~= "ignore" and wanted.text == "stopped"
    and (live == "running" or live == "frozen") and (subject.body or subject.data).ephemeral == true
end

-- From the state that is there to the one that is wanted. True: it is started, so `ready` counts.
local function add_state(this)
  local subject = this.subject
  local entry = subject.entry
  local live = kinds.live_states[subject.data.status]
  local wanted = entry.state and entry.state.word ~= "ignore" and entry.state.text
  local owed = subject.mark and subject.mark.todo or {}
  if not wanted and live == "stopped" and owed.start then
    wanted = owed.freeze and "frozen" or "running" -- we stopped it, or made it anew, and owe it its start
  elseif not wanted and live == "running" and owed.freeze then
    wanted = "frozen" -- we thawed it to restart it
  end
  local stays = live == "running" or live == "frozen"
  if stays and wanted ~= "stopped" and (is_pending(subject)
    or subject.impact and subject.impact.restart) then
    add(this, "restart", { { path = "state", from = live, to = wanted or live,
      why = restart_reason(subject), effect = "stop" } }, effects.danger.stop)
    return (wanted or live) == "running"
  elseif not wanted or wanted == live or ends_by_stopping(subject) then
    return false
  end
  local change = { path = "state", from = live or subject.data.status, to = wanted,
    why = state_reason(subject, live), effect = "none" }
  if wanted == "stopped" or wanted == "frozen" and live == "running" then
    change.effect = "stop"
    add(this, "stop", { change }, effects.danger.stop)
    return false
  end
  add(this, "start", { change }, 1)
  return wanted == "running" and live ~= "frozen"
end

-- What can be had only by making it anew. `half_made`: its creation never came to its end.
local function replacement(subject, half_made)
  local image = subject.image or {}
  if half_made or image.moved then
    local fingerprint = image.fingerprint
    return { path = "image", from = half_made and "half made" or image.moved:sub(1, 12),
      to = fingerprint and fingerprint:sub(1, 12) or subject.entry.image.text,
      why = half_made and "finish" or image.why, effect = "replace" }
  end
  local moved = moved_root(subject)
  if moved then
    return { path = moved.path, from = moved.from, to = moved.to, why = moved.why, effect = "replace" }
  elseif ends_by_stopping(subject) then
    local live = kinds.live_states[subject.data.status]
    return { path = "state", from = live, to = "stopped", why = state_reason(subject, live),
      effect = "replace" }
  end
end

local function add_replace(this, change)
  local subject = this.subject
  local step = add(this, "replace", { change }, effects.danger.replace)
  local kept = subject.entry.keep or subject.mark and subject.mark.keep
  if kept then
    step.blocked = "keep = true, and replacing deletes it first"
  elseif not subject.entry.image then
    step.blocked = (change.path == "state" and "it is ephemeral: stopping deletes it" or "it has to be made anew")
      .. ", and no image says what to make it from"
  end
  return not step.blocked and step.danger <= this.policy.allow
end

---The steps of a declared object.
---@param subject lualxd.reconcile.subject
---@param policy table
---@param there { files: table?, snapshots: table?, busy: boolean? } what else is known of an instance
---@return lualxd.reconcile.step[]
function chain.of(subject, policy, there)
  local this = new(subject, policy)
  local entry = subject.entry
  if not subject.data then
    add_create(this)
    return this.steps
  end
  if not subject.mark then
    add_adopt(this)
  end
  if not entry.kind.runs then
    add_update(this)
    return this.steps
  end
  local half_made = subject.mark and entry.image and kinds.half_made(subject.data)
    and not there.busy
  local change = replacement(subject, half_made)
  local replaced
  if change then
    if add_replace(this, change) or half_made then
      add_first_run(this, kinds.live_states[subject.data.status])
      return this.steps
    end
    -- Not allowed: everything else goes on without it, but for what needs all to be as declared.
    replaced = table.remove(this.steps)
  end
  add_update(this)
  add_push(this, subject.mark, there.files)
  local started = add_state(this)
  local todo = subject.mark and subject.mark.todo
  if started then
    add_ready(this, todo and todo.ready and "finish" or "declared")
  elseif todo and todo.ready and kinds.live_states[subject.data.status] == "running" then
    add_ready(this, "finish")
  end
  local before = #this.steps
  add_snapshots(this, there.snapshots)
  if replaced then
    local first = this.steps[before + 1]
    if first then
      table.insert(first.needs, replaced.id)
    end
    table.insert(this.steps, before + 1, replaced)
  end
  return this.steps
end

---The step that takes an object away: one declared absent, or no longer declared.
---@param subject lualxd.reconcile.subject
---@param policy table
---@return lualxd.reconcile.step[]
function chain.removal(subject, policy)
  local this = new(subject, policy)
  local kind = subject.entry.kind
  if not subject.mark then
    add_adopt(this)
  end
  local step = add(this, "delete", {}, 4)
  local fixed = kind.fixed and kind.fixed[subject.entry.name]
  local protected = (subject.data.expanded_config or {})["security.protection.delete"]
  if fixed then
    step.blocked = fixed
  elseif subject.mark and subject.mark.keep then
    step.blocked = "it was declared with keep = true"
  elseif protected == "true" or protected == "1" then
    step.blocked = "security.protection.delete is set"
  end
  return this.steps
end

---The step that lets go of an object without taking it away.
---@param subject lualxd.reconcile.subject its difference unsets what is still as we left it
---@param policy table
---@return lualxd.reconcile.step[]
function chain.release(subject, policy)
  local this = new(subject, policy)
  add(this, "release", subject.difference.changes, danger_of(subject.difference.changes))
  return this.steps
end

return chain
