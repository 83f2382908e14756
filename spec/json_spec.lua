-- lua-cjson made lossless: what the server said goes back unchanged.
local json = require "lualxd.json"
local words = require "lualxd.words"

-- A text through decode and encode; keys are sorted by encode, so write them sorted here.
local function round(text)
  return json.encode(assert(json.decode(text)))
end

describe("json", function()
  it("keeps empty arrays and empty objects apart, wherever they are", function()
    for _, text in ipairs {
      '{"a":[],"b":{}}', "[]", "{}", "[[],{}]", '{"x":{"y":[[],[{}]]}}', '{"a":[1,[],"[]"]}',
    } do
      assert.are.equal(text, round(text))
    end
    assert.are.equal('{"a":[]}', round '{"a" : [ \n\t ]}')
  end)

  it("leaves strings alone that look like arrays or long numbers", function()
    for _, text in ipairs {
      '{"a":"[]"}', '{"a":"x[]y"}', [[{"a":"\"[]"}]], [[{"a":"\\","b":[]}]],
      '{"a":"12345678901234567890"}', '{"[]":"12345678901234567"}',
    } do
      assert.are.equal(text, round(text))
    end
  end)

  it("keeps integers integers", function()
    for _, text in ipairs { "[0]", "[-1]", "[1496275200]", "[999999999999999]", "[9007199254740991]" } do
      assert.are.equal(text, round(text))
    end
    local value = json.decode('{"n":10}').n
    assert.are.equal("10", tostring(value))
    assert.are.equal("0.5", tostring(json.decode('{"n":0.5}').n))
    if math.type then
      assert.are.equal("integer", math.type(value))
      assert.are.equal("[9223372036854775807]", round "[9223372036854775807]")
      assert.are.equal("[-9223372036854775808]", round "[-9223372036854775808]")
    end
  end)

  it("writes numbers with all their digits", function()
    assert.are.equal("[0.1]", json.encode { 0.1 }:gsub("0.10000000000000001", "0.1"))
    assert.are.equal(0.1, json.decode(json.encode { 0.1 })[1])
    assert.are.equal("[4294967296]", json.encode { 2 ^ 32 })
  end)

  it("lets null be absent, in arrays too", function()
    assert.are.equal('{"b":1}', round '{"a":null,"b":1}')
    assert.are.equal("[1,2]", round "[null,1,null,2]")
    assert.is_nil(json.decode "null")
  end)

  it("writes known lists of LXD's as lists when they are empty, but not in maps of free names", function()
    assert.are.equal('{"profiles":[]}', json.encode { profiles = {} })
    assert.are.equal('{"config":{"profiles":{}}}', json.encode { config = { profiles = {} } })
    assert.are.equal('{"x":[]}', json.encode { x = json.array {} })
  end)

  it("makes strings of what LXD wants as strings", function()
    local data = json.as_strings {
      name = "web",
      ephemeral = true,
      config = { ["boot.autostart"] = true, ["limits.cpu"] = 2, ["limits.x"] = 2.0, y = 0.5 },
      devices = { root = { size = 10, type = "disk" } },
    }
    assert.are.same({
      name = "web",
      ephemeral = true,
      config = { ["boot.autostart"] = "true", ["limits.cpu"] = "2", ["limits.x"] = "2", y = "0.5" },
      devices = { root = { size = "10", type = "disk" } },
    }, data)
    assert.are.same({ properties = { zero = "0", large = "18446744073709551616" } },
      json.as_strings { properties = { zero = -0.0, large = 2 ^ 64 } })
    assert.are.equal("[0]", json.encode { -0.0 })
  end)

  it("refuses what JSON can't hold", function()
    local cycle = {}
    cycle.cycle = cycle
    for _, value in ipairs { cycle, { print }, { "\255" }, { ["\195"] = 1 }, { 0 / 0 }, { math.huge }, { [{}] = 1 } } do
      assert.is_false(pcall(json.encode, value))
    end
    for _, value in ipairs { 0 / 0, math.huge, -math.huge, cycle } do
      assert.is_false(pcall(json.as_strings, { config = { value } }))
    end
  end)

  it("drops nothing of an array that is none", function()
    for _, list in ipairs { json.array { "a", nil, "c" }, json.array { [2] = "b" }, json.array { a = 1 } } do
      local ok, problem = pcall(json.encode, { profiles = list })
      assert.is_false(ok)
      assert.matches("an array that has a hole or a name in it", problem, 1, true)
    end
  end)

  it("writes no word of a declaration, but takes unset for what isn't there", function()
    for _, word in ipairs { words.auto, words.absent, words.ignore, words.secret "x" } do
      for _, field in ipairs { "config", "field" } do
        local ok, problem = pcall(function()
          return json.encode(json.as_strings { [field] = { x = word } })
        end)
        assert.is_false(ok)
        assert.truthy(problem:find(tostring(word), 1, true), problem)
      end
    end
    assert.are.equal('{"config":{"x":null}}', json.encode(json.as_strings { config = { x = words.unset } }))
  end)

  it("tells what isn't JSON, at any depth", function()
    for _, text in ipairs {
      "", "{", '{"a":}', "<html>", '{"a":1', "[1,]", ("["):rep(100000), ("["):rep(100000) .. ("]"):rep(100000),
    } do
      local value, message = json.decode(text)
      assert.is_nil(value)
      assert.is_string(message)
    end
  end)

  it("writes equal data as equal text", function()
    local one, other = {}, {}
    for i = 1, 50 do
      one["k" .. i] = i
      other["k" .. (51 - i)] = 51 - i
    end
    assert.are.equal(json.encode(one), json.encode(other))
  end)
end)
