-- Runs a plan: each step when what it needs is done, several at once. What can't be done is
-- told and doesn't keep others from being done; only deletions wait for everything else to have
-- gone well.
local errors = require "lualxd.error"
local task = require "lualxd.task"
local objects = require "lualxd.reconcile.objects"
local runtime = require "lualxd.reconcile.runtime"
local chain = require "lualxd.reconcile.chain"
local kinds = require "lualxd.reconcile.kinds"
local session = require "lualxd.reconcile.session"

local apply = {}

local ACTIONS = {
  create = objects.create, update = objects.update, replace = objects.replace,
  adopt = objects.adopt, release = objects.release, delete = objects.delete,
  push = runtime.push, start = runtime.start, stop = runtime.stop, restart = runtime.restart,
  exec = runtime.exec, snapshot = runtime.snapshot,
}

---@class lualxd.reconcile.report
---@field steps table<string, "done"|"failed"|"skipped"|"unknown"> by a step's id
---@field errors table<string, lualxd.error> of the failed and the unknown ones, by id

---@class lualxd.reconcile.event what `progress` is told
---@field step lualxd.reconcile.step
---@field state "running"|"progress"|"done"|"failed"|"skipped"|"unknown"
---@field percent number?
---@field err lualxd.error?

-- One run of a plan's steps.
local run = {}
local meta = { __index = run }

function run:tell(step, state, percent, err)
  if self.progress then
    self.progress { step = step, state = state, percent = percent, err = err }
  end
end

-- A creation or a restart that another run began and didn't see the end of may still be under way: nothing may be done
-- to the object before. (What is written to a container between its stop and its start may get the owner of other ids.)
local function settle_first(self, subject)
  if self.settled[subject] or self.session.created[subject] or not subject.mark then
    return
  end
  self.settled[subject] = true
  local todo, last_used = subject.mark.todo, subject.data.last_used_at
  if todo.files or last_used and (todo.restart == last_used or kinds.never_started(subject.data)) then
    self.session:wait_idle(subject)
  end
end

local function execute(self, step)
  local subject = self.planned.subjects[chain.base(step.kind, step.project, step.name)]
  if step.action ~= "create" then
    settle_first(self, subject)
  end
  local progress = self.progress and function(p)
    self:tell(step, "progress", p.percent)
  end
  local ok, err = ACTIONS[step.action](self.session, step, subject, progress)
  if ok then
    return true
  end
  return nil, self.session:scrub(err)
end

function run:finish(step, state, err)
  self.report.steps[step.id] = state
  self.report.errors[step.id] = err
  self.left = self.left - 1
  if state ~= "done" then
    self.good = false
  end
  self:tell(step, state, state == "done" and 100 or nil, err)
  for _, other in ipairs(self.waiting[step.id] or {}) do
    self.missing[other.id] = self.missing[other.id] - 1
    if state ~= "done" then
      self.doomed[other.id] = true
    end
    if self.missing[other.id] == 0 then
      self:release(other)
    end
  end
end

-- A step whose needs have all ended, well or not.
function run:release(step)
  if self.doomed[step.id] then
    self:finish(step, "skipped")
  elseif step.action == "delete" then
    self.deletions[#self.deletions + 1] = step
  else
    self.ready[#self.ready + 1] = step
  end
end

-- Deletions come last, and only if nothing else failed: what replaces them must be there.
function run:release_deletions()
  local steps = self.deletions
  if self.active > 0 or self.at <= #self.ready or #steps == 0 then
    return
  end
  self.deletions = {}
  local good = self.good or self.deleting
  self.deleting = true
  for _, step in ipairs(steps) do
    if good then
      self.ready[#self.ready + 1] = step
    else
      self:finish(step, "skipped")
    end
  end
end

-- Starts what can be started. A step may end before `spawn` returns; what that makes possible
-- is started by the call that is under way, so that nothing nests.
function run:pump()
  if self.pumping then
    return
  end
  self.pumping = true
  self:release_deletions()
  while self.active < self.parallel and self.at <= #self.ready do
    local step = self.ready[self.at]
    self.at = self.at + 1
    self.active = self.active + 1
    task.spawn(function()
      self:tell(step, "running")
      local ok, err = execute(self, step)
      self.active = self.active - 1
      if ok then
        self:finish(step, "done")
      else
        self:finish(step, err.kind == "unknown_outcome" and "unknown" or "failed", err)
      end
      self:pump()
    end)
    self:release_deletions()
  end
  self.pumping = false
end

---@param planned lualxd.reconcile.planned
---@param this lualxd.reconcile.session
---@param settings { parallel: integer?, progress: function? }
---@return lualxd.reconcile.report
function apply.run(planned, this, settings)
  local self = setmetatable({
    planned = planned, session = this, progress = settings.progress,
    parallel = settings.parallel or 8,
    report = { steps = {}, errors = {} },
    waiting = {}, -- id -> steps that need it
    missing = {}, -- id -> how many of its needs haven't ended
    doomed = {}, -- id -> one of its needs went wrong
    ready = {}, at = 1, active = 0, left = #planned.steps,
    deletions = {}, deleting = false, good = true, pumping = false,
    settled = {},
  }, meta)
  for _, step in ipairs(planned.steps) do
    self.missing[step.id] = #step.needs
    for _, id in ipairs(step.needs) do
      self.waiting[id] = self.waiting[id] or {}
      table.insert(self.waiting[id], step)
    end
  end
  for _, step in ipairs(planned.steps) do
    if self.missing[step.id] == 0 then
      self:release(step)
    end
  end
  if self.left > 0 then
    local ok, problem = pcall(task.run, function()
      self:pump()
    end)
    if not ok then
      self.parallel = 0 -- a script that is interrupted, or a `progress` that raises: begin no more
      error(problem, 0)
    end
  end
  return self.report
end

---The error of a run of which not everything was done.
---@param planned lualxd.reconcile.planned
---@param report lualxd.reconcile.report
---@return lualxd.error?
function apply.error_of(planned, report)
  local failed, first = 0, nil
  for _, step in ipairs(planned.steps) do
    local state = report.steps[step.id]
    if state == "failed" or state == "unknown" then
      failed = failed + 1
      first = first or step.id .. ": " .. tostring(report.errors[step.id])
    end
  end
  if failed == 0 then
    return nil
  end
  return errors.new("many", {
    message = string.format("%d of %d steps failed; first: %s", failed, #planned.steps, first),
    errors = report.errors,
    report = report,
  })
end

apply.session = session.new

return apply
