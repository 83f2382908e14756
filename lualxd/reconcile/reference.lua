-- What an object refers to: whether it is there, and what of it a plan has to know. Pure.
local options = require "lualxd.options"
local diff = require "lualxd.reconcile.diff"
local observe = require "lualxd.reconcile.observe"

local reference = {}

-- Whether a leaf says what the object is to have: one that counts at creation only doesn't once it is there.
local function counts(subject, leaf)
  return leaf.word ~= "ignore" or not subject.data
end

---The names of the profiles that an instance uses once it is as declared.
---@param subject lualxd.reconcile.subject
---@return string[]
function reference.profiles(subject)
  for _, leaf in ipairs(subject.entry.leaves) do
    if leaf.field == "profiles" and leaf.list and counts(subject, leaf) then
      return leaf.list
    end
  end
  if subject.data then
    return subject.data.profiles or {}
  end
  return { "default" } -- what the server gives to an instance that names none
end

local function suggest(name, known)
  local meant = options.close_name(name, known or {})
  return meant and "; did you mean " .. meant .. "?" or ""
end

local function check_profiles(this, subject)
  local entry, observed = subject.entry, this.observed
  local project = observe.effective(observed, "features.profiles", subject.project)
  local there = observed.objects.profiles[project] or {}
  for _, leaf in ipairs(entry.leaves) do
    for _, name in ipairs(leaf.field == "profiles" and counts(subject, leaf) and leaf.list or {}) do
      local other = this.declared.by_path["profiles." .. name]
      local other_project = other
        and observe.effective(observed, "features.profiles", other.project or observed.home)
      if not other or other_project ~= project then
        if not there[name] then
          local known = {}
          for known_name in pairs(there) do
            known[known_name] = true
          end
          for _, declared in ipairs(this.declared.entries) do
            if declared.kind.section == "profiles" then
              known[declared.name] = true
            end
          end
          this.fail(entry.path .. ".profiles", string.format(
            "no profile %q is declared or on the server%s", name, suggest(name, known)))
        end
      elseif other.absent then
        this.fail(entry.path .. ".profiles", string.format("profile %q is declared absent", name))
      end
    end
  end
end

-- What a device's leaf names and isn't there. A secret isn't quoted, nor what is like it.
local function missing(what, leaf, known)
  return string.format("no %s %s is on the server%s", what,
    leaf.secret and diff.SECRET or string.format("%q", leaf.text),
    leaf.secret and "" or suggest(leaf.text, known))
end

local function check_devices(this, subject)
  local entry, observed = subject.entry, this.observed
  local typed = {}
  local networks = observed.networks
    and observed.networks[observe.effective(observed, "features.networks", subject.project)]
  local devices = {}
  for _, leaf in ipairs(entry.leaves) do
    if leaf.device and leaf.key and leaf.text and counts(subject, leaf) then
      devices[leaf.device] = devices[leaf.device] or {}
      devices[leaf.device][leaf.key] = leaf
    end
  end
  for name, device in pairs(devices) do
    local path = entry.path .. ".devices." .. name
    local live = subject.data and (subject.data.devices or {})[name]
    typed[name] = device.type and device.type.text or live and live.type
    if not typed[name] then
      this.fail(path .. ".type", "required: what sort of device this is (disk, nic, …)")
    end
    if device.pool and observed.pools and not observed.pools[device.pool.text] then
      this.fail(path .. ".pool", missing("storage pool", device.pool, observed.pools))
    end
    if typed[name] == "nic" and networks then
      local wanted, field = device.network, "network"
      if not wanted and device.nictype and device.nictype.text == "bridged" then
        wanted, field = device.parent, "parent"
      end
      local found = wanted and networks[wanted.text]
      if wanted and not (found and (found.managed or field == "parent")) then
        this.fail(path .. "." .. field, missing("network", wanted, networks))
      end
    end
  end
end

-- Which image a text names here: an alias first, as the server does, else a fingerprint or the
-- beginning of one.
local function resolve(images, text, only)
  if only ~= "fingerprint" and images.aliases[text] then
    return images.aliases[text], "alias"
  elseif only ~= "alias" and text:find("^%x+$") and #text >= 12 then
    local found
    for fingerprint in pairs(images.fingerprints) do
      if fingerprint:sub(1, #text) == text:lower() and (not found or fingerprint < found) then
        found = fingerprint
      end
    end
    return found, "fingerprint"
  end
  return nil, "alias"
end

-- What is to be known of the declared image: what a new object is made from, and whether the
-- one that is there was made from another.
local function check_image(this, subject)
  local entry = subject.entry
  if not entry.image then
    if not subject.data then
      this.fail(entry.path .. ".image", string.format("required: there is no %s %s yet",
        entry.kind.noun, entry.name))
    end
    return
  end
  local source = entry.image.source or {}
  local text = source.fingerprint or source.alias or not entry.image.source and entry.image.text
  local project = observe.effective(this.observed, "features.images", subject.project)
  local images = this.observed.images[project]
  subject.image = {}
  local way = source.fingerprint and "fingerprint" or source.alias and "alias" or nil
  local found
  if text and images and not source.server then
    found, way = resolve(images, text, way)
    subject.image.fingerprint = found
  end
  if not subject.data then
    if text and images and not source.server and not found then
      this.fail(entry.path .. ".image", string.format("no image %q is on the server%s", text,
        suggest(text, images.aliases)))
    end
    return
  end
  local base = (subject.data.config or {})["volatile.base_image"]
  if not base or not text or entry.image.word then
    return
  end
  if way == "fingerprint" and base:sub(1, #text) ~= text:lower() then
    subject.image.moved, subject.image.why = base, "declared"
    if not source.server and not found then
      this.fail(entry.path .. ".image", string.format("no image %q is on the server", text))
    end
  elseif way == "alias" and found and found ~= base then
    if this.policy.replace_on_image then
      subject.image.moved, subject.image.why = base, "drift"
    else
      this.note(entry.path .. ".image", string.format("%s is %s by now; this was made from %s, and"
        .. " stays (replace_on_image = true makes it anew)", text, found:sub(1, 12),
        base:sub(1, 12)))
    end
  end
end

---Checks what only looking can tell; mistakes go to `this.fail`.
---@param this table the plan being made
---@param subject lualxd.reconcile.subject
function reference.check(this, subject)
  local entry, observed = subject.entry, this.observed
  local project = entry.project or observed.home
  if observed.projects and not observed.projects[project] then
    this.fail(entry.path .. ".project", string.format("no project %q is on the server%s", project,
      suggest(project, observed.projects)))
    return
  end
  check_devices(this, subject)
  if entry.kind.runs then
    check_profiles(this, subject)
    check_image(this, subject)
  end
end

return reference
