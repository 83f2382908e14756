-- lualxd/ runs on Lua 5.3, 5.4 and LuaJIT: only what all of them share.
std = "min"
max_line_length = 120
read_globals = { "ngx", "newproxy", "jit", math = { fields = { "type", "tointeger" } },
  table = { fields = { "unpack" } }, "unpack",
  coroutine = { fields = { "_create", "_resume", "_status", "_yield" } } } -- nginx's, see lualxd/loop/task.lua
files["spec"] = { std = "max+busted" }
files["bench"] = { std = "max" }
files["examples"] = { std = "max" }
exclude_files = { "**/*.d.lua" }
