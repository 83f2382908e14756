-- The answer to a request: its headers, and what LXD's envelope says.
if jit then jit.off(true, true) end -- it may run in lua_close, see loop/init.lua
local errors = require "lualxd.error"
local json = require "lualxd.json"

local answers = {}

local NEWLINE = ("\n"):byte()

-- Patterns over every line of a head would take as long as decoding the body, so what every answer
-- is asked for is first looked for as LXD writes it, over HTTP/1.1 and HTTP/2.
local JSON = { "Content-Type: application/json\r\n", "content-type: application/json\r\n" }
local ETAG = { 'Etag: "', 'etag: "' }

-- Where the first of these that begins a line ends.
local function find_line(head, starts)
  for index = 1, 2 do
    local first, last = head:find(starts[index], 1, true)
    if first and (first == 1 or head:byte(first - 1) == NEWLINE) then
      return last
    end
  end
end

---One header's value of a raw block.
---@param head string
---@param name string in lower case
---@return string?
function answers.header(head, name)
  for line in head:gmatch("[^\r\n]+") do
    local found, value = line:match("^([^:]+):[ \t]*(.-)[ \t]*$")
    if found and #found == #name and found:lower() == name then
      return value
    end
  end
end

local function content_type(head)
  return find_line(head, JSON) and "application/json" or answers.header(head, "content-type") or ""
end

---@param head string
---@return table<string, string> by name in lower case; repeated ones joined by ", "
function answers.headers(head)
  local headers = {}
  for line in head:gmatch("[^\r\n]+") do
    local name, value = line:match("^([^:]+):[ \t]*(.-)[ \t]*$")
    if name then
      name = name:lower()
      headers[name] = headers[name] and headers[name] .. ", " .. value or value
    end
  end
  return headers
end

---The ETag without its quotes. It goes back as it came: LXD quotes it and trims the quotes, but older ones don't
---quote it and compare what comes as it is.
---@param link lualxd.link
---@param head string
---@return string?
function answers.etag(link, head)
  local start = find_line(head, ETAG)
  local stop = start and head:find('"\r', start + 1, true)
  if stop then
    return head:sub(start + 1, stop - 1)
  end
  local value = answers.header(head, "etag")
  if not value then
    return nil
  elseif value:sub(1, 1) == '"' and value:find('"', 2, true) == #value then
    return value:sub(2, -2)
  end
  link.bare_etags = not value:find('"', 1, true)
  return (value:gsub("^W/", ""):gsub('"', ""))
end

---@class lualxd.answer
---@field status integer
---@field head string
---@field body string?
---@field envelope table? the decoded JSON
---@field data any the envelope's `metadata`
---@field async boolean? `data` is an operation that goes on in the background
---@field sent number? when what began the operation was sent, by core.now's clock

-- LXD says no more than "not authorized", to whom it doesn't trust and to whom it trusts for some projects only
-- (5.0.2, tried).
local function advised(link, err)
  if err.kind == "untrusted" then
    err.hint = link.advice or err.hint
  elseif err.code == 403 and link.identity then
    err.hint = "this client's certificate is restricted to some projects (name one: option project, or"
      .. " client:project), or it isn't trusted any more; see lxc config trust edit "
      .. link.identity.fingerprint:sub(1, 12)
  end
  return err
end

---What an answer means: LXD's envelope opened, its errors told.
---@param this lualxd.exchange
---@param status integer
---@param head string
---@param body string?
---@param raw boolean? anything but JSON is welcome, too
---@return lualxd.answer?
---@return lualxd.error? err
function answers.read(this, status, head, body, raw)
  local answer = { status = status, head = head, body = body }
  local kind = content_type(head)
  local envelope
  -- The answer to a HEAD has the type of a body that isn't sent.
  if body and this.method ~= "HEAD" and kind:find("json", 1, true) then
    local problem
    envelope, problem = json.decode(body)
    if problem or (not raw and type(envelope) ~= "table") then
      return nil, this:fail("protocol", {
        code = status,
        message = "the answer is not JSON: " .. (problem or body:sub(1, 40)),
      })
    end
  end
  answer.envelope = envelope
  local failed = status >= 400 or type(envelope) == "table" and envelope.type == "error"
  if failed then
    local message, code = nil, status
    if type(envelope) == "table" then
      message = type(envelope.error) == "string" and envelope.error or nil
      code = status >= 400 and status
        or type(envelope.error_code) == "number" and envelope.error_code or status
    end
    return nil, advised(this.link, errors.answer(code, message, {
      request = this:name(),
      tried = this.tried,
      trusted = this.link.trusted,
    }))
  end
  if type(envelope) == "table" and type(envelope.type) == "string" then
    answer.data = envelope.metadata
    answer.async = envelope.type == "async"
    if this.object and type(answer.data) ~= "table" then
      return nil, this:fail("protocol", {
        code = status,
        message = "the answer has no object in it but "
          .. (answer.data == nil and "nothing" or "a " .. type(answer.data)),
      })
    end
    if answer.async then
      answer.request = this:name()
      answer.sent = this.started
      answer.data = type(answer.data) == "table" and answer.data or {}
    end
    if answer.async and type(answer.data.id) ~= "string" then
      -- The operation's URL may carry a query (a forwarded one, ?project=): only the path counts.
      local url = type(envelope.operation) == "string" and envelope.operation or ""
      answer.data.id = url:match("^/1%.0/operations/([%w%-]+)")
      if not answer.data.id then
        return nil, this:fail("protocol", { code = status, message = "an operation without an id" })
      end
    end
  elseif not raw and this.method ~= "HEAD" then
    return nil, this:fail("protocol", {
      code = status,
      message = "the answer is not LXD's: " .. (kind ~= "" and kind or "no content type"),
      hint = "does something else than LXD answer at " .. this.link.where .. "?",
    })
  end
  return answer
end

return answers
