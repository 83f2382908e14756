-- What the steps of an apply share: reaching an object, reading it with its mark, and editing
-- it so that nobody's change is lost and no step does more than was allowed.
local core = require "lualxd.core"
local errors = require "lualxd.error"
local task = require "lualxd.task"
local diff = require "lualxd.reconcile.diff"
local effects = require "lualxd.reconcile.effects"
local impact = require "lualxd.reconcile.impact"
local kinds = require "lualxd.reconcile.kinds"
local marker = require "lualxd.reconcile.marker"
local observe = require "lualxd.reconcile.observe"
local values = require "lualxd.reconcile.values"

local session = {}

---@class lualxd.reconcile.session
---@field client lualxd.client
---@field declared lualxd.reconcile.declared
---@field observed lualxd.reconcile.observed
---@field policy table
---@field planned lualxd.reconcile.planned
---@field created table<lualxd.reconcile.subject, lualxd.reconcile.mark> made in this run, with this mark
---@field secrets string[] longest first
local methods = {}
local meta = { __index = methods }

-- Somebody else is at work on the object: how often, and how long at most, to come back.
local TRIES, PATIENCE = 12, 60

---@param client lualxd.client
---@param declared lualxd.reconcile.declared
---@param observed lualxd.reconcile.observed
---@param policy table
---@param planned lualxd.reconcile.planned
---@return lualxd.reconcile.session
function session.new(client, declared, observed, policy, planned)
  local secrets = {}
  for _, entry in ipairs(declared.entries) do
    for _, text in ipairs(entry.secrets) do
      secrets[#secrets + 1] = text ~= "" and text or nil
    end
  end
  table.sort(secrets, function(a, b)
    if #a ~= #b then
      return #a > #b
    end
    return a < b
  end)
  return setmetatable({ client = client, declared = declared, observed = observed,
    policy = policy, planned = planned, secrets = secrets, created = {} }, meta)
end

---The client in an object's project.
function methods:scoped(subject)
  return observe.scoped(self.client, self.observed.home, subject.project)
end

---The object in the client's tree.
function methods:node(subject)
  return self:scoped(subject)[subject.entry.kind.section](subject.entry.name)
end

---What a person is told when the world isn't what the plan saw any more; `replan` lets apply
---look again.
---@param subject lualxd.reconcile.subject
---@param message string
---@return lualxd.error
function session.conflict(subject, message)
  return errors.new("conflict", {
    tried = subject.entry.kind.noun .. " " .. subject.entry.name,
    message = message,
    hint = "plan again",
    replan = true,
  })
end

-- The words of lualxd itself in an error: programs go by them, whatever a secret may be.
local OURS = { kind = true, request = true, extension = true, hint = true }

-- A server quotes what it refuses: its words may have a secret in them.
local function scrub(value, secrets, depth)
  if type(value) == "string" then
    for _, secret in ipairs(secrets) do
      local from = value:find(secret, 1, true)
      while from do
        value = value:sub(1, from - 1) .. diff.SECRET .. value:sub(from + #secret)
        from = value:find(secret, from + #diff.SECRET, true)
      end
    end
  elseif type(value) == "table" and depth < 6 then
    for key, inner in pairs(value) do
      value[key] = OURS[key] and inner or scrub(inner, secrets, depth + 1)
    end
  end
  return value
end

---Takes the declaration's secrets out of an error.
---@param err any
---@return any
function methods:scrub(err)
  return #self.secrets > 0 and scrub(err, self.secrets, 0) or err
end

---The mark of an object that was just read, if it is ours.
---@param subject lualxd.reconcile.subject
---@param data table
---@return lualxd.reconcile.mark?
function methods:mark_of(subject, data)
  local mark = marker.read(data.config, self.declared.stack, subject.entry.kind.noun,
    subject.project, subject.entry.name)
  return mark and mark.whose == "ours" and mark or nil
end

---Waits until the server has no operation under way that is about the object.
---@param subject lualxd.reconcile.subject
---@return boolean waited there was one
function methods:wait_idle(subject)
  local scoped = self:scoped(subject)
  local list = scoped.operations:list()
  for _, operation in ipairs(list or {}) do
    if observe.is_about(operation, subject.entry) then
      scoped:request("GET", "/1.0/operations/" .. operation.id .. "/wait",
        { query = { timeout = PATIENCE } })
      return true
    end
  end
  return false
end

---Tries again while the object is busy with somebody else's change.
---@param subject lualxd.reconcile.subject
---@param f fun(): any, lualxd.error?
---@return any result
---@return lualxd.error? err
function methods:patiently(subject, f)
  local deadline = core.now() + PATIENCE
  local result, err
  for try = 1, TRIES do
    result, err = f()
    if not err or err.kind ~= "busy" or core.now() >= deadline then
      break
    elseif not self:wait_idle(subject) then
      task.sleep(0.05 * try * (0.5 + math.random()))
    end
  end
  return result, err
end

---@param subject lualxd.reconcile.subject
---@return table? data
---@return string|lualxd.error etag_or_err
function methods:read(subject)
  local data, etag = self:node(subject):get()
  if not data and etag.kind == "not_found" then
    return nil, session.conflict(subject, "it is gone")
  end
  return data, etag
end

-- What an instance saw of a part when the plan was made, but for what was changed in the instance
-- itself since. What its profiles became meanwhile was weighed with the profiles; that it passes
-- through a value on the way to another must not count.
local function seen(part, subject, data)
  local expanded = "expanded_" .. part
  local planned = subject.data
  if not planned then
    return data[expanded]
  end
  local made = {}
  for _, source in ipairs { planned[expanded] or {}, data[expanded] or {} } do
    for key in pairs(source) do
      local unchanged = not values.differs((planned[part] or {})[key], (data[part] or {})[key])
      made[key] = (unchanged and planned or data)[expanded][key]
    end
  end
  return made
end

---What edits mean to the object as it is now.
---@param subject lualxd.reconcile.subject of what runs
---@param data table
---@param body table
---@return lualxd.reconcile.impact
function methods:impact_of(subject, data, body)
  local networks = self.observed.networks and self.observed.networks[observe.effective(
    self.observed, "features.networks", subject.project)]
  local as_seen = { status = data.status, config = data.config, devices = data.devices,
    profiles = data.profiles, architecture = data.architecture,
    expanded_config = seen("config", subject, data),
    expanded_devices = seen("devices", subject, data) }
  return impact.of(as_seen, body, self.planned.look(subject.project), networks)
end

-- What an edit of what instances inherit can mean to one of them, at worst.
local function effect_at_worst(this, subject, data, body, edit)
  if edit.device then
    local networks = this.observed.networks and this.observed.networks[observe.effective(
      this.observed, "features.networks", subject.project)]
    return effects.device((data.devices or {})[edit.device], body.devices[edit.device], networks)
  end
  return edit.field == "config" and effects.config(edit.key) or "none"
end

-- How bad edits are, and whether what inherits them may have to be restarted for it. Those that the plan showed were
-- weighed by it; more of them are due where somebody has changed meanwhile what is declared.
local function danger_of(this, subject, data, body, edits, step)
  local runs = subject.entry.kind.runs
  local danger = runs and effects.danger[impact.worst(this:impact_of(subject, data, body))] or 0
  local shown, restart = {}, false
  for _, change in ipairs(step and step.changes or {}) do
    shown[change.path] = true
  end
  for _, edit in ipairs(edits) do
    local path = edit.field .. (edit.device and "." .. edit.device or "") .. (edit.key and "." .. edit.key or "")
    local device = edit.device and (data.devices or {})[edit.device]
    local changes = not (device and edit.key and device[edit.key] == edit.text)
    if changes and not shown[path] then
      local effect = runs and "none" or effect_at_worst(this, subject, data, body, edit)
      danger = math.max(danger, effects.least(path), effects.danger[effect])
      restart = restart or effect == "next_start"
    end
  end
  return danger, restart
end

---Gets the object, lets `f` say what is to become of it, and puts it; again when it changed
---meanwhile.
---@param subject lualxd.reconcile.subject
---@param f fun(data: table, mark: lualxd.reconcile.mark?): table?, table gives edits and the keys
---of the new mark; nil, err to give up
---@param step lualxd.reconcile.step? with what the plan showed; more danger than its, and than what is allowed, isn't
---sent
---@return boolean? ok
---@return lualxd.error? err
function methods:edit(subject, f, step)
  local kind = subject.entry.kind
  local err
  for try = 1, TRIES do
    local data, etag = self:read(subject)
    if not data then
      return nil, etag
    end
    local edits, marks = f(data, self:mark_of(subject, data))
    if not edits then
      return nil, marks
    end
    local body = diff.body(kind, data, edits, marks)
    local danger, restart = 0, false
    if #edits > 0 then
      danger, restart = danger_of(self, subject, data, body, edits, step)
    end
    if danger > math.max(step and step.danger or 0, self.policy.allow) then
      return nil, session.conflict(subject, "it changed meanwhile, and what it needs now is of"
        .. " danger " .. danger)
    elseif restart then
      return nil, session.conflict(subject, "it changed meanwhile, and what uses it may need a restart now")
    end
    local same = #edits == 0
    for key, text in pairs(marks or {}) do
      same = same and ((data.config or {})[key] or "") == text
    end
    if same then
      return true
    end
    local ok
    ok, err = self:node(subject):put(body, etag):wait()
    if ok then
      return true
    elseif err.kind == "busy" then
      self:wait_idle(subject)
    elseif err.kind ~= "conflict" and err.kind ~= "unknown_outcome" then
      return nil, err
    end
    -- After an unknown outcome the next look tells whether there is anything left to do.
    task.sleep(0.01 * try * (0.5 + math.random()))
  end
  return nil, err
end

---Changes nothing but the mark of an object of ours.
---@param subject lualxd.reconcile.subject
---@param f fun(mark: lualxd.reconcile.mark, data: table)
---@return boolean? ok
---@return lualxd.error? err
function methods:edit_mark(subject, f)
  return self:edit(subject, function(data, mark)
    if not mark then
      return nil, session.conflict(subject, "it is no longer this stack's")
    end
    f(mark, data)
    return {}, marker.keys(mark)
  end)
end

---The state of what was just read.
---@param data table
---@return string? state running, stopped, frozen; nil: something in between
function session.state(data)
  return kinds.live_states[data.status]
end

return session
