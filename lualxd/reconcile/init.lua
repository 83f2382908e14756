-- What reconciling adds to a client: `plan` and `apply`.
local options = require "lualxd.options"
local apply = require "lualxd.reconcile.apply"
local declaration = require "lualxd.reconcile.declaration"
local observe = require "lualxd.reconcile.observe"
local build = require "lualxd.reconcile.plan".build
local render = require "lualxd.reconcile.render"
local session = require "lualxd.reconcile.session"

local reconcile = {}

---@class lualxd.plan what would be done; `print` shows it
---@field stack string
---@field empty boolean nothing is to be done, and nothing is kept from being done
---@field steps lualxd.reconcile.step[] what `apply` does, in an order in which it could be done
---@field blocked lualxd.reconcile.step[] what it doesn't, each with `blocked`, the reason
---@field orphans table[] owned and no longer declared: `kind`, `project`, `name`, `keep`
---@field notes { path: string, message: string }[] what is worth knowing
local methods = {}
local meta = { __name = "lualxd.plan", __index = methods }

local hidden = setmetatable({}, { __mode = "k" }) -- plan -> what apply needs of it

local PLAN = { prune = "boolean", allow = "integer", adopt_existing = "boolean",
  verify = "string", replace_on_image = "boolean" }
local APPLY = { parallel = "integer", progress = "callable" }

local function check_policy(given, who)
  if given.allow and (given.allow < 0 or given.allow > 4) then
    error(who .. ": option 'allow' must be from 0 to 4", 3)
  elseif given.verify and given.verify ~= "files" then
    error(who .. ": option 'verify' must be \"files\"", 3)
  end
  return { prune = given.prune or false, allow = given.allow or 2,
    adopt_existing = given.adopt_existing or false, verify = given.verify,
    replace_on_image = given.replace_on_image or false }
end

local function check_apply(given, who)
  if given.parallel and given.parallel < 1 then
    error(who .. ": option 'parallel' must be at least 1", 3)
  end
end

local function look(client, declared, policy)
  local observed, err = observe.read(client, declared, policy)
  if not observed then
    return nil, err
  end
  local planned
  planned, err = build(declared, observed, policy)
  if not planned then
    return nil, err
  end
  return planned, observed
end

local function new(client, declared, policy)
  local planned, observed = look(client, declared, policy)
  if not planned then
    return nil, observed
  end
  local plan = setmetatable({
    stack = planned.stack,
    steps = planned.steps,
    blocked = planned.blocked,
    orphans = planned.orphans,
    notes = planned.notes,
    empty = #planned.steps == 0 and #planned.blocked == 0,
  }, meta)
  hidden[plan] = { client = client, declared = declared, policy = policy, planned = planned,
    observed = observed }
  return plan
end

local function data_of(plan)
  local kept = hidden[plan]
  return { stack = plan.stack, steps = plan.steps, blocked = plan.blocked, orphans = plan.orphans,
    notes = plan.notes, empty = plan.empty, declared = kept.planned.declared,
    prune = kept.policy.prune }
end

---The plan for people.
---@param settings { color: boolean? }? with colours, for a terminal
---@return string
function methods:text(settings)
  settings = options.check(settings, { color = "boolean" }, "plan:text")
  return render.text(data_of(self), settings.color)
end

meta.__tostring = function(self)
  return render.text(data_of(self))
end

---The plan as JSON, the same bytes for the same plan.
---@return string
function methods:json()
  return render.json(data_of(self))
end

-- How often to look again at what changed while it was worked on.
local ROUNDS = 3

-- The objects whose steps didn't fit the world any more, and those that only waited for them.
local function unfitting(report, old)
  local wanted, again, lost = {}, {}, false
  for _, err in pairs(report.errors) do
    lost = lost or not err.replan
  end
  for _, step in ipairs(old.steps) do
    local err, state = report.errors[step.id], report.steps[step.id]
    local due = err ~= nil and err.replan or state == "skipped" and not (lost and step.action == "delete")
    for _, id in ipairs(state == "skipped" and step.needs or {}) do
      due = due and (report.steps[id] == "done" or again[id])
    end
    again[step.id] = due or nil
    wanted[step.id:match("^(.-):")] = due or wanted[step.id:match("^(.-):")]
  end
  return wanted
end

-- Steps of a new plan for some objects.
local function narrowed(planned, wanted)
  local steps, ids = {}, {}
  for _, step in ipairs(planned.steps) do
    if wanted[step.id:match("^(.-):")] then
      steps[#steps + 1] = step
      ids[step.id] = true
    end
  end
  for _, step in ipairs(steps) do
    local needs = {}
    for _, id in ipairs(step.needs) do
      needs[#needs + 1] = ids[id] and id or nil
    end
    step.needs = needs
  end
  planned.steps = steps
end

-- Objects that somebody changed under our hands are planned anew, by the same policy.
local function run_again(kept, report, settings)
  local planned = kept.planned
  for _ = 2, ROUNDS do
    local due = false
    for _, err in pairs(report.errors) do
      due = due or err.replan
    end
    local again, observed = nil, nil
    if due then
      again, observed = look(kept.client, kept.declared, kept.policy)
    end
    if not again then
      return
    end
    local wanted, blocked = unfitting(report, planned), {}
    narrowed(again, wanted)
    for _, step in ipairs(again.blocked) do
      blocked[step.id] = true
    end
    if #again.steps == 0 and next(blocked) then
      return
    end
    local this = session.new(kept.client, kept.declared, observed, kept.policy, again)
    local more = apply.run(again, this, settings)
    for _, step in ipairs(kept.planned.steps) do
      if wanted[step.id:match("^(.-):")] and not more.steps[step.id] and not blocked[step.id] then
        -- It isn't in the new plan: there is nothing left of it to do.
        report.steps[step.id], report.errors[step.id] = "done", nil
      end
    end
    for id, state in pairs(more.steps) do
      report.steps[id], report.errors[id] = state, more.errors[id]
    end
    planned = again
  end
end

---Does what the plan says. Everything is looked at again before it is changed; a plan may be
---applied late, and twice.
---@param settings table? `parallel`: steps at once (8); `progress`: a function that gets
---`{ step, state, percent, err }` and must not wait
---@return lualxd.reconcile.report? report
---@return lualxd.error? err with `report`
function methods:apply(settings)
  settings = options.check(settings, APPLY, "plan:apply")
  check_apply(settings, "plan:apply")
  local kept = hidden[self]
  local this = session.new(kept.client, kept.declared, kept.observed, kept.policy, kept.planned)
  local report = apply.run(kept.planned, this, settings)
  run_again(kept, report, settings)
  local err = apply.error_of(kept.planned, report)
  if err then
    return nil, err
  end
  return report
end

---Compares what is declared with what is there. Reads only.
---@param client lualxd.client
---@param source table the declaration
---@param settings table? `prune`, `allow` (2), `adopt_existing`, `verify` ("files"),
---`replace_on_image`
---@return lualxd.plan?
---@return lualxd.error? err of kind `invalid` for mistakes in the declaration, all in `errors`
function reconcile.plan(client, source, settings)
  options.argument(source, "table", "client:plan: declaration")
  settings = options.check(settings, PLAN, "client:plan")
  local policy = check_policy(settings, "client:plan")
  local declared, err = declaration.read(source)
  if not declared then
    return nil, err
  end
  return new(client, declared, policy)
end

---Plans, and does what the plan says.
---@param client lualxd.client
---@param source table the declaration
---@param settings table? of `plan` and of `plan:apply`
---@return lualxd.reconcile.report? report
---@return lualxd.error? err
function reconcile.apply(client, source, settings)
  options.argument(source, "table", "client:apply: declaration")
  local known = {}
  for _, list in ipairs { PLAN, APPLY } do
    for name, kinds in pairs(list) do
      known[name] = kinds
    end
  end
  settings = options.check(settings, known, "client:apply")
  local policy = check_policy(settings, "client:apply")
  check_apply(settings, "client:apply")
  local declared, err = declaration.read(source)
  if not declared then
    return nil, err
  end
  local plan
  plan, err = new(client, declared, policy)
  if not plan then
    return nil, err
  end
  return plan:apply { parallel = settings.parallel, progress = settings.progress }
end

return reconcile
