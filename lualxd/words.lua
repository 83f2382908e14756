-- The value words of a declaration: what a value can be besides a value. Each is recognised by
-- what it is, never by what is in it, and none has contents that a dump, a log or JSON could
-- show.
local words = {}

---@class lualxd.word
---@field word string? which: auto, unset, ignore, absent, secret

local kinds = setmetatable({}, { __mode = "k" }) -- word -> its name
local contents = setmetatable({}, { __mode = "k" }) -- secret or ignore -> what it holds

local function frozen()
  error("a word of lualxd can't be changed", 2)
end

local function make(name, shown, held, call)
  local word = setmetatable({}, {
    __name = "lualxd.word",
    __tostring = function()
      return shown
    end,
    __newindex = frozen,
    __call = call,
  })
  kinds[word] = name
  contents[word] = held
  return word
end

---The server chooses; any live value fits.
words.auto = make("auto", "lxd.auto")

---Must not be there: removed where it is.
words.unset = make("unset", "lxd.unset")

---The object must not exist.
words.absent = make("absent", "lxd.absent")

local function ignore(_, value)
  if value == nil or kinds[value] and kinds[value] ~= "secret" then
    error("lxd.ignore: takes a value, or stands alone", 2)
  end
  return make("ignore", "lxd.ignore(…)", value)
end

---Ours at creation, not after: `lxd.ignore(value)`. Alone: never looked at, whatever it is.
words.ignore = make("ignore", "lxd.ignore", nil, ignore)

---A value that is never printed, logged or stored in clear by lualxd.
---@param value string|number|boolean|function a function is called once, when the plan is made
---@return lualxd.word
function words.secret(value)
  local kind = type(value)
  if kind ~= "string" and kind ~= "number" and kind ~= "boolean" and kind ~= "function" then
    error("lxd.secret: takes a string, number, boolean or function, got " .. kind, 2)
  end
  return make("secret", "(secret)", value)
end

---@param value any
---@return string? name `auto`, `unset`, `ignore`, `absent`, `secret`; nil for anything else
function words.name(value)
  return type(value) == "table" and kinds[value] or nil
end

---What a secret or an `ignore` holds. A secret's function is called, and what it says is
---remembered.
---@param word lualxd.word
---@return any value nil: the function failed or gave nothing
---@return string? message why, without what it was asked for
function words.reveal(word)
  local value = contents[word]
  if type(value) ~= "function" then
    return value
  end
  local ok, result = pcall(value)
  if not ok then
    -- The error's own text may quote the secret.
    return nil, "the function that should give the secret raised an error"
  elseif result == nil then
    return nil, "the function that should give the secret gave nil"
  end
  contents[word] = result
  return result
end

return words
