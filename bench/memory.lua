-- SPDX-License-Identifier: MIT
-- What this process holds after a full collection.

---@return { lua: number, rss: integer } KiB
return function()
  collectgarbage()
  collectgarbage()
  local file = assert(io.open "/proc/self/statm")
  local pages = file:read "*l":match "^%d+ (%d+)"
  file:close()
  return { lua = collectgarbage "count", rss = pages * 4 }
end
