-- Kinds of errors from what LXD 5.0.2 answered, word for word.
local errors = require "lualxd.error"
local outcome = require "lualxd.outcome"

local SYNC = {
  { 404, "Instance not found", "not_found" },
  { 404, "Image alias not found", "not_found" },
  { 500, "Requested profile \"nope\" doesn't exist", "not_found" },
  { 500, 'Error inserting "p1" into database: The profile already exists', "exists" },
  { 409, 'Alias "busybox" already exists', "exists" },
  { 500, "An ACL by that name exists already", "exists" },
  { 500, 'sftp: "symlink /a /b: file exists" (SSH_FX_FAILURE)', "exists" },
  { 500, "Query affected 0 rows instead of 1", "not_found" },
  { 500, "Profile is currently in use", "in_use" },
  { 400, "The storage pool is currently in use", "in_use" },
  { 500, "Only empty projects can be removed", "in_use" },
  { 400, "Instance is running", "state" },
  { 400, "Instance is not running", "state" },
  { 400, "Unknown configuration key: nope", "invalid" },
  { 500, "Invalid config: Unknown configuration key: nope", "invalid" },
  { 400, "Invalid instance name: Name can only contain alphanumeric and hyphen characters", "invalid" },
  { 400, "cannot set 'core.https_address': invalid type float64", "invalid" },
  { 500, "Name can only contain alphanumeric and hyphen characters", "invalid" },
  { 500, "Name cannot start with reserved character '%'", "invalid" },
  { 500, "Name must be 1-63 characters long", "invalid" },
  { 500, "Name is required", "invalid" },
  { 500, "Storage name cannot contain white space", "invalid" },
  { 500, "Unknown driver", "invalid" },
  { 500, 'sftp: "open /tmp: is a directory" (SSH_FX_FAILURE)', "invalid" },
  { 500, 'sftp: "open /etc/passwd/x: not a directory" (SSH_FX_FAILURE)', "invalid" },
  { 500, 'sftp: "open /tmp/xxx: file name too long" (SSH_FX_FAILURE)', "invalid" },
  { 400, "Only running operations can be cancelled", "state" },
  { 412, "ETag doesn't match: 1 vs 2", "conflict" },
  { 403, 'The "default" profile cannot be deleted', "forbidden" },
  { 423, "Volume is in use", "in_use" },
  { 503, "LXD is shutting down", "unavailable" },
  { 500, "dial unix /proc/self/fd/47/forkfile.sock: connect: no such file or directory", "unavailable" },
  { 501, "not implemented", "unsupported" },
  { 500, "something nobody has seen", "failed" },
}

local ASYNC = {
  { "Failed creating instance record: Add instance info to the database: "
    .. 'This "instances" entry already exists', "exists" },
  { "Image not provided for instance creation", "not_found" },
  { "Failed creating instance record: Unknown configuration key: nope", "invalid" },
  { "Failed creating instance record: Invalid value: foo", "invalid" },
  { "The instance is already running", "state" },
  { "The instance is already stopped", "state" },
  { "The container isn't running", "state" },
  { "Renaming of running container not allowed", "state" },
  { "Cannot export a running instance as an image", "state" },
  { "Container has no existing state to restore", "state" },
  { "Unsupported compression", "invalid" },
  { "Project names may not contain slashes", "invalid" },
  { "Snapshot c1/nope does not exist", "not_found" },
  { "Instance is busy running a \"stop\" operation", "busy" },
  { "Failed to write backup file: Instance snapshot record count doesn't match instance snapshot"
    .. " volume record count", "busy" },
  { "Failed to start device \"eth0\": Parent device \"nope\" doesn't exist", "failed" },
  { "whatever", "failed" },
}

describe("error", function()
  it("tells the kind of a refusal", function()
    for _, row in ipairs(SYNC) do
      local err = errors.answer(row[1], row[2], { request = "GET /x" })
      assert.are.equal(row[3], err.kind, row[2])
      assert.are.equal(row[1], err.code)
      assert.are.equal(row[2], err.message)
    end
  end)

  it("tells the kind of a background failure, all of which LXD 5.0 gives one status", function()
    for _, row in ipairs(ASYNC) do
      local err = errors.answer(400, row[1], { operation = {} })
      assert.are.equal(row[2], err.kind, row[1])
    end
    assert.are.equal("cancelled", errors.answer(401, "x", { operation = {} }).kind)
  end)

  it("takes a 403 for a lack of trust only where there is none", function()
    assert.are.equal("untrusted", errors.answer(403, "not authorized", { trusted = false }).kind)
    assert.are.equal("forbidden", errors.answer(403, "not authorized", { trusted = true }).kind)
  end)

  it("is one line that says what was tried, what happened and what to do", function()
    local err = errors.answer(400, "Instance\n is running", {
      tried = "delete container web", request = "DELETE /1.0/containers/web",
    })
    assert.are.equal("delete container web: Instance is running"
      .. " (DELETE /1.0/containers/web, 400)", tostring(err))
    assert.are.equal("x: " .. tostring(err), "x: " .. err)
  end)

  it("says what to do", function()
    for text, hint in pairs {
      ["Instance is running"] = "stop it first",
      ["Instance is not running"] = "start it first",
      ["Cannot export a running instance as an image"] = "stop it first",
      ['Failed shutting down instance, status is "Running": shutting down the container failed'] = "force = true",
      ["Failed creating instance record: Failed initialising instance: Failed getting root disk: "
        .. "No root device could be found"] = "needs a disk",
      ["Can't issue token when server isn't listening on network"] = "core.https_address",
    } do
      assert.matches(hint, tostring(errors.answer(400, text, {})), 1, true)
    end
  end)

  it("sums up several", function()
    local err = errors.many({ [2] = errors.new("failed", { message = "b" }), [7] = "c" }, { 1 }, 100)
    assert.are.equal("2 of 100 failed; first: b", tostring(err))
    assert.are.equal("many", err.kind)
    assert.are.equal("c", err.errors[7])
  end)
end)

describe("outcome.time", function()
  it("reads times as LXD writes them", function()
    local function seconds(text)
      return (outcome.time(text))
    end
    assert.are.equal(0, seconds "1970-01-01T00:00:00Z")
    assert.are.equal(1461014694, seconds "2016-04-18T22:24:54.469437937+01:00")
    assert.are.equal(951782400, seconds "2000-02-29T00:00:00Z")
    assert.is_nil(seconds "yesterday")
    assert.is_nil(seconds(nil))
    local _, fraction, precise = outcome.time "2016-04-18T22:24:54.25Z"
    assert.are.equal(0.25, fraction)
    assert.is_true(precise)
  end)
end)
