/* Gives what libFuzzer makes up to a function of Lua: $LUALXD_FUZZ names the script that returns it.
 * SPDX-License-Identifier: MIT
 *
 * The core is linked in, under AddressSanitizer and UndefinedBehaviorSanitizer. An error that the
 * function raises is a finding, too. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#define COLLECT_EVERY 64 /* so that a leak of one round is seen soon after it */

int luaopen_lualxd_core(lua_State *L);
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static lua_State *L; /* with the function at the bottom of its stack; for the life of the process */

static void check(int status)
{
    if (status == 0) return;
    fprintf(stderr, "fuzz: %s\n", lua_tostring(L, -1));
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    const char *script = getenv("LUALXD_FUZZ");
    L = luaL_newstate();
    if (!L || !script) abort();
    luaL_openlibs(L);
    luaL_requiref(L, "lualxd.core", luaopen_lualxd_core, 0);
    lua_pop(L, 1);
    check(luaL_loadfile(L, script));
    check(lua_pcall(L, 0, 1, 0));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static unsigned rounds;
    lua_pushvalue(L, 1);
    lua_pushlstring(L, (const char *)bytes, n);
    check(lua_pcall(L, 1, 0, 0));
    if (++rounds % COLLECT_EVERY == 0) lua_gc(L, LUA_GCCOLLECT, 0);
    return 0;
}
