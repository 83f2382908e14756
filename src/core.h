/* What every file of the core shares: memory, the clock, opening each type.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_CORE_H
#define LXD_CORE_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

#include "compat.h"

/* A build may put allocators here that fail on purpose (spec/core). */
#ifndef LXD_MALLOC
#define LXD_MALLOC malloc
#define LXD_CALLOC calloc
#define LXD_REALLOC realloc
#define LXD_FREE free
#endif

#define LXD_NEVER INT64_MAX /* a time that doesn't come */

/* Nanoseconds of a clock that never goes back. */
static inline int64_t lxd_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The process that this is, without a system call: every method asks, to see forks. */
pid_t lxd_pid(void);

/* Makes the metatable of a type: `methods` under __index, `metamethods` beside it. Pushes nothing. */
void lxd_new_type(lua_State *L, const char *name, const luaL_Reg *methods,
                  const luaL_Reg *metamethods);

/* Pushes bytes as lower-case hexadecimal; at most LXD_HEX_MAX of them. */
#define LXD_HEX_MAX 1024
void lxd_push_hex(lua_State *L, const unsigned char *bytes, size_t n);

/* Each adds its type and its functions to the module table on top of the stack. */
void lualxd_open_poller(lua_State *L);
void lualxd_open_waiter(lua_State *L);
void lualxd_open_engine(lua_State *L);
void lualxd_open_request(lua_State *L);
void lualxd_open_json(lua_State *L);
void lualxd_open_identity(lua_State *L);

#endif
