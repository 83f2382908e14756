-- What only a few may do at a time; the others stand in line.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local loop = require "lualxd.loop"

---@class lualxd.turns
local methods = {}
methods.__index = methods

local turns = {}

---@param link { loop: lualxd.adapter? } of those who will wait here
---@param most integer how many may at a time
---@return lualxd.turns
function turns.new(link, most)
  return setmetatable({ link = link, most = most, taken = 0, line = {} }, methods)
end

---Waits for one's turn, unless it isn't needed any more once the line has moved.
---@param needless (fun(): boolean)?
---@return boolean taken it must be given back
function methods:take(needless)
  while self.taken >= self.most do
    local place = loop.condition(self.link)
    self.line[#self.line + 1] = place
    loop.await(place)
    if needless and needless() then
      return false
    end
  end
  self.taken = self.taken + 1
  return true
end

---Gives a turn back.
function methods:give()
  self.taken = self.taken - 1
  local place = table.remove(self.line, 1)
  if place then
    loop.fire(place)
  end
end

---@return boolean
function methods:awaited()
  return #self.line > 0
end

---Has all who stand in line look whether they still need to.
function methods:disperse()
  local line = self.line
  self.line = {}
  for _, place in ipairs(line) do
    loop.fire(place)
  end
end

return turns
