/* A Lua interpreter that carries a sanitizer's runtime: driver SCRIPT ARGUMENTS…
 * SPDX-License-Identifier: MIT */
#include <stdio.h>

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
    if (luaL_loadfile(L, argv[1]) == 0) {
        for (int i = 2; i < argc; i++) lua_pushstring(L, argv[i]);
        failed = lua_pcall(L, argc - 2, 0, 0);
    }
    if (failed) fprintf(stderr, "%s\n", lua_tostring(L, -1));
    lua_close(L);
    return failed != 0;
}
