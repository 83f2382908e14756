-- Keys, certificates, files for them, and base64.
local support = require "spec.core.support"
local core, posix = support.core, support.posix

local function shell(command)
  local pipe = assert(io.popen(command .. " 2>&1"))
  local out = pipe:read "*a"
  pipe:close()
  return out
end

describe("an identity", function()
  before_each(support.begin)
  after_each(support.finally)

  it("is a key on P-384 and a certificate of its own, as OpenSSL sees them", function()
    local cert, key = core.new_identity "who ü"
    local path = support.file("c", cert)
    support.file("k", key)
    local text = shell("openssl x509 -noout -text -nameopt utf8 -fingerprint -sha256 -in " .. path)
    assert.matches("secp384r1", text, 1, true)
    assert.matches("ecdsa-with-SHA384", text, 1, true)
    assert.matches("CN=who ü", text, 1, true)
    assert.matches("CA:FALSE", text, 1, true)
    assert.matches("TLS Web Client Authentication", text, 1, true)
    local info = core.certificate(cert)
    assert.equal(info.fingerprint, text:match("sha256 Fingerprint=([%x:]+)"):gsub(":", ""):lower())
    assert.equal("who ü", info.name)
    assert.matches(": OK", shell("openssl verify -CAfile " .. path .. " " .. path), 1, true)
    assert.equal(shell("openssl x509 -noout -pubkey -in " .. path),
      shell("openssl pkey -pubout -in " .. support.directory .. "/k"))
    local now = os.time()
    assert.is_true(info.not_before < now and info.not_before > now - 7200)
    assert.is_true(math.abs(info.not_after - now - 3652 * 86400) < 60)
    assert.are_not.equal(cert, (core.new_identity "who ü"))
  end)

  it("has a name of 1 to 64 characters of UTF-8", function()
    assert(core.new_identity(("ü"):rep(64)))
    for _, name in ipairs { "", ("x"):rep(65), ("x"):rep(5000), "\255\254", "a\0b" } do
      assert.has_error(function()
        core.new_identity(name)
      end)
    end
  end)

  it("tells when certificates begin and end, in any century", function()
    for _, ends in ipairs { "19991231235959Z", "20000229120000Z", "20491231235959Z", "21000301000000Z",
      "99991231235959Z" } do
      local made = shell("spec/support/certificate " .. support.directory .. " t --san DNS:x 2>&1")
      assert.equal("", made)
      shell(("cd %s && openssl req -new -key t.key -subj /CN=t -out r && touch index && printf '%s' > f && "
        .. "openssl ca -batch -notext -selfsign -keyfile t.key -in r -out t.crt -startdate 19500101000000Z "
        .. "-enddate %s -config f"):format(support.directory,
        "[ca]\\ndefault_ca=o\\n[o]\\ndatabase=index\\nnew_certs_dir=.\\nrand_serial=yes\\ndefault_md=sha256\\n"
        .. "policy=p\\n[p]\\ncommonName=supplied\\n", ends))
      local file = assert(io.open(support.directory .. "/t.crt"))
      local info = core.certificate(file:read "*a")
      file:close()
      local y, m, d, h, min, s = ends:match("(%d%d%d%d)(%d%d)(%d%d)(%d%d)(%d%d)(%d%d)")
      local text = shell(("date -u -d '%s-%s-%s %s:%s:%s' +%%s"):format(y, m, d, h, min, s))
      assert.equal(tonumber(text), info.not_after)
      assert.equal(-631152000, info.not_before)
      os.remove(support.directory .. "/index")
    end
  end)

  it("is none where the text makes no sense", function()
    local cert, key = core.new_identity "x"
    for _, text in ipairs { "", "x", key, cert:sub(1, 100), cert:gsub("A", "B"), ("x"):rep(100000),
      "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", cert:gsub("\n", "\0") } do
      local info, why = core.certificate(text)
      assert.is_nil(info)
      assert.is_string(why)
    end
    local around = "before\n" .. cert .. "after"
    assert.equal(core.certificate(cert).fingerprint, core.certificate(around).fingerprint)
  end)
end)

describe("a private file", function()
  before_each(support.begin)
  after_each(support.finally)

  it("is its owner's alone, whatever the umask, and never written over", function()
    local path = support.directory .. "/key"
    for _, mask in ipairs { "000", "077", "777" } do
      -- By a child: a umask is the process's.
      local script = support.file("s.lua", ('print(require "lualxd.core".write_private(%q, "secret"))'):format(path))
      local lua = rawget(_G, "jit") and "luajit" or _VERSION:lower():gsub(" ", "")
      if not os.getenv "LUALXD_SANITIZED" then
        local out = shell(("umask %s; LUA_CPATH='%s' %s %s"):format(mask, package.cpath, lua, script))
        assert.equal("true\n", out)
        assert.equal("600 6\n", shell("stat -c '%a %s' " .. path))
        os.remove(path)
      end
    end
    assert.is_true(core.write_private(path, ""))
    local ok, why, errno = core.write_private(path, "other")
    assert.is_nil(ok)
    assert.is_string(why)
    assert.equal(17, errno)
    os.execute("ln -s " .. support.directory .. "/elsewhere " .. support.directory .. "/link")
    assert.is_nil((core.write_private(support.directory .. "/link", "x")))
    assert.is_nil((core.write_private(support.directory .. "/no/where", "x")))
    assert.is_nil((core.write_private(path .. "\0x", "x")))
    if posix.getuid() == 0 then
      local free = core.write_private("/dev/full", "x") -- O_EXCL: it is there
      assert.is_nil(free)
    end
  end)
end)

describe("base64", function()
  it("is OpenSSL's, both ways, and nothing else is taken", function()
    for n = 0, 70 do
      local bytes = core.random(1024):sub(1, n):gsub("%x%x", function(hex)
        return string.char(tonumber(hex, 16))
      end)
      local text = core.base64(bytes)
      if n > 0 then
        assert.equal(bytes, core.unbase64(text))
      end
    end
    assert.equal("", core.base64 "")
    assert.equal("AAECAwQF", core.base64 "\0\1\2\3\4\5")
    for _, text in ipairs { "", "A", "AB", "ABC", "AB=C", "A===", "====", " QUJD", "QUJD\n", "QU JD", "QU-_",
      "QUI=QUI=", "QUJ\0", "QUJ\255" } do
      assert.is_nil(core.unbase64(text))
    end
    assert.is_nil(core.unbase64(("A"):rep(65540)))
    assert.has_error(function()
      core.base64(("x"):rep(65537))
    end)
  end)

  it("asks nobody for the password of an encrypted certificate", function()
    local pem = "-----BEGIN CERTIFICATE-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,"
      .. "00112233445566778899AABBCCDDEEFF\n\n" .. ("A"):rep(64) .. "\n-----END CERTIFICATE-----\n"
    local certificate, message = support.core.certificate(pem)
    assert.is_nil(certificate)
    assert.matches("no certificate", message)
    if os.getenv "LUALXD_SANITIZED" then
      return -- the child below couldn't load this core
    end
    -- Where there is no terminal, OpenSSL asks on standard error.
    local index, path = 0, os.tmpname()
    while arg[index - 1] do
      index = index - 1
    end
    local file = assert(io.open(path, "w"))
    file:write(string.format("print((require('lualxd.core').certificate(%q)))", pem))
    file:close()
    local pipe = assert(io.popen(string.format("LUA_PATH='%s' LUA_CPATH='%s' setsid '%s' %s 2>&1 < /dev/null",
      package.path, package.cpath, arg[index], path)))
    local out = pipe:read "*a"
    pipe:close()
    os.remove(path)
    assert.are.equal("nil\n", out)
  end)
end)
