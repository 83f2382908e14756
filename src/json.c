/* What lua-cjson loses, marked before it decodes and put right afterwards.
 * SPDX-License-Identifier: MIT */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define DIGITS 15     /* that a double surely holds */
#define SPARE 512     /* bytes for marks: those of a dozen empty arrays */
#define DEPTH 1100    /* a little more than lua-cjson lets a tree be */
#define EXACT 9007199254740992.0 /* 2^53 */

/* What restore_json knows; the values are stack indices. */
typedef struct restorer {
    const char *mark;
    size_t length; /* of mark */
    int array;     /* the metatable of arrays */
    int null;      /* the decoder's null */
    bool strings;  /* a string may be a marked integer */
} restorer;

/* The position behind the string whose opening quote is at `at`. */
static size_t skip_string(const char *s, size_t n, size_t at)
{
    for (at++; at < n; at++) {
        const char *quote = memchr(s + at, '"', n - at);
        if (!quote) return n;
        size_t end = (size_t)(quote - s), slashes = 0;
        while (end - slashes > at && s[end - slashes - 1] == '\\') slashes++;
        /* Backslashes before `at` belong to an escaped quote that was passed, or to none. */
        if (slashes % 2 == 0) return end + 1;
        at = end;
    }
    return n;
}

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The position behind the number at `at`; whether it is an integer too long for a double. */
static size_t skip_number(const char *s, size_t n, size_t at, bool *long_integer)
{
    size_t first = s[at] == '-' ? at + 1 : at, end = first;
    while (end < n && digit(s[end])) end++;
    *long_integer = end - first > DIGITS;
    for (; end < n && (digit(s[end]) || strchr(".eE+-", s[end])); end++) {
        if (s[end] == 0) break; /* strchr finds that, too */
        *long_integer = false;
    }
    return end;
}

/* The position of the bracket that closes the empty array at `at`, or 0. */
static size_t empty_array(const char *s, size_t n, size_t at)
{
    for (at++; at < n && (s[at] == ' ' || s[at] == '\n' || s[at] == '\t' || s[at] == '\r'); at++) {}
    return at < n && s[at] == ']' ? at : 0;
}

/* A buffer for a text and some marks, which is made once if Lua can. */
static void begin(lua_State *L, luaL_Buffer *b, size_t n)
{
#if LUA_VERSION_NUM >= 502
    luaL_buffinitsize(L, b, n + SPARE);
#else
    (void)n;
    luaL_buffinit(L, b);
#endif
}

static int l_core_mark_json(lua_State *L)
{
    size_t n, length, copied = 0, at = 0;
    const char *s = luaL_checklstring(L, 1, &n);
    const char *mark = luaL_checklstring(L, 2, &length);
    luaL_Buffer b;
    bool changed = false, long_integers = false;
    while (at < n) {
        size_t start = at, end;
        bool long_integer = false;
        if (s[at] == '"') {
            at = skip_string(s, n, at);
            continue;
        } else if (s[at] == '[' && (end = empty_array(s, n, at)) > 0) {
            at = end + 1;
        } else if (s[at] == '-' || digit(s[at])) {
            at = skip_number(s, n, at, &long_integer);
            if (!long_integer) continue;
        } else {
            at++;
            continue;
        }
        if (!changed) begin(L, &b, n);
        changed = true;
        if (long_integer) long_integers = true;
        luaL_addlstring(&b, s + copied, start - copied);
        luaL_addlstring(&b, long_integer ? "\"" : "[\"", long_integer ? 1 : 2);
        luaL_addlstring(&b, mark, length);
        if (long_integer) luaL_addlstring(&b, s + start, at - start);
        luaL_addlstring(&b, long_integer ? "\"" : "\"]", long_integer ? 1 : 2);
        copied = at;
    }
    if (!changed) {
        lua_settop(L, 1);
    } else {
        luaL_addlstring(&b, s + copied, n - copied);
        luaL_pushresult(&b);
    }
    lua_pushboolean(L, long_integers);
    return 2;
}

/* Whether the string at the top is the mark, followed by what `rest` then points to. */
static bool marked(lua_State *L, const restorer *how, const char **rest, size_t *n)
{
    if (lua_type(L, -1) != LUA_TSTRING) return false;
    const char *s = lua_tolstring(L, -1, n);
    if (*n < how->length || memcmp(s, how->mark, how->length) != 0) return false;
    *rest = s + how->length;
    *n -= how->length;
    return true;
}

/* Pushes the number that the digits say; false where they aren't any. */
static bool push_digits(lua_State *L, const char *digits, size_t n)
{
    size_t i = n > 0 && digits[0] == '-' ? 1 : 0;
    if (i == n) return false;
    for (; i < n; i++)
        if (!digit(digits[i])) return false;
#if LUA_VERSION_NUM >= 503
    errno = 0;
    long long integer = strtoll(digits, NULL, 10); /* a Lua string ends with a NUL */
    if (errno == 0) {
        lua_pushinteger(L, integer);
        return true;
    }
#endif
    lua_pushnumber(L, strtod(digits, NULL));
    return true;
}

/* Replaces the value at the top, which is no table, by what it stands for; whether it did. */
static bool restore_scalar(lua_State *L, const restorer *how)
{
    const char *rest;
    size_t n;
    switch (lua_type(L, -1)) {
    case LUA_TSTRING:
        if (!how->strings || !marked(L, how, &rest, &n) || !push_digits(L, rest, n)) return false;
        break;
    case LUA_TNUMBER: {
#if LUA_VERSION_NUM >= 503
        if (lua_isinteger(L, -1)) return false;
        lua_Number x = lua_tonumber(L, -1);
        if (!(x >= -EXACT && x <= EXACT) || floor(x) != x) return false;
        lua_pushinteger(L, (lua_Integer)x);
        break;
#else
        return false;
#endif
    }
    default:
        if (!lua_rawequal(L, -1, how->null)) return false;
        lua_pushnil(L);
    }
    lua_replace(L, -2);
    return true;
}

/* Whether the table at the top holds the mark and nothing else. */
static bool marked_array(lua_State *L, const restorer *how, size_t length)
{
    const char *rest;
    size_t n;
    if (length != 1) return false;
    lua_rawgeti(L, -1, 1);
    bool yes = marked(L, how, &rest, &n) && n == 0;
    lua_pop(L, 1);
    return yes;
}

/* Puts right the table at the top, in place. Recursion is as deep as the tree. */
static void restore_table(lua_State *L, const restorer *how, int depth)
{
    if (depth > DEPTH) luaL_error(L, "the tree is nested too deeply");
    luaL_checkstack(L, 8, "the tree is nested too deeply");
    size_t length = lua_rawlen(L, -1), kept = 0;
    if (marked_array(L, how, length)) {
        lua_pushnil(L);
        lua_rawseti(L, -2, 1);
        lua_pushvalue(L, how->array);
        lua_setmetatable(L, -2);
        return;
    }
    if (length == 0) {
        lua_pushnil(L);
        while (lua_next(L, -2)) {
            int type = lua_type(L, -1);
            if (type == LUA_TSTRING && !how->strings) {
                /* most of what LXD answers */
            } else if (type == LUA_TTABLE) {
                restore_table(L, how, depth + 1);
            } else if (restore_scalar(L, how)) {
                lua_pushvalue(L, -2);
                lua_pushvalue(L, -2);
                lua_rawset(L, -5); /* existing fields may be changed and cleared under way */
            }
            lua_pop(L, 1);
        }
        return;
    }
    for (size_t i = 1; i <= length; i++) {
        bool changed = false;
        lua_rawgeti(L, -1, (int)i);
        if (lua_istable(L, -1)) restore_table(L, how, depth + 1);
        else changed = restore_scalar(L, how);
        if (lua_isnil(L, -1)) {
            lua_pop(L, 1);
            continue;
        }
        kept++;
        if (changed || kept != i) lua_rawseti(L, -2, (int)kept);
        else lua_pop(L, 1);
    }
    for (size_t i = length; i > kept; i--) {
        lua_pushnil(L);
        lua_rawseti(L, -2, (int)i);
    }
    if (kept > 0 || lua_getmetatable(L, -1)) {
        if (kept == 0) lua_pop(L, 1);
        return;
    }
    lua_pushvalue(L, how->array); /* of nothing but nulls: still an array */
    lua_setmetatable(L, -2);
}

static int l_core_restore_json(lua_State *L)
{
    restorer how = {.array = 3, .null = 4};
    luaL_checkany(L, 1);
    how.mark = luaL_checklstring(L, 2, &how.length);
    luaL_checktype(L, 3, LUA_TTABLE);
    luaL_checkany(L, 4);
    how.strings = lua_isnoneornil(L, 5) || lua_toboolean(L, 5);
    lua_settop(L, 4);
    lua_pushvalue(L, 1);
    if (lua_istable(L, -1)) restore_table(L, &how, 1);
    else restore_scalar(L, &how);
    return 1;
}

void lualxd_open_json(lua_State *L)
{
    lua_pushcfunction(L, l_core_mark_json);
    lua_setfield(L, -2, "mark_json");
    lua_pushcfunction(L, l_core_restore_json);
    lua_setfield(L, -2, "restore_json");
}
