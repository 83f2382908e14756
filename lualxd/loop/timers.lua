-- Deadlines of parked tasks: a binary heap. A task that woke up earlier leaves its entry behind, dead,
-- until its time comes or the dead outnumber the living.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local timers = {}

---Is called when there is a timer that is due before all others.
---@type function?
timers.on_earlier = nil

local heap, size, dead = {}, 0, 0

local function up(index)
  local entry = heap[index]
  while index > 1 do
    local parent = (index - index % 2) / 2
    if heap[parent].at <= entry.at then
      break
    end
    heap[index] = heap[parent]
    index = parent
  end
  heap[index] = entry
end

local function down(index)
  local entry = heap[index]
  while true do
    local child = index * 2
    if child > size then
      break
    end
    if child < size and heap[child + 1].at < heap[child].at then
      child = child + 1
    end
    if entry.at <= heap[child].at then
      break
    end
    heap[index] = heap[child]
    index = child
  end
  heap[index] = entry
end

local function pop()
  local entry = heap[1]
  heap[1], heap[size] = heap[size], nil
  size = size - 1
  if size > 0 then
    down(1)
  end
  return entry
end

local function sweep()
  -- Made before: a finalizer that its allocation runs may add a timer.
  local new = {}
  local old, count = heap, size
  heap, size, dead = new, 0, 0
  for index = 1, count do
    if old[index].call then
      size = size + 1
      heap[size] = old[index]
      up(size)
    end
  end
end

---Calls `call(argument)` once the time has come.
---@param at number of core.now()'s clock
---@param call function
---@param argument any
---@return table entry for `cancel`
function timers.add(at, call, argument)
  local entry = { at = at, call = call, argument = argument }
  size = size + 1
  heap[size] = entry
  up(size)
  if heap[1] == entry and timers.on_earlier then
    timers.on_earlier()
  end
  return entry
end

---@param entry table
function timers.cancel(entry)
  if entry.call then
    entry.call, entry.argument = nil, nil
    dead = dead + 1
    if dead > 64 and dead > size / 2 then
      sweep()
    end
  end
end

---@return number? at when the next one is due
function timers.next()
  while size > 0 and not heap[1].call do
    pop()
    dead = dead - 1
  end
  return size > 0 and heap[1].at or nil
end

---@param now number
function timers.expire(now)
  local due = timers.next()
  while due and due <= now do
    local entry = pop()
    local call, argument = entry.call, entry.argument
    entry.call, entry.argument = nil, nil
    call(argument)
    due = timers.next()
  end
end

return timers
