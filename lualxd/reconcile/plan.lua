-- The plan: a pure function of what is declared, what is there and what is allowed. Nothing is
-- asked, nothing is left to the order in which a table is walked: the same input gives the same
-- bytes.
local options = require "lualxd.options"
local chain = require "lualxd.reconcile.chain"
local declaration = require "lualxd.reconcile.declaration"
local diff = require "lualxd.reconcile.diff"
local impact = require "lualxd.reconcile.impact"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"
local observe = require "lualxd.reconcile.observe"
local reference = require "lualxd.reconcile.reference"

local plan = {}

---@class lualxd.reconcile.planned
---@field stack string
---@field steps lualxd.reconcile.step[] in an order in which they can be run one after the other
---@field blocked lualxd.reconcile.step[]
---@field orphans table[] owned, no longer declared: kind, project, name, keep
---@field notes { path: string, message: string }[]
---@field declared integer how many objects are
---@field subjects table<string, lualxd.reconcile.subject> by chain.base; not shown
---@field look fun(project: string): function what instances of a project inherit; not shown
---@field restarts table<string, lualxd.reconcile.subject[]> id of a step that changes what
---instances inherit -> those of ours that will need a restart for it; not shown

local function sorted_keys(map)
  local keys = {}
  for key in pairs(map or {}) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

-- The mark of an object of ours; a mark of another stack is a mistake, a copy's counts for nothing.
local function read_mark(this, entry, data, project)
  local mark = marker.read(data.config, this.declared.stack, entry.kind.noun, project, entry.name)
  if not mark then
    return nil, false
  elseif mark.whose == "theirs" then
    this.fail(entry.path, string.format("belongs to the stack %q", mark.stack))
    return nil, false
  elseif mark.whose == "copy" then
    this.note(entry.path, string.format("carries the mark of %s %s: it was copied or renamed, and"
      .. " is not this stack's", mark.noun, mark.name))
    return nil, true
  end
  return mark, false
end

local function new_subject(this, entry)
  local data, project = observe.find(this.observed, entry)
  local subject = { entry = entry, project = project, data = data }
  this.subjects[chain.base(entry.kind.section, project, entry.name)] = subject
  this.by_entry[entry] = subject
  if data then
    subject.mark, subject.copied = read_mark(this, entry, data, project)
    if not entry.absent then
      subject.difference = diff.compare(entry, data, subject.mark)
      if #subject.difference.edits > 0 then
        subject.body = diff.body(entry.kind, data, subject.difference.edits)
      end
    end
  end
  if not entry.absent then
    reference.check(this, subject)
  end
  return subject
end

-- What instances can inherit, before and after this plan: found when first asked for.
local function profile_look(this, project)
  local effective = observe.effective(this.observed, "features.profiles", project)
  local changes = this.profile_changes[effective]
  if not changes then
    changes = {}
    this.profile_changes[effective] = changes
  end
  return function(name)
    if changes[name] == nil then
      local subject = this.subjects[chain.base("profiles", effective, name)]
      local objects = this.observed.objects.profiles[effective]
      local before = objects and objects[name]
      local after = before
      if subject and not subject.data then
        after = diff.body(subject.entry.kind, {}, diff.initial(subject.entry))
      elseif subject then
        after = subject.body or before
      end
      changes[name] = impact.profile_change(before, after)
    end
    return changes[name]
  end
end

local function networks_of(this, project)
  local networks = this.observed.networks
  return networks and networks[observe.effective(this.observed, "features.networks", project)]
end

-- Instances that run and inherit something that this plan changes: what it means to each.
local function weigh_instances(this)
  local changed = false
  for _, subject in pairs(this.subjects) do
    changed = changed or not subject.entry.kind.runs and (subject.body ~= nil)
  end
  for _, kind in ipairs(kinds.list) do
    local by_project = kind.runs and this.observed.objects[kind.section] or {}
    for _, project in ipairs(sorted_keys(by_project)) do
      for _, name in ipairs(sorted_keys(by_project[project])) do
        local data = by_project[project][name]
        local subject = this.subjects[chain.base(kind.section, project, name)]
        local declared = subject and not subject.entry.absent
        if changed or declared and subject.body then
          local result = impact.of(data, declared and subject.body or data,
            profile_look(this, project), networks_of(this, project))
          if result.running then
            this.weighed[#this.weighed + 1] = { data = data, project = project, impact = result,
              subject = declared and subject or nil, kind = kind }
          end
          if declared then
            subject.impact = result
          end
        elseif declared then
          subject.impact = { running = kinds.live_states[data.status] == "running", config = {},
            devices = {}, other = "none" }
        end
      end
    end
  end
end

-- What a change of a profile does: the worst that any instance notices that runs with it now.
local function give_effects(this, subject)
  if subject.entry.kind.runs or not subject.body then
    return
  end
  local name, users = subject.entry.name, {}
  for _, weighed in ipairs(this.weighed) do
    if observe.effective(this.observed, subject.entry.kind.feature, weighed.project)
      == subject.project then
      for _, used in ipairs(weighed.data.profiles or {}) do
        if used == name then
          users[#users + 1] = weighed
        end
      end
    end
  end
  function subject.effect_at(leaf)
    local worst = "none"
    for _, user in ipairs(users) do
      worst = impact.worse(worst, impact.at(user.impact, leaf))
    end
    return worst
  end
  subject.users = users
end

-- Instances that keep an old value until they are restarted: ours are marked before the profile is
-- changed, the others are only spoken of.
local function note_restarts(this, subject, step)
  local ours, others = {}, {}
  for _, user in ipairs(subject.users or {}) do
    local pending = false
    for _, change in ipairs(step.changes) do
      pending = pending or change.leaf and impact.at(user.impact, change.leaf) == "next_start"
    end
    if pending and user.subject and user.subject.mark then
      ours[#ours + 1] = user.subject
    elseif pending then
      others[#others + 1] = chain.base(user.kind.section, user.project, user.data.name)
    end
  end
  if #ours > 0 then
    this.restarts[step.id] = ours
  end
  if #others > 0 then
    this.note(subject.entry.path, "these keep what they have until they are restarted: "
      .. table.concat(others, ", "))
  end
end

local function add_steps(this, subject, steps)
  for _, step in ipairs(steps) do
    this.steps[#this.steps + 1] = step
    this.last_of[subject] = step
    if step.action == "update" then
      note_restarts(this, subject, step)
    end
    if step.action == "update" or step.action == "replace" then
      this.changed_by[subject] = step
    end
  end
  this.first_of[subject] = steps[1]
end

-- Declared objects in the order of their kinds, and of `after` within one.
local function in_order(declared)
  local order, done = {}, {}
  local function visit(entry)
    if not done[entry] then
      done[entry] = true
      for _, ref in ipairs(entry.after) do
        visit(ref.entry)
      end
      order[#order + 1] = entry
    end
  end
  for _, entry in ipairs(declared.entries) do
    visit(entry)
  end
  return order
end

local function need(step, other)
  if other and other ~= step then
    for _, id in ipairs(step.needs) do
      if id == other.id then
        return
      end
    end
    step.needs[#step.needs + 1] = other.id
    table.sort(step.needs)
  end
end

-- An object's first step waits for what it refers to, and for what the declaration puts before it.
local function connect(this, subject)
  local first = this.first_of[subject]
  if not first then
    return
  end
  for _, ref in ipairs(subject.entry.after) do
    need(first, this.last_of[this.by_entry[ref.entry]])
  end
  if subject.entry.kind.runs then
    local effective = observe.effective(this.observed, "features.profiles", subject.project)
    for _, name in ipairs(reference.profiles(subject)) do
      local used = this.subjects[chain.base("profiles", effective, name)]
      need(first, used and this.last_of[used])
    end
  end
end

-- Owned objects that are no longer declared. Those in projects that this declaration says
-- nothing of count only if they were declared from here: another project's client may have a
-- stack of this name.
local function find_orphans(this)
  local orphans = {}
  for _, kind in ipairs(kinds.list) do
    local by_project = this.observed.objects[kind.section] or {}
    for _, project in ipairs(sorted_keys(by_project)) do
      for _, name in ipairs(sorted_keys(by_project[project])) do
        local data = by_project[project][name]
        local base = chain.base(kind.section, project, name)
        local mark = not this.subjects[base]
          and marker.read(data.config, this.declared.stack, kind.noun, project, name)
        if mark and mark.whose == "ours"
          and (this.in_scope[project] or mark.home == this.observed.home) then
          local entry = { kind = kind, name = name, leaves = {}, after = {}, secrets = {},
            path = kind.section .. "." .. name }
          local subject = { entry = entry, project = project, data = data, mark = mark }
          orphans[#orphans + 1] = subject
          this.orphans[#this.orphans + 1] = { kind = kind.section, project = project, name = name,
            keep = mark.keep }
          if this.policy.prune then
            this.subjects[base] = subject
          end
        end
      end
    end
  end
  return orphans
end

-- An object that the server deletes only when nobody uses it: its users' steps come first, and
-- users that stay keep it.
local function wait_for_users(this, subject, step)
  local staying = {}
  for _, url in ipairs(subject.entry.kind.used_by and subject.data.used_by or {}) do
    local name = options.unescape(url:match("^/1%.0/[^/]+/([^/?]+)") or url)
    local project = url:match("[?&]project=([^&]+)")
    project = project and options.unescape(project) or "default"
    local user
    for _, kind in ipairs(kinds.list) do
      user = user or kind.runs and this.subjects[chain.base(kind.section, project, name)]
    end
    local leaves = user and this.leaves(user, subject)
    if leaves then
      need(step, leaves)
    else
      staying[#staying + 1] = name
    end
  end
  if #staying > 0 and not step.blocked then
    table.sort(staying)
    step.blocked = "in use by " .. table.concat(staying, ", ")
  end
end

local function add_removals(this, subjects)
  -- Users before what they use.
  table.sort(subjects, function(a, b)
    if a.entry.kind.rank ~= b.entry.kind.rank then
      return a.entry.kind.rank > b.entry.kind.rank
    elseif a.project ~= b.project then
      return a.project < b.project
    end
    return a.entry.name < b.entry.name
  end)
  for _, subject in ipairs(subjects) do
    local steps = chain.removal(subject, this.policy)
    add_steps(this, subject, steps)
    this.removed[subject] = steps[#steps]
    wait_for_users(this, subject, steps[#steps])
  end
end

-- Splits what may be run from what may not.
local function gate(this)
  local reasons, result = {}, { steps = {}, blocked = {} }
  for _, step in ipairs(this.steps) do
    local reason = step.blocked
    if not reason and step.danger > this.policy.allow then
      reason = string.format("danger %d; needs allow = %d", step.danger, step.danger)
    end
    for _, id in ipairs(step.needs) do
      reason = reason or reasons[id] and "waits for " .. id .. ", which is blocked"
    end
    step.blocked = reason
    reasons[step.id] = reason
    local list = reason and result.blocked or result.steps
    list[#list + 1] = step
  end
  return result.steps, result.blocked
end

local function by_path(a, b)
  if a.path ~= b.path then
    return a.path < b.path
  end
  return a.message < b.message
end

---@param declared lualxd.reconcile.declared
---@param observed lualxd.reconcile.observed
---@param policy table prune, allow, adopt_existing, verify, replace_on_image
---@return lualxd.reconcile.planned?
---@return lualxd.error? err of kind `invalid`: what only looking could tell
function plan.build(declared, observed, policy)
  local mistakes = {}
  local this = {
    declared = declared, observed = observed, policy = policy,
    subjects = {}, by_entry = {}, profile_changes = {}, weighed = {}, steps = {}, first_of = {},
    last_of = {}, changed_by = {}, removed = {}, restarts = {}, orphans = {}, notes = {},
    in_scope = {},
  }
  function this.fail(path, message)
    mistakes[#mistakes + 1] = { path = path, message = message }
  end
  function this.note(path, message)
    this.notes[#this.notes + 1] = { path = path, message = message }
  end
  -- The step after which an instance no longer uses something, if it has one.
  function this.leaves(user, used)
    if this.removed[user] then
      return this.removed[user]
    end
    for _, name in ipairs(reference.profiles(user)) do
      if name == used.entry.name then
        return nil
      end
    end
    return this.changed_by[user]
  end
  local order = in_order(declared)
  for _, entry in ipairs(order) do
    new_subject(this, entry)
  end
  if #mistakes > 0 then
    return nil, declaration.mistakes(mistakes)
  end
  for project in pairs(observed.scope) do
    this.in_scope[project] = true
  end
  local orphans = find_orphans(this)
  weigh_instances(this)
  for _, subject in pairs(this.subjects) do
    give_effects(this, subject)
  end
  local removals = {}
  for _, entry in ipairs(order) do
    local subject = this.by_entry[entry]
    if entry.absent then
      removals[#removals + 1] = subject.data and subject or nil
    else
      local files = observed.files[subject.project]
      local snapshots = observed.snapshots[subject.project]
      local busy = observed.busy[subject.project]
      add_steps(this, subject, chain.of(subject, policy, {
        files = files and files[entry.name],
        snapshots = snapshots and snapshots[entry.name],
        busy = busy and busy[entry.name],
      }))
      connect(this, subject)
    end
  end
  for _, subject in ipairs(policy.prune and orphans or {}) do
    local entry = subject.entry
    if entry.kind.fixed and entry.kind.fixed[entry.name] then
      subject.difference = diff.compare(entry, subject.data, subject.mark)
      add_steps(this, subject, chain.release(subject, policy))
    elseif not subject.mark.keep then
      removals[#removals + 1] = subject
    end
  end
  add_removals(this, removals)
  local steps, blocked = gate(this)
  for _, step in ipairs(this.steps) do
    for _, change in ipairs(step.changes) do
      change.leaf = nil -- it holds the value, which may be a secret
    end
  end
  table.sort(this.notes, by_path)
  return {
    stack = declared.stack,
    declared = #declared.entries,
    steps = steps,
    blocked = blocked,
    orphans = this.orphans,
    notes = this.notes,
    subjects = this.subjects,
    restarts = this.restarts,
    look = function(project)
      return profile_look(this, project)
    end,
  }
end

return plan
