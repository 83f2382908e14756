-- restore_json: what lua-cjson 2.1.0 loses comes back.
local support = require "spec.core.support"
local cjson = require "cjson"
local core = support.core

local array = { __name = "array" }

local function restore(tree, text)
  return core.restore_json(tree, text, array, cjson.null, cjson.decode)
end

local function through(text)
  return restore(cjson.decode(text), text)
end

-- What a tree holds, with what the core has put right in it written out.
local function show(value)
  if type(value) == "number" then
    return (math.type and math.type(value) == "integer" and "%d" or "%.17g"):format(value)
  elseif type(value) ~= "table" then
    return (type(value) == "string" and "%q" or "%s"):format(tostring(value))
  end
  local parts = {}
  for key, inner in pairs(value) do
    parts[#parts + 1] = ("%s=%s"):format(tostring(key), show(inner))
  end
  table.sort(parts)
  return (getmetatable(value) == array and "array" or "") .. "{" .. table.concat(parts, " ") .. "}"
end

describe("restore_json", function()
  it("gives empty arrays their metatable, objects none", function()
    local tree = through '{"a":[],"b":{},"c":[[],{},[ ],[\r\n\t]],"d":[1],"e":"[]","[]":{"f":[]}}'
    assert.equal('{[]={f=array{}} a=array{} b={} c={1=array{} 2={} 3=array{} 4=array{}} d={1=1} e="[]"}', show(tree))
    assert.equal(array, getmetatable(through "[]"))
    assert.equal(array, getmetatable(through " [ ] "))
    assert.is_nil(getmetatable(through "{}"))
  end)

  it("gives long integers back, as far as this Lua has them", function()
    local tree = through [[{"a":9223372036854775807,"b":-9223372036854775808,"c":18446744073709551615,
      "d":[0,1234567890123456]}]]
    if math.maxinteger then
      assert.equal(math.maxinteger, tree.a)
      assert.equal(math.mininteger, tree.b)
      assert.equal("integer", math.type(tree.a))
      assert.equal("integer", math.type(tree.d[2]))
    else
      assert.equal(2 ^ 63, tree.a)
    end
    assert.equal(2 ^ 64, tree.c)
    assert.equal(1234567890123456, tree.d[2])
    assert.equal(1234567890123456, through "1234567890123456")
  end)

  it("makes integers of integral floats, where Lua has integers", function()
    local tree = through '[1.0,2.5,-3,9007199254740992,1e3,1e300,0,1234567890123456.5,1234567890123456e1,-0]'
    assert.same({ 1, 2.5, -3, 2 ^ 53, 1000, 1e300, 0, 1234567890123456.5, 12345678901234560, 0 }, tree)
    if not math.type then
      return
    end
    local kinds = {}
    for index = 1, #tree do
      kinds[index] = math.type(tree[index])
    end
    assert.equal("integer float integer integer integer float integer float float integer", table.concat(kinds, " "))
    assert.equal("integer", math.type(through "200"))
  end)

  it("drops null, and closes the gap in arrays", function()
    local tree = through '{"a":null,"b":[null,1,null,[null],{"x":[],"y":null},null],"c":{"d":null},"e":"null"}'
    assert.equal("{b={1=1 2=array{} 3={x=array{}}} c={} e=\"null\"}", show(tree))
    assert.is_nil(through "null")
  end)

  it("finds what it is to put right wherever it is", function()
    for _, where in ipairs {
      '{"a":%s}', '[%s]', '[1,"]",%s]', '{"x":{"y":"}"},"a":%s,"b":"\\""}', '[[[{"a":%s}]],%s]',
      ' { "a\\u0062c" : [ %s , %s ] , "\\"" : %s } ',
      '{"a\\\\":%s,"b":{"c\\n":{"a\\\\":%s}}}', '{"":%s}', '["\\\\",%s]',
    } do
      local function with(text)
        return (where:gsub("%%s", function() return text end))
      end
      local nothing = show(through(with '"?"'))
      assert.equal(nothing, (show(through(with "[ ]")):gsub("array{}", '"?"')), where)
      assert.equal(nothing, (show(through(with "1234567890123456")):gsub("1234567890123456", '"?"')), where)
    end
  end)

  it("leaves alone what a key that comes twice makes of the tree", function()
    for text, want in pairs {
      ['{"a":[],"a":{"x":1}}'] = "{a={x=1}}",
      ['{"a":[],"a":"x"}'] = '{a="x"}',
      ['{"a":{"b":[]},"a":7}'] = "{a=7}",
      ['{"a":null,"a":"x"}'] = '{a="x"}',
      ['{"a":"x","a":null}'] = "{}",
      ['{"a":[null],"a":{"x":[1,null]}}'] = "{a={x={1=1}}}",
      ['{"a":1234567890123456,"a":"x"}'] = '{a="x"}',
      ['{"a":3,"a":2.5}'] = "{a=2.5}",
      ['{"a":[[[[]]]],"a":[[]]}'] = "{a={1=array{}}}",
    } do
      assert.equal(want, show(through(text)), text)
    end
  end)

  it("stops where lua-cjson stops", function()
    assert.equal("{}", show(restore({}, "{}\0[[[[")))
    assert.equal("x", restore("x", '"x"'))
    assert.is_true(restore(true, "true"))
  end)

  it("goes as deep as lua-cjson does, and no deeper", function()
    local depth = 1000
    local tree = through(("["):rep(depth) .. ("]"):rep(depth))
    for _ = 1, depth - 1 do
      tree = tree[1]
    end
    assert.equal(array, getmetatable(tree))
    assert.has_error(function() restore({}, ("["):rep(1002)) end, "the tree is nested too deeply")
  end)

  it("survives a text that isn't the tree's, and none at all", function()
    local alphabet = {
      "[", "]", '"', "\\", "1234567890123456", "-", ".", "e", "{", "}", ",", " ", "\0", "a", ":", "null", '"a":', "t",
      "f", "n", "1",
    }
    math.randomseed(42)
    for _ = 1, 20000 do
      local text = {}
      for i = 1, math.random(0, 16) do
        text[i] = alphabet[math.random(#alphabet)]
      end
      pcall(restore, { a = { { a = 1.0 } }, { cjson.null, "x" }, 2.0 }, table.concat(text))
    end
  end)

  -- The same by a walk over the whole tree, of a text in which nothing is lost.
  it("makes of any text what it says", function()
    math.randomseed(7)
    local function value(depth)
      local kind = math.random(depth > 5 and 7 or 10)
      if kind == 1 then return "[]", "array{}" end
      if kind == 2 then return "null" end
      if kind < 5 then
        local number = (kind == 3 and "%d" or "12345678901%d"):format(math.random(10000, 9999999))
        return number, show(tonumber(number))
      end
      if kind == 5 then return '"[]\\\\\\""', show '[]\\"' end
      if kind == 6 then return "1.5", "1.5" end
      if kind == 7 then return "{}", "{}" end
      local parts, shown, count = {}, {}, 0
      for i = 1, math.random(1, 5) do
        local text, inner = value(depth + 1)
        local key = (i % 3 == 0 and "k\\u00%02x" or "k%c"):format(96 + i)
        count = count + (inner and 1 or 0)
        parts[i] = (kind > 8 and '"' .. key .. '" :' or "") .. text
        if inner then
          shown[#shown + 1] = ("%s=%s"):format(kind > 8 and "k" .. string.char(96 + i) or count, inner)
        end
      end
      table.sort(shown)
      local empty = kind == 8 and count == 0
      return (kind > 8 and "{ %s}" or "[%s ]"):format(table.concat(parts, ", ")),
        (empty and "array" or "") .. "{" .. table.concat(shown, " ") .. "}"
    end
    for _ = 1, 3000 do
      local text, shown = value(1)
      assert.equal(shown or "nil", show(through(text)), text)
    end
  end)

  it("is linear in the length of the text", function()
    local began = core.now()
    restore({}, ('"' .. ("\\"):rep(1000)):rep(2000))
    pcall(restore, {}, ("["):rep(1000000))
    restore({}, ("[ "):rep(1000))
    restore(1, ("1"):rep(1000000))
    through("[" .. ("null,"):rep(100000) .. "1]")
    through("[" .. ("[],"):rep(100000) .. "1]")
    assert.is_true(core.now() - began < 20)
  end)
end)
