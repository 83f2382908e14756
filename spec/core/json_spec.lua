-- mark_json and restore_json: what lua-cjson 2.1.0 would lose comes through.
local support = require "spec.core.support"
local cjson = require "cjson"
local core = support.core

local MARK = "@7f3a:"

local function mark(text)
  return (core.mark_json(text, MARK))
end

describe("mark_json", function()
  it("marks empty arrays wherever they are", function()
    assert.equal('["@7f3a:"]', mark "[]")
    assert.equal('{"a":["@7f3a:"],"b":[["@7f3a:"],["@7f3a:"]]}', mark '{"a":[],"b":[[ ],[\r\n\t]]}')
  end)

  it("leaves arrays that hold something", function()
    for _, text in ipairs { "[1]", "[ 1 ]", "[[1]]", "[{}]", '["]"]', "[", "[ ", "" } do
      assert.equal(text, mark(text))
    end
  end)

  it("marks integers that a double can't be trusted with", function()
    assert.equal('"@7f3a:1234567890123456"', mark "1234567890123456")
    assert.equal('[1,"@7f3a:-9223372036854775808",2]', mark "[1,-9223372036854775808,2]")
    assert.equal('{"a":"@7f3a:18446744073709551615"}', mark '{"a":18446744073709551615}')
  end)

  it("leaves other numbers", function()
    for _, text in ipairs { "123456789012345", "-123456789012345", "1234567890123456.5",
      "1234567890123456e3", "1234567890123456E+3", "0.1234567890123456789", "1e1234567890123456",
      "-", "-0" } do
      assert.equal(text, mark(text))
    end
  end)

  it("looks at nothing within strings", function()
    for _, text in ipairs { '"[]"', '"\\"[]"', '"\\\\\\"[] 1234567890123456"', '"1234567890123456"',
      '{"[]":"[]"}', '"[]', '"\\', '"\\"', '"' } do
      assert.equal(text, mark(text))
    end
    assert.equal('"\\\\"["@7f3a:"]', mark '"\\\\"[]')
    assert.equal('"a\\\\\\\\",["@7f3a:"]', mark '"a\\\\\\\\",[]')
  end)

  it("copes with NUL bytes and with anything at all", function()
    assert.equal("\0[\0]", mark "\0[\0]")
    assert.equal("1234567890123456\0",
      (mark "1234567890123456\0":gsub('"', ""):gsub(MARK, "")))
    local alphabet = { "[", "]", '"', "\\", "1234567890", "-", ".", "e", "{", "}", ",", " ", "\0", "a" }
    math.randomseed(42)
    for _ = 1, 20000 do
      local text = {}
      for i = 1, math.random(0, 12) do
        text[i] = alphabet[math.random(#alphabet)]
      end
      text = table.concat(text)
      local marked = mark(text)
      -- What was put in can be taken out again.
      local back = marked:gsub('%["@7f3a:"%]', "[]"):gsub('"@7f3a:(%-?%d+)"', "%1")
      assert.equal((text:gsub("%[ +%]", "[]")), (back:gsub("%[ +%]", "[]")))
    end
  end)

  it("is linear in the length of the text", function()
    local t = core.now()
    mark(('"' .. ("\\"):rep(1000)):rep(2000))
    mark(("["):rep(1000000))
    mark(("[ "):rep(1000000))
    mark(("1"):rep(1000000))
    assert.is_true(core.now() - t < 2)
  end)
end)

describe("restore_json", function()
  local array = { __name = "array" }

  local function restore(tree)
    return core.restore_json(tree, MARK, array, cjson.null)
  end

  local function through(text)
    return restore(cjson.decode(mark(text)))
  end

  it("gives empty arrays their metatable, objects none", function()
    local tree = through '{"a":[],"b":{},"c":[[],{}]}'
    assert.equal(array, getmetatable(tree.a))
    assert.is_nil(next(tree.a))
    assert.is_nil(getmetatable(tree.b))
    assert.equal(array, getmetatable(tree.c[1]))
    assert.is_nil(getmetatable(tree.c[2]))
    assert.equal(array, getmetatable(through "[]"))
  end)

  it("gives long integers back, as far as this Lua has them", function()
    local tree = through '{"a":9223372036854775807,"b":-9223372036854775808,"c":18446744073709551615}'
    if math.maxinteger then
      assert.equal(math.maxinteger, tree.a)
      assert.equal(math.mininteger, tree.b)
      assert.equal("integer", math.type(tree.a))
    else
      assert.equal(2 ^ 63, tree.a)
    end
    assert.equal(2 ^ 64, tree.c)
    assert.equal(1234567890123456, through "1234567890123456")
  end)

  it("makes integers of integral floats, where Lua has integers", function()
    local tree = restore { 1.0, 2.5, -3.0, 2.0 ^ 53, 2.0 ^ 54, 1e300, 1 / 0, 7 }
    assert.same({ 1, 2.5, -3, 2 ^ 53, 2 ^ 54, 1e300, 1 / 0, 7 }, tree)
    if not math.type then
      return
    end
    assert.equal("integer", math.type(tree[1]))
    assert.equal("float", math.type(tree[2]))
    assert.equal("integer", math.type(tree[3]))
    assert.equal("integer", math.type(tree[4]))
    assert.equal("float", math.type(tree[5]))
    assert.equal("float", math.type(tree[6]))
    assert.equal("float", math.type(tree[7]))
    assert.equal("integer", math.type(tree[8]))
    assert.equal("integer", math.type(restore(200.0)))
  end)

  it("drops null, and closes the gap in arrays", function()
    local tree = through '{"a":null,"b":[null,1,null,[null],2,null],"c":{"d":null}}'
    assert.is_nil(tree.a)
    assert.equal(3, #tree.b)
    assert.equal(1, tree.b[1])
    assert.equal(array, getmetatable(tree.b[2]))
    assert.is_nil(next(tree.b[2]))
    assert.equal(2, tree.b[3])
    assert.is_nil(next(tree.c))
    assert.is_nil(restore(cjson.null))
  end)

  it("leaves what it has no business with", function()
    local meta = {}
    local inner = setmetatable({ 1 }, meta)
    local tree = { a = "x", b = MARK .. "12x", c = MARK, d = { MARK, MARK }, e = inner, f = true,
      g = MARK .. "-", h = MARK .. "" }
    local got = restore(tree)
    assert.equal(tree, got)
    assert.same({ a = "x", b = MARK .. "12x", c = MARK, d = { MARK, MARK }, e = inner, f = true,
      g = MARK .. "-", h = MARK }, got)
    assert.equal(meta, getmetatable(got.e))
    assert.equal("text", restore "text")
    assert.is_true(restore(true))
  end)

  it("keeps the metatable of an array that another decoder gave it", function()
    local meta = {}
    local got = restore(setmetatable({ cjson.null }, meta))
    assert.equal(meta, getmetatable(got))
  end)

  it("walks as deep as lua-cjson decodes, and no deeper than the stack lets it", function()
    local depth = 1000
    local tree = through(("["):rep(depth) .. ("]"):rep(depth))
    for _ = 1, depth - 1 do
      tree = tree[1]
    end
    assert.equal(array, getmetatable(tree))
    local loop = {}
    loop[1] = loop
    assert.has_error(function() restore(loop) end, "the tree is nested too deeply")
  end)

  it("survives any text that cjson takes", function()
    math.randomseed(7)
    local function value(depth)
      local kind = math.random(depth > 4 and 6 or 8)
      if kind == 1 then return "[]" end
      if kind == 2 then return "null" end
      if kind == 3 then return ("%d"):format(math.random(0, 99999)) end
      if kind == 4 then return ("12345678901%d"):format(math.random(10000, 999999)) end
      if kind == 5 then return '"[]\\\\\\""' end
      if kind == 6 then return "1.5" end
      local parts = {}
      for i = 1, math.random(0, 5) do
        parts[i] = (kind == 7 and '"k%d":' or ""):format(i) .. value(depth + 1)
      end
      return (kind == 7 and "{%s}" or "[%s]"):format(table.concat(parts, ","))
    end
    local function check(tree)
      assert.are_not.equal(cjson.null, tree)
      if type(tree) == "table" then
        assert.are_not.equal(MARK, tree[1])
        for _, inner in pairs(tree) do
          check(inner)
        end
      elseif type(tree) == "string" then
        assert.equal('[]\\"', tree)
      end
    end
    for _ = 1, 2000 do
      check(through(value(1)))
    end
  end)
end)
