-- What lualxd.core has besides its types.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

describe("core", function()
  before_each(support.begin)
  after_each(support.finally)

  it("has a clock that goes on", function()
    local t = core.now()
    posix.sleep(0.01)
    local passed = core.now() - t
    assert.is_true(passed >= 0.01 and passed < 1)
  end)

  it("knows the process, also after a fork", function()
    local pid = core.pid()
    local child = posix.fork()
    if child == 0 then
      posix.exit(core.pid() ~= pid and 7 or 0)
    end
    assert.equal(7, posix.waitpid(child))
    assert.equal(pid, core.pid())
  end)

  it("hashes", function()
    assert.equal("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", core.sha256(""))
    assert.equal("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
      core.sha256("abc"))
    assert.equal("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
      core.sha256(("a"):rep(1000000)))
  end)

  it("gives random bytes, never the same", function()
    assert.equal("", core.random(0))
    assert.matches("^%x%x%x%x%x%x%x%x$", core.random(4))
    assert.equal(2048, #core.random(1024))
    assert.are_not.equal(core.random(16), core.random(16))
    assert.has_error(function() core.random(1025) end)
    assert.has_error(function() core.random(-1) end)
  end)

  it("tells a socket from what is none", function()
    support.open()
    assert.is_true(core.is_socket(support.path))
    assert.is_false(core.is_socket(support.path .. "\0"))
    assert.is_false(core.is_socket(support.directory))
    assert.is_false(core.is_socket(support.file("file", "")))
    assert.is_false(core.is_socket(support.directory .. "/nothing"))
  end)

  it("tells a socket that this user may not write to", function()
    if posix.getuid() ~= 0 then
      pending("needs root to become somebody else")
      return
    end
    support.open()
    posix.chmod(support.directory, 0x1ed) -- 0755
    posix.chmod(support.path, 0x180) -- 0600
    local child = posix.fork()
    if child == 0 then
      posix.as_user(65534)
      posix.exit(core.is_socket(support.path) and 1 or 0)
    end
    assert.equal(0, posix.waitpid(child))
  end)

  it("can be required again", function()
    package.loaded["lualxd.core"] = nil
    local again = require "lualxd.core"
    local p = again.poller()
    assert.is_true(p:pollfd() >= 0)
    p:close()
  end)
end)
