-- The field types of what runs: where it comes from, its state, and what is inside of it. They
-- become parts of the entry of their own, because each has steps of its own.
local check = require "lualxd.reconcile.check"
local kinds = require "lualxd.reconcile.kinds"
local options = require "lualxd.options"
local values = require "lualxd.reconcile.values"
local words = require "lualxd.words"

local guest = {}

-- The fields of a source table, as instancePost's source has them; a `mode` other than pull is
-- for copies.
local SOURCE = { type = "string", alias = "string", fingerprint = "string", server = "string",
  protocol = "string", certificate = "string", secret = "string", project = "string",
  mode = "string", properties = "table" }

-- What of a source may be a secret. The rest is what a plan shows.
local HIDDEN = { server = true, certificate = true, secret = true }

function guest.image(this, path, value)
  local entry, word = this.entry, nil
  if words.name(value) == "ignore" and words.reveal(value) ~= nil then
    word, value = "ignore", words.reveal(value)
  end
  if type(value) == "string" then
    if value == "" then
      this.fail(path, "is empty")
    end
    entry.image = { text = value, word = word }
    return
  elseif not check.expect(this, path, value, "table",
    "an alias, a fingerprint or a source table") then
    return
  end
  local source, ways = { type = "image" }, 0
  for _, key in ipairs(check.names_of(this, path, value)) do
    local here, given = path .. "." .. key, value[key]
    if not SOURCE[key] then
      check.unknown(this, here, SOURCE, key)
    elseif words.name(given) == "secret" and HIDDEN[key] then
      local text, message = words.reveal(given)
      if message then
        this.fail(here, message)
      end
      source[key] = text
      entry.secrets[#entry.secrets + 1] = text
    elseif check.expect(this, here, given, SOURCE[key]) then
      source[key] = given
      if key == "properties" then
        for _, name in ipairs(check.names_of(this, here, given)) do
          check.expect(this, here .. "." .. name, given[name], "string")
        end
      end
    end
    if key == "alias" or key == "fingerprint" or key == "properties" then
      ways = ways + 1
    end
  end
  if source.type ~= "image" and source.type ~= "none" then
    this.fail(path .. ".type", string.format("%q is not supported yet; expected image or none",
      tostring(source.type)))
  elseif source.type == "none" and ways > 0 then
    this.fail(path, "of type none has no image")
  elseif source.type == "image" and ways ~= 1 then
    this.fail(path, "needs one of alias, fingerprint, properties")
  end
  if source.server and not source.mode then
    source.mode = "pull"
  end
  local text = source.alias or source.fingerprint or source.type
  if source.server then
    -- What is shown of a secret is what the word itself shows.
    text = text .. " from " .. tostring(value.server)
  end
  entry.image = { text = text, source = source, word = word }
end

function guest.state(this, path, value)
  local leaf = { path = path, field = "state" }
  if words.name(value) == "ignore" then
    leaf.word = "ignore"
    value = words.reveal(value)
    if value == nil then
      return
    end
  end
  if type(value) ~= "string" then
    this.fail(path, "expected running, stopped or frozen, got " .. check.say(value))
  elseif not kinds.states[value] then
    local meant = options.close_name(value, kinds.states)
    this.fail(path, string.format("%q is no state; ", value)
      .. (meant and "did you mean " .. meant .. "?" or "expected running, stopped or frozen"))
  else
    leaf.text = value
    this.entry.state = leaf
  end
end

local FILE = { content = "string", mode = "string", uid = "number", gid = "number" }

-- LXD sets the permission bits only: no set-user-ID, set-group-ID or sticky bit.
local function file_mode(value)
  if type(value) == "string" and value:find("^0?0?[0-7][0-7][0-7]$") then
    return tonumber(value, 8)
  elseif type(value) == "number" and value % 1 == 0 and value >= 0 and value <= 511 then
    return math.floor(value)
  end
end

local function file(this, path, name, value)
  local made = { path = path, name = name }
  for _, key in ipairs(check.names_of(this, path, value)) do
    local here, given = path .. "." .. key, value[key]
    if not FILE[key] then
      check.unknown(this, here, FILE, key)
    elseif key == "content" then
      if words.name(given) == "secret" then
        made.secret = true
        local message
        given, message = words.reveal(given)
        if message then
          this.fail(here, message)
        end
        made.content = given ~= nil and tostring(given) or nil
      elseif check.expect(this, here, given, "string") then
        made.content = given
      end
    elseif key == "mode" then
      made.mode = file_mode(given)
      if not made.mode then
        this.fail(here, "expected a mode like \"0644\", got "
          .. (words.name(given) and check.say(given) or tostring(given)))
      end
    elseif type(given) ~= "number" or given % 1 ~= 0 or given < 0 then
      this.fail(here, "expected a number from 0 up, got " .. check.say(given))
    else
      made[key] = math.floor(given)
    end
  end
  if value.content == nil then
    this.fail(path .. ".content", "required")
  end
  return made
end

function guest.files(this, path, map)
  if not check.expect(this, path, map, "table") then
    return
  end
  local files, known = {}, {}
  for _, name in ipairs(check.names_of(this, path, map)) do
    local here = path .. "." .. name
    if name:sub(1, 1) ~= "/" then
      this.fail(here, "must be an absolute path")
    elseif name == "/" or name:find("/$") or name:find("//", 1, true)
      or (name .. "/"):find("/%.%.?/") or name:find("%c") then
      this.fail(here, "must be the plain path of a file: no //, no . or .., no / at the end")
    elseif check.expect(this, here, map[name], "table") then
      files[#files + 1] = file(this, here, name, map[name])
      known[name] = here
    end
  end
  for name, here in pairs(known) do
    local parent = name:match("^(.+)/")
    while parent do
      if known[parent] then
        this.fail(here, parent .. " is declared as a file, so nothing can be below it")
      end
      parent = parent:match("^(.+)/")
    end
  end
  this.entry.files = files
end

function guest.snapshots(this, path, map)
  if not check.expect(this, path, map, "table", "a list of names") then
    return
  end
  local snapshots, seen = {}, {}
  local function take(here, name, details)
    if type(name) ~= "string" then
      this.fail(here, "expected a name, got " .. check.say(name))
    elseif name == "" or name == "." or name == ".." or name:find("[ /%c]") then
      this.fail(here, "is not a name for a snapshot")
    elseif seen[name] then
      this.fail(here, string.format("%q is there twice", name))
    else
      seen[name] = true
      snapshots[#snapshots + 1] = { name = name, expires_at = details.expires_at }
    end
  end
  for key, value in pairs(map) do
    if type(key) == "number" then
      take(path .. "[" .. values.text(key) .. "]", value, {})
    elseif type(key) == "string" and check.expect(this, path .. "." .. key, value, "table") then
      for _, field in ipairs(check.names_of(this, path .. "." .. key, value)) do
        local here, given = path .. "." .. key .. "." .. field, value[field]
        if field ~= "expires_at" then
          check.unknown(this, here, { expires_at = true }, field)
        elseif check.expect(this, here, given, "string")
          and not given:find("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d.*[Zz%d]$") then
          this.fail(here, "expected a time like 2030-01-31T12:00:00Z")
        end
      end
      take(path .. "." .. key, key, value)
    end
  end
  table.sort(snapshots, function(a, b)
    return a.name < b.name
  end)
  this.entry.snapshots = snapshots
end

local READY = { exec = true, timeout = true }

function guest.ready(this, path, value)
  if not check.expect(this, path, value, "table") then
    return
  end
  local ready = { timeout = 60 }
  for _, key in ipairs(check.names_of(this, path, value)) do
    local here, given = path .. "." .. key, value[key]
    if not READY[key] then
      check.unknown(this, here, READY, key)
    elseif key == "timeout" then
      if type(given) ~= "number" or given <= 0 or given ~= given or given == math.huge then
        this.fail(here, "expected seconds, got " .. check.say(given))
      end
      ready.timeout = given
    elseif check.expect(this, here, given, "table", "a command as a list of strings") then
      ready.exec = {}
      for index, word in ipairs(check.items_of(this, here, given)) do
        if check.expect(this, here .. "[" .. index .. "]", word, "string") then
          ready.exec[index] = word
        end
      end
      if next(given) == nil then
        this.fail(here, "is empty")
      end
    end
  end
  if value.exec == nil then
    this.fail(path .. ".exec", "required: the command that tells whether it is ready")
  end
  this.entry.ready = ready
end

return guest
