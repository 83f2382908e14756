-- run, spawn, join, sleep, map: doing several things at once in one Lua state.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"
local loop = require "lualxd.loop"
local options = require "lualxd.options"

local unpack = table.unpack or unpack

local task = {}

---@class lualxd.task what `spawn` returns
local methods = {}
local meta = { __name = "lualxd.task", __index = methods }

function meta:__tostring()
  return "lualxd.task (" .. (self.ended.set and (self.failed and "failed" or "done") or "running") .. ")"
end

local groups = setmetatable({}, { __mode = "k" }) -- task or coroutine -> the `run` it belongs to

local function pack(...)
  return { n = select("#", ...), ... }
end

-- A task has ended: its group has when the last one has.
local function over(this, ok, ...)
  local group = this.group
  this.thread = nil
  if ok then
    this.results = pack(...)
  else
    this.failed, this.problem = true, (...)
    group.failures[#group.failures + 1] = this
  end
  loop.fire(this.ended)
  group.count = group.count - 1
  if group.count == 0 then
    loop.fire(group.ended)
  end
end

-- Made by a function that has returned when that may be killed: in nginx one's own variables go with it.
local function killed(this)
  return function()
    over(this, false, errors.new("cancelled", {
      tried = "task", message = "it was killed, together with the request that it ran in",
    }))
  end
end

local function start(group, f, ...)
  local arguments = pack(...)
  local this = setmetatable({ ended = loop.condition(), group = group, joined = false }, meta)
  group.count = group.count + 1
  loop.fork(function()
    this.thread = loop.identity()
    groups[this.thread] = group
    over(this, pcall(f, unpack(arguments, 1, arguments.n)))
  end, killed(this))
  return this
end

local function new_group()
  return { count = 0, ended = loop.condition(), failures = {} }
end

local function raise_unjoined(group)
  for _, failure in ipairs(group.failures) do
    if not failure.joined then
      error(failure.problem, 0)
    end
  end
end

---Runs `f` as a task and returns what it returned, once it and the tasks that it spawned have ended.
---An error raised in a task that nobody joined is raised again here.
---@param f function
---@param ... any its arguments
---@return any ...
function task.run(f, ...)
  options.argument(f, "callable", "lxd.run: f")
  local group = new_group()
  local root = start(group, f, ...)
  loop.await(group.ended)
  if root.failed then
    error(root.problem, 0)
  end
  raise_unjoined(group)
  return unpack(root.results, 1, root.results.n)
end

---Starts another task beside the running one.
---@param f function
---@param ... any its arguments
---@return lualxd.task
function task.spawn(f, ...)
  options.argument(f, "callable", "lxd.spawn: f")
  local running = loop.identity()
  local group = running and groups[running]
  if not group then
    error("lxd.spawn works inside a task only; start one with lxd.run", 2)
  end
  return start(group, f, ...)
end

---Waits for the end of the task: returns what it returned, raises what it raised.
---@return any ...
function methods:join()
  if self.thread and self.thread == loop.identity() then
    error("task:join: a task can't wait for its own end", 2)
  end
  self.joined = true
  loop.await(self.ended)
  if self.failed then
    error(self.problem, 0)
  end
  return unpack(self.results, 1, self.results.n)
end

---Suspends the task (outside of one: the script) for some seconds.
---@param seconds number
function task.sleep(seconds)
  options.argument(seconds, "seconds", "lxd.sleep: seconds")
  loop.sleep(seconds)
end

local MAP = { parallel = "integer" }

---Calls `f(item, index)` for each item of a list, several at once, and waits for all. An error raised in a task that
---`f` spawned and nobody joined is raised again here.
---@param list any[]
---@param f function fails by `nil, err` or by raising; a lone nil is a result
---@param settings { parallel: integer? }? 8 at once unless told
---@return any[]? results indexed as `list`
---@return lualxd.error? err of kind `many`, with `errors` and `results` indexed as `list`
function task.map(list, f, settings)
  options.argument(list, "table", "lxd.map: list")
  options.argument(f, "callable", "lxd.map: f")
  local parallel = options.check(settings, MAP, "lxd.map").parallel or 8
  if parallel < 1 then
    error("lxd.map: option 'parallel' must be at least 1", 2)
  end
  local total, next_index = #list, 0
  local results, failed = {}, {}
  local function worker()
    while next_index < total do
      next_index = next_index + 1
      local index = next_index
      local ok, value, problem = pcall(f, list[index], index)
      if not ok then
        failed[index] = value == nil and "nil" or value
      elseif value == nil and problem ~= nil then
        failed[index] = problem
      else
        results[index] = value
      end
    end
  end
  local group = new_group()
  for _ = 1, math.min(parallel, total) do
    start(group, worker)
  end
  if total > 0 then
    loop.await(group.ended)
  end
  raise_unjoined(group) -- of tasks that `f` spawned
  if next(failed) ~= nil then
    return nil, errors.many(failed, results, total)
  end
  return results
end

return task
