/* What differs between Lua 5.3, Lua 5.4 and LuaJIT, so that no other file has to know.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_COMPAT_H
#define LXD_COMPAT_H

#include <lauxlib.h>
#include <lua.h>

/* LuaJIT, which has what is missing in the Lua whose number it bears, knows its directory. */
#if LUA_VERSION_NUM < 503 && !defined(LUA_LJDIR)
#error "lualxd needs Lua 5.3, 5.4 or LuaJIT"
#endif

#if LUA_VERSION_NUM < 503
#define lua_rawlen lua_objlen
/* An environment stands in for the user value: both keep a table alive with the userdata. */
#define lua_setuservalue(L, i) ((void)lua_setfenv(L, i))
#define lua_getuservalue(L, i) lua_getfenv(L, i)
/* Lua 5.1 has one kind of number. */
#define lua_isinteger(L, i) ((void)(L), (void)(i), 0)
#endif

#endif
