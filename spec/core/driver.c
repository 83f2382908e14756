/* A Lua interpreter that carries a sanitizer's runtime: driver SCRIPT ARGUMENTS…, or driver -e TEXT.
 * With LUALXD_COLLECT in the environment garbage is collected without a rest, some of it at each allocation.
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

int main(int argc, char **argv)
{
    lua_State *L = luaL_newstate();
    int failed = 1;
    if (!L || argc < 2) return 2;
    luaL_openlibs(L);
    lua_createtable(L, argc, 1);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - 1);
    }
    lua_setglobal(L, "arg");
    if (getenv("LUALXD_COLLECT")) {
        lua_gc(L, LUA_GCINC, 0, 1000, 1);
        lua_gc(L, LUA_GCSETPAUSE, 0);
    }
    int text = argc > 2 && strcmp(argv[1], "-e") == 0;
    if ((text ? luaL_loadstring(L, argv[2]) : luaL_loadfile(L, argv[1])) == 0) {
        for (int i = 2; i < argc; i++) lua_pushstring(L, argv[i]);
        failed = lua_pcall(L, argc - 2, 0, 0);
    }
    if (failed) fprintf(stderr, "%s\n", lua_tostring(L, -1));
    lua_close(L);
    return failed != 0;
}
