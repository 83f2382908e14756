-- What is told of a command to run: the checks of it, and the request. A wrong one raises where the script says it.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local json = require "lualxd.json"
local options = require "lualxd.options"

local command = {}

local OPTIONS = {
  stdin = "string|callable", stdout = "callable", stderr = "callable", env = "table", cwd = "string",
  user = "integer", group = "integer", timeout = "seconds", max_output = "integer", tty = "table",
}
local TTY = { width = "integer", height = "integer" }

---The command as it is sent. The script's table stays as it is (`arg` has more in it); a nil in it must not cut off the
---rest, and what JSON can't carry must not reach the command as something else.
---@param argv string[]
---@param who string
---@return string[] words
function command.check(argv, who)
  options.argument(argv, "table", who .. ": argv", 4)
  local words, count = json.array {}, 0
  for index in pairs(argv) do
    count = type(index) == "number" and index > count and index or count
  end
  if count == 0 then
    error(who .. ": argv is empty", 4)
  end
  for index = 1, count do
    local word, what = argv[index], who .. ": argv[" .. index .. "]"
    words[index] = options.argument(word, "string", what, 4)
    local problem = options.problem(word)
    if problem then
      error(what .. " " .. problem, 4)
    end
  end
  return words
end

---@param settings table
---@param who string
function command.check_settings(settings, who)
  options.check(settings, OPTIONS, who, 4)
  for name, value in pairs(settings.env or {}) do
    local problem = type(name) ~= "string" and "has a name that is no string"
      or (name == "" or name:find("=", 1, true)) and "has a name that can't be one"
      or options.problem(name) or options.problem(value)
    if problem then
      error(string.format("%s: option 'env': %s %s", who, tostring(name):gsub("%c", "?"), problem), 4)
    end
  end
  local problem = settings.cwd and options.problem(settings.cwd)
  if problem then
    error(who .. ": option 'cwd' " .. problem, 4)
  end
  for _, name in ipairs { "user", "group", "max_output" } do
    if settings[name] and settings[name] < 0 then
      error(string.format("%s: option '%s' must not be negative", who, name), 4)
    end
  end
  if settings.tty then
    options.check(settings.tty, TTY, who .. ": tty", 4)
  end
end

---The request for it.
---@param words string[]
---@param settings table
---@return string json
function command.body(words, settings)
  return json.encode(json.as_strings { environment = settings.env or {} }):sub(1, -2) .. ","
    .. json.encode({
      command = words,
      cwd = settings.cwd,
      user = settings.user,
      group = settings.group,
      interactive = settings.tty ~= nil,
      width = settings.tty and settings.tty.width,
      height = settings.tty and settings.tty.height,
      ["wait-for-websocket"] = true,
    }):sub(2)
end

return command
