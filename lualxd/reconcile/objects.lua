-- The steps that make, change and take away objects. Each looks at the object as it is now and
-- does what is left to do, so that it may be run again after anything.
local diff = require "lualxd.reconcile.diff"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"
local runtime = require "lualxd.reconcile.runtime"
local session = require "lualxd.reconcile.session"
local values = require "lualxd.reconcile.values"

local objects = {}

-- What the mark of an object says once it is as its entry wants it. `live`: the state of the one in whose place it is
-- made.
local function initial_mark(this, subject, live)
  local entry = subject.entry
  local mark = marker.new(this.declared.stack, entry.kind.noun, subject.project, entry.name,
    this.observed.home)
  mark.last = diff.compare(entry, {}, mark).last
  mark.keep = entry.keep or false
  if entry.files and #entry.files > 0 then
    mark.todo.files = ""
  end
  local wanted = entry.state and entry.state.text or live
  if entry.ready and wanted == "running" then
    mark.todo.ready = ""
  end
  if (not entry.state or entry.state.word == "ignore") and (wanted == "running" or wanted == "frozen") then
    -- After an interruption nothing that is declared would say that this one is still to be started.
    mark.todo.start, mark.todo.freeze = "", wanted == "frozen" and "" or nil
  end
  return mark
end

local function creation_source(subject)
  local image, resolved = subject.entry.image, subject.image
  local source = { type = "image" }
  for key, value in pairs(image.source or {}) do
    source[key] = value
  end
  if resolved and resolved.fingerprint then
    -- The image that the plan showed, wherever its alias points by now.
    source.alias, source.fingerprint = nil, resolved.fingerprint
  elseif not image.source then
    source.alias = image.text
  end
  return source
end

-- Refusals of a creation after which the object may be there: `busy` says that it is being created.
local MAY_BE_THERE = { exists = true, busy = true, unknown_outcome = true }

-- Sends the creation. `body` has everything but the name and the source.
local function post(this, subject, body, mark, progress)
  local entry = subject.entry
  local client = this:scoped(subject)
  if entry.target then
    client = client:target(entry.target)
  end
  body.name = entry.name
  if entry.kind.runs then
    body.source = creation_source(subject)
  end
  this.created[subject] = mark
  local operation = client[entry.kind.section]:create(body)
  if progress then
    operation:progress(progress)
  end
  local ok, err = operation:wait()
  if ok then
    return true
  elseif not MAY_BE_THERE[err.kind] then
    return nil, err
  end
  -- It is there, or may be: by us, in a request whose answer was lost; by us in another run; or
  -- by somebody.
  this:wait_idle(subject)
  local data, problem = this:node(subject):get()
  if not data then
    return nil, problem.kind == "not_found" and err or problem
  end
  local found = this:mark_of(subject, data)
  if found and found.nonce == mark.nonce then
    return true
  elseif found then
    this.created[subject] = nil
    return objects.update(this, { danger = 0 }, subject)
  end
  return nil, session.conflict(subject, "it exists by now, and is not this stack's")
end

-- Creates, and gives it the declared architecture: the server takes the image's, whatever a creation asks for (5.0.2).
local function make(this, step, subject, body, mark, progress)
  local ok, err = post(this, subject, body, mark, progress)
  local wanted
  for _, leaf in ipairs(subject.entry.leaves) do
    wanted = leaf.field == "architecture" and leaf.text and leaf or wanted
  end
  if not ok or not wanted then
    return ok, err
  end
  return this:edit(subject, function(data, found)
    if not found then
      return nil, session.conflict(subject, "it is no longer this stack's")
    elseif values.canonical(wanted.value, data.architecture) == values.canonical(wanted.value, wanted.text) then
      return {}
    end
    return { { field = "architecture", text = wanted.text } }
  end, step)
end

function objects.create(this, step, subject, progress)
  local mark = initial_mark(this, subject)
  local body = diff.body(subject.entry.kind, {}, diff.initial(subject.entry), marker.keys(mark))
  return make(this, step, subject, body, mark, progress)
end

-- The edits that are due, and the mark after them.
local function due(this, subject, data, mark)
  local difference = diff.compare(subject.entry, data, mark)
  mark.last, mark.keep = difference.last, difference.keep
  local state = session.state(data)
  if mark.todo.restart ~= data.last_used_at then
    mark.todo.restart = nil -- it was restarted since
  end
  if state == "running" or state == "frozen" then
    mark.todo.start = nil
  end
  if state == "frozen" then
    mark.todo.freeze = nil
  end
  if #difference.edits > 0 and subject.entry.kind.runs then
    local body = diff.body(subject.entry.kind, data, difference.edits)
    if this:impact_of(subject, data, body).restart then
      mark.todo.restart = data.last_used_at or ""
    end
  end
  return difference.edits, marker.keys(mark)
end

local function edit(this, step, subject)
  return this:edit(subject, function(data, mark)
    if not mark then
      return nil, session.conflict(subject, "it is no longer this stack's")
    end
    return due(this, subject, data, mark)
  end, step)
end

local function has_effect(step, effect)
  for _, change in ipairs(step.changes or {}) do
    if change.effect == effect then
      return true
    end
  end
  return false
end

-- What can be changed only while it is stopped. That it has to be started again is written down
-- before it is stopped.
local function edit_stopped(this, step, subject)
  local ok, err = this:edit_mark(subject, function(mark)
    mark.todo.start = ""
  end)
  if ok then
    ok, err = runtime.halt(this, subject)
  end
  if not ok then
    return nil, err
  end
  ok, err = edit(this, step, subject)
  local started, problem = runtime.begin(this, subject)
  if not ok or not started then
    return nil, err or problem
  end
  return this:edit_mark(subject, function(mark)
    mark.todo.start = nil
  end)
end

---@param this lualxd.reconcile.session
---@param step lualxd.reconcile.step
---@param subject lualxd.reconcile.subject
function objects.update(this, step, subject)
  -- Instances that inherit what is going to be changed, and must be restarted for it, are
  -- marked first: after a crash nothing else would remember.
  for _, user in ipairs(this.planned.restarts[step.id or ""] or {}) do
    local ok, err = this:edit_mark(user, function(mark, data)
      if session.state(data) ~= "stopped" then
        mark.todo.restart = data.last_used_at or ""
      end
    end)
    if not ok then
      return nil, err
    end
  end
  if has_effect(step, "stop") then
    return edit_stopped(this, step, subject)
  end
  return edit(this, step, subject)
end

function objects.adopt(this, _, subject)
  return this:edit(subject, function(data, mark)
    if mark then
      return {} -- by another run of ours
    end
    local entry = subject.entry
    local other = marker.read(data.config, this.declared.stack, entry.kind.noun, subject.project,
      entry.name)
    if other and other.whose == "theirs" then
      return nil, session.conflict(subject, "it belongs to the stack " .. other.stack .. " by now")
    end
    mark = marker.new(this.declared.stack, entry.kind.noun, subject.project, entry.name,
      this.observed.home)
    local difference = diff.compare(entry, data, mark)
    mark.keep, mark.last = difference.keep, difference.last
    for _, id in ipairs(difference.differing) do
      mark.last[id] = nil -- not ours before it is as declared
    end
    return {}, marker.keys(mark)
  end)
end

function objects.release(this, step, subject)
  return this:edit(subject, function(data, mark)
    if not mark then
      return {}
    end
    return diff.compare(subject.entry, data, mark).edits,
      { [marker.OWNER] = "", [marker.LAST] = "", [marker.TODO] = "" }
  end, step)
end

-- Reads an object that is to go, and makes sure that it is still ours.
local function owned(this, subject)
  local data, err = this:node(subject):get()
  if not data then
    return nil, err
  end
  local mark = this:mark_of(subject, data)
  if not mark then
    return nil, session.conflict(subject, "it is no longer this stack's")
  end
  return data, mark
end

function objects.delete(this, _, subject)
  local data, err = owned(this, subject)
  if not data then
    return err.kind == "not_found", err.kind ~= "not_found" and err or nil
  end
  local runs = subject.entry.kind.runs
  local ok, problem = this:patiently(subject, function()
    return this:node(subject):delete(runs and session.state(data) ~= "stopped"
      and { force = true } or nil):wait()
  end)
  if not ok and problem.kind == "unknown_outcome" then
    local there, why = this:node(subject):exists()
    return there == false, there ~= false and (why or problem) or nil
  end
  return (ok or problem.kind == "not_found") and true or nil,
    problem and problem.kind ~= "not_found" and problem or nil
end

-- What of an object a new one in its place gets: everything that isn't the server's, and the
-- hardware addresses, by which others know it.
local function carried(data)
  local config = {}
  for key, value in pairs(data.config or {}) do
    local keeps = not key:find("^volatile%.") and not key:find("^image%.")
      and not key:find("^user%.lualxd%.")
    if keeps or key:find("^volatile%..*%.hwaddr$") then
      config[key] = value
    end
  end
  return { config = config, devices = data.devices, profiles = data.profiles,
    description = data.description, ephemeral = data.ephemeral }
end

function objects.replace(this, step, subject, progress)
  local data, old = owned(this, subject)
  if not data then
    return nil, old.kind == "not_found" and session.conflict(subject, "it is gone") or old
  elseif kinds.half_made(subject.data) and not kinds.half_made(data) then
    return nil, session.conflict(subject, "its creation came to its end after all")
  end
  local kept = carried(data)
  local edits = diff.compare(subject.entry, kept, old).edits
  local mark = initial_mark(this, subject, session.state(data))
  local body = diff.body(subject.entry.kind, kept, edits, marker.keys(mark))
  local ok, err = objects.delete(this, step, subject)
  if not ok then
    return nil, err
  end
  return make(this, step, subject, body, mark, progress)
end

return objects
