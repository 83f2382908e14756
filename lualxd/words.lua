-- The words that stand for a value in data and declarations. Each is unique: compared by identity.
local words = {}

local function word(name)
  return setmetatable({}, {
    __name = "lualxd.word",
    __tostring = function()
      return "lxd." .. name
    end,
    __newindex = function()
      error("lxd." .. name .. " can't be changed", 2)
    end,
  })
end

---The server chooses; any live value fits.
words.auto = word "auto"
---Must not be there: a key that goes.
words.unset = word "unset"
---Ours at creation, not after.
words.ignore = word "ignore"
---The object must not exist.
words.absent = word "absent"

return words
