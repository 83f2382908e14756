-- JSON of a server: whatever it is, it is refused, or it is the same again after a round trip.
local json = require "lualxd.json"

return function(bytes)
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
