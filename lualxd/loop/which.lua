-- In which loop the caller is. An adapter is loaded once its loop is: lualxd loads no loop by itself, unless told.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local which = {}

-- The module that a loop's presence shows by, and the adapter. nginx is asked first: whatever else may be loaded
-- there, it can't run.
local KNOWN = { { "ngx", "nginx" }, { "cqueues", "cqueues" }, { "copas", "copas" }, { "luv", "luv" } }
local NAMES = { nginx = true, cqueues = true, copas = true, luv = true, poll = true }

local adapters = {} -- by name
local last = setmetatable({}, { __mode = "v" }) -- `link`: the last that was told of a loop

local function load(name)
  local adapter = adapters[name]
  if not adapter then
    adapter = require("lualxd.loop." .. name)
    adapters[name] = adapter
  end
  return adapter
end

-- A loop of which nothing is known but how to wait in it.
local function by_function(loop)
  return {
    here = function()
      local thread, main = coroutine.running()
      return thread ~= nil and not main
    end,
    wait = function(fd, timeout)
      loop.wait(fd, timeout)
    end,
  }
end

---The adapter for `connect`'s option `loop`; the argument was wrong where it raises.
---@param loop string|{ wait: fun(fd: integer, timeout: number) }
---@param who string
---@return lualxd.adapter
function which.tell(loop, who)
  if type(loop) == "string" then
    if not NAMES[loop] then
      error(who .. ": option 'loop' must be nginx, cqueues, luv, copas, poll"
        .. " or a table with wait(fd, timeout), got '" .. loop .. "'", 3)
    end
    return load(loop)
  elseif type(loop.wait) ~= "function" then
    error(who .. ": option 'loop' has no function wait(fd, timeout)", 3)
  end
  return by_function(loop)
end

---A client was told of its loop: while it is open, this goes for what belongs to no client, too, `lxd.sleep` and the
---like.
---@param link { loop: lualxd.adapter, engine: any }
function which.remember(link)
  last.link = link
end

---The loop that the caller can wait in; nil: it blocks.
---@param told lualxd.adapter? by the client
---@return lualxd.adapter?
function which.here(told)
  if told then
    return told.here(true) and told or nil
  end
  for index = 1, #KNOWN do
    local known = KNOWN[index]
    if package.loaded[known[1]] then
      local adapter = load(known[2])
      if adapter.here(false) then
        return adapter
      elseif adapter.flows then
        return nil
      end
    end
  end
  local link = last.link
  if link and link.engine and link.loop.here(true) then
    return link.loop
  end
end

---The loop that goes on with what the caller leaves behind, if there is one that does.
---@return lualxd.adapter?
function which.flowing()
  local adapter = package.loaded.ngx and load "nginx"
  return adapter and adapter.serving() and adapter or nil
end

return which
