-- JSON of a server: whatever it is, it is refused, or it is the same again after a round trip.
local core = require "lualxd.core"

-- What marks long integers on their way through cjson is random, so that no server knows it. libFuzzer does: it watches
-- comparisons.
local mark
local random = core.random
core.random = function(bytes)
  mark = random(bytes)
  return mark
end
local json = require "lualxd.json"
core.random = random

return function(bytes)
  if bytes:find(mark, 1, true) then
    return
  end
  local data, problem = json.decode(bytes)
  if problem or type(data) ~= "table" then
    return
  end
  local ok, text = pcall(json.encode, data)
  if ok then -- what cjson can read and not write (a depth of 1000, say) raises
    local again = assert(json.decode(text))
    assert(json.encode(again) == text, "it changes on its way")
  end
end
