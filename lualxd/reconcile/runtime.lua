-- The steps of what runs: states, files, readiness, snapshots.
local core = require "lualxd.core"
local errors = require "lualxd.error"
local task = require "lualxd.task"
local chain = require "lualxd.reconcile.chain"
local marker = require "lualxd.reconcile.marker"
local session = require "lualxd.reconcile.session"

local runtime = {}

-- How long a container may take to shut down before it is stopped by force: what its own config
-- says for a shutdown of the host, or LXD's default of that key.
local GRACE = 30

local function grace_of(data)
  return tonumber((data.expanded_config or {})["boot.host_shutdown_timeout"] or "") or GRACE
end

local REACHES = { start = "running", unfreeze = "running", freeze = "frozen", stop = "stopped" }

-- Where it can't be told, or was refused because of the state it is in, the state itself tells.
local function change_state(this, subject, action, settings)
  local function attempt()
    return this:patiently(subject, function()
      local node = this:node(subject)
      return node[action](node, settings):wait()
    end)
  end
  local ok, err = attempt()
  if not ok and REACHES[action] and (err.kind == "state" or err.kind == "unknown_outcome") then
    this:wait_idle(subject) -- what an interrupted run began may be under way
    local data = this:node(subject):get()
    if data and session.state(data) == REACHES[action] then
      return true
    elseif err.kind == "state" then
      ok, err = attempt()
    end
  end
  return ok and true or nil, err
end

-- Asks the container to end, and ends it where it doesn't: `action` is stop or restart.
local function shut_down(this, subject, action, data)
  local ok, err = change_state(this, subject, action, { timeout = grace_of(data) })
  if not ok and (err.kind == "failed" or err.kind == "timeout") then
    return change_state(this, subject, action, { force = true })
  end
  return ok, err
end

---Stops a container, whatever it is doing.
---@param this lualxd.reconcile.session
---@param subject lualxd.reconcile.subject
---@return boolean? ok
---@return lualxd.error? err
function runtime.halt(this, subject)
  local data, err = this:read(subject)
  if not data then
    return nil, err
  end
  local state = session.state(data)
  if state == "stopped" then
    return true
  elseif data.ephemeral then
    return nil, session.conflict(subject, "it is ephemeral by now, and stopping deletes it")
  elseif state == "frozen" then
    local ok, problem = change_state(this, subject, "unfreeze")
    if not ok then
      return nil, problem
    end
  end
  return shut_down(this, subject, "stop", data)
end

---Starts a container.
---@param this lualxd.reconcile.session
---@param subject lualxd.reconcile.subject
---@return boolean? ok
---@return lualxd.error? err
function runtime.begin(this, subject)
  return change_state(this, subject, "start")
end

-- Writes into the mark what state is wanted now, and what `plans` adds to what is to be done.
-- Nothing is sent where the mark says so already. Gives the container as it is, and its mark.
local function remember(this, subject, plans)
  local entry = subject.entry
  local seen, marked
  local ok, err = this:edit_mark(subject, function(mark, data)
    seen, marked = data, mark
    if entry.state and entry.state.word ~= "ignore" then
      mark.last.state = marker.hash(mark, "state", entry.state.text)
    end
    if plans then
      plans(mark, session.state(data))
    end
  end)
  if not ok then
    return nil, err
  end
  return seen, marked
end

-- The state that was owed after an interruption is there.
local function forget(this, subject)
  return this:edit_mark(subject, function(mark)
    mark.todo.start, mark.todo.freeze = nil, nil
  end)
end

function runtime.start(this, step, subject)
  local wanted = step.changes[1].to
  local ok, err = true, nil
  local state = "stopped"
  if not this.created[subject] then
    local data, mark = remember(this, subject, function(mark, live)
      -- What is frozen was ready when it froze.
      if subject.entry.ready and wanted == "running" and live ~= "frozen" then
        mark.todo.ready = ""
      end
    end)
    if not data then
      return nil, mark
    end
    state = session.state(data)
  end
  if state == "frozen" and wanted == "running" then
    return change_state(this, subject, "unfreeze")
  elseif state ~= "running" and state ~= "frozen" then
    ok, err = runtime.begin(this, subject)
  end
  if ok and wanted == "frozen" and state ~= "frozen" then
    ok, err = change_state(this, subject, "freeze")
  end
  local mark = this.created[subject] or subject.mark
  if ok and mark and (mark.todo.start or mark.todo.freeze) then
    return forget(this, subject)
  end
  return ok, err
end

function runtime.stop(this, step, subject)
  local data, mark = remember(this, subject)
  if not data then
    return nil, mark
  elseif step.changes[1].to ~= "frozen" then
    return runtime.halt(this, subject)
  end
  local ok, err = change_state(this, subject, "freeze")
  if ok and mark.todo.freeze then
    return forget(this, subject)
  end
  return ok, err
end

function runtime.restart(this, step, subject)
  local frozen = step.changes[1].to == "frozen"
  local data, mark = remember(this, subject, function(mark)
    if subject.entry.ready and not frozen then
      mark.todo.ready = ""
    end
    mark.todo.freeze = frozen and "" or nil -- it has to be thawed to be restarted
  end)
  if not data then
    return nil, mark
  end
  local state = session.state(data)
  if state == "stopped" then
    return runtime.begin(this, subject)
  elseif mark.todo.restart ~= nil and mark.todo.restart ~= (data.last_used_at or "") then
    return true -- somebody restarted it meanwhile
  elseif state == "frozen" then
    local ok, err = change_state(this, subject, "unfreeze")
    if not ok and err.kind ~= "state" then
      return nil, err
    end
  end
  local ok, err = shut_down(this, subject, "restart", data)
  if not ok and (err.kind == "unknown_outcome" or err.kind == "state") then
    local now = this:read(subject)
    local live = now and session.state(now)
    if live == "stopped" then
      ok, err = runtime.begin(this, subject) -- another run restarts it, too, and got in between
    else
      ok = live ~= nil and now.last_used_at ~= data.last_used_at or nil
    end
  end
  if ok and frozen then
    ok, err = change_state(this, subject, "freeze")
    if ok then
      return forget(this, subject)
    end
  end
  return ok, err
end

-- Does what may as well be done twice, until it is known that it was, or why it can't be.
local function surely(change)
  local ok, err
  for attempt = 1, 5 do
    ok, err = change():wait()
    if ok or err.kind ~= "unknown_outcome" and err.kind ~= "unavailable" then
      break
    end
    task.sleep(0.1 * attempt)
  end
  return ok and true or nil, err
end

-- Makes the directories above a file, the uppermost first; what is there is left as it is.
local function make_parents(files, path)
  local at = 2
  while true do
    local slash = path:find("/", at, true)
    if not slash then
      return true
    end
    local ok, err = surely(function()
      return files:mkdir(path:sub(1, slash - 1), { uid = 0, gid = 0, mode = "0755" })
    end)
    if not ok and err.kind ~= "exists" then -- another run makes them, too
      return nil, err
    end
    at = slash + 1
  end
end

local function write_file(this, subject, file)
  local files = this:node(subject).files
  local settings = { uid = file.uid, gid = file.gid, mode = file.mode }
  local function write()
    return files:write(file.name, file.content, settings)
  end
  local ok, err = surely(write)
  if not ok and err.kind == "not_found" then
    ok, err = make_parents(files, file.name)
    if ok then
      ok, err = surely(write)
    end
  end
  return ok, err
end

function runtime.push(this, step, subject)
  local wanted = {}
  for _, change in ipairs(step.changes) do
    wanted[change.path] = true
  end
  local pushed = {}
  for _, file in ipairs(subject.entry.files or {}) do
    if wanted["files." .. file.name] then
      local ok, err = this:patiently(subject, function()
        return write_file(this, subject, file)
      end)
      if not ok then
        return nil, err
      end
      pushed[#pushed + 1] = file
    end
  end
  return this:edit_mark(subject, function(mark)
    for _, file in ipairs(pushed) do
      mark.last["files." .. file.name] = chain.file_hash(mark, file)
    end
    mark.todo.files = nil
  end)
end

-- Runs the command once. An operation that records nothing needs no websocket.
local function probe(this, subject, ready, deadline)
  local client = this:scoped(subject)
  local response, err = client:request("POST", this:node(subject).path .. "/exec", {
    json = { command = ready.exec, ["wait-for-websocket"] = false, interactive = false },
  })
  if not response then
    return nil, err
  end
  local data
  data, err = response.operation:wait(math.max(0.1, deadline - core.now()))
  -- The operation of a command that isn't there yet (127) or can't be run yet (126) fails, too.
  local last = data or err.operation
  local status = type(last) == "table" and type(last.metadata) == "table"
    and last.metadata["return"]
  if type(status) == "number" and status >= 0 then
    return status
  end
  return nil, err
end

local HOPELESS = { connect = true, not_found = true, cancelled = true }

function runtime.exec(this, _, subject)
  local ready = subject.entry.ready
  local deadline = core.now() + ready.timeout
  local pause = 0.05
  local said = "the command hasn't ended"
  while true do
    local status, err = probe(this, subject, ready, deadline)
    if status == 0 then
      return this:edit_mark(subject, function(mark)
        mark.todo.ready = nil
      end)
    elseif err and HOPELESS[err.kind] then
      return nil, err
    end
    if status then
      said = "the command ended with " .. status
    elseif err.kind ~= "timeout" then -- that says less than what is known already
      said = err.message
    end
    if core.now() + pause >= deadline then
      return nil, errors.new("timeout", {
        tried = "ready of " .. subject.entry.kind.noun .. " " .. subject.entry.name,
        message = string.format("not ready within %g s: %s", ready.timeout, said),
      })
    end
    task.sleep(pause)
    pause = math.min(pause * 2, 1)
  end
end

function runtime.snapshot(this, step, subject, progress)
  local name = step.changes[1].path:gsub("^snapshots%.", "")
  local wanted
  for _, snapshot in ipairs(subject.entry.snapshots) do
    wanted = snapshot.name == name and snapshot or wanted
  end
  if wanted.expires_at and not this.client:has("snapshot_expiry") then
    return nil, errors.new("unsupported", { extension = "snapshot_expiry",
      message = "the server lacks the API extension snapshot_expiry" })
  end
  local node = this:node(subject)
  local ok, err = this:patiently(subject, function()
    local operation = node.snapshots:create { name = name, expires_at = wanted.expires_at,
      stateful = false }
    if progress then
      operation:progress(progress)
    end
    return operation:wait()
  end)
  if not ok and err.kind == "unknown_outcome" then
    ok = node.snapshots(name):exists() or nil
  end
  if ok or err.kind == "exists" then
    return true
  end
  return nil, err
end

return runtime
