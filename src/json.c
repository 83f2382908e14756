/* What lua-cjson loses, put right in the tree that it made by a second look at the text.
 * SPDX-License-Identifier: MIT
 *
 * The tree isn't walked, which would cost as much as a quarter of its decoding: the text says where there is something
 * to put right, and only the tables on the way there are looked up. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define DIGITS 15     /* that a double surely holds */
#define DEPTH 1001    /* one more than lua-cjson lets a tree be */
#define EXACT 9007199254740992.0 /* 2^53 */

/* An object or array of the text that isn't closed yet, and the slot in it that the text is at. */
typedef struct level {
    const char *key; /* of an object: in its quotes, as in the text; NULL: an array */
    size_t length;   /* of key */
    int index;       /* of an array */
    bool object, key_next, nulls;
} level;

/* The tree's tables on the way to where the text is lie on the Lua stack, the first `entered` of them: as far as
 * something had to be put right. Where the text has a key twice, the tree may hold something else than a table there;
 * whatever is below is left alone then. */
typedef struct restorer {
    lua_State *L;
    int array;  /* stack index: the metatable of arrays */
    int null;   /* stack index: the decoder's null */
    int decode; /* stack index: the decoder, for keys with escapes */
    int depth, entered;
    level levels[DEPTH];
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

static bool space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The position behind the number at `at`; whether it is an integer too long for a double. */
static size_t skip_number(const char *s, size_t n, size_t at, bool *long_integer)
{
    size_t first = s[at] == '-' ? at + 1 : at, end = first;
    while (end < n && digit(s[end])) end++;
    *long_integer = end - first > DIGITS;
    for (; end < n && (digit(s[end]) || s[end] == '.' || s[end] == 'e' || s[end] == 'E' || s[end] == '+' ||
                       s[end] == '-'); end++)
        *long_integer = false;
    return end;
}

/* The position of the bracket that closes the empty array at `at`, or 0. */
static size_t empty_array(const char *s, size_t n, size_t at)
{
    for (at++; at < n && space(s[at]); at++) {}
    return at < n && s[at] == ']' ? at : 0;
}

/* Pushes the key of an object's slot. */
static void push_key(const restorer *r, const level *l)
{
    if (!memchr(l->key, '\\', l->length)) {
        lua_pushlstring(r->L, l->key + 1, l->length - 2);
        return;
    }
    lua_pushvalue(r->L, r->decode);
    lua_pushlstring(r->L, l->key, l->length);
    lua_call(r->L, 1, 1);
}

/* Pushes what the tree holds in the slot of the level whose table is at the top. */
static void push_slot(const restorer *r, const level *l)
{
    if (!lua_istable(r->L, -1)) {
        lua_pushnil(r->L);
    } else if (!l->object) {
        lua_rawgeti(r->L, -1, l->index);
    } else if (l->key) {
        push_key(r, l);
        lua_rawget(r->L, -2);
    } else {
        lua_pushnil(r->L);
    }
}

/* Pushes the value in the slot of a level, by its number; of none: the whole tree. */
static void push_of(const restorer *r, int depth)
{
    if (depth == 0) lua_pushvalue(r->L, 1);
    else push_slot(r, &r->levels[depth - 1]);
}

/* Has the tables of all open levels on the stack. */
static void enter(restorer *r)
{
    for (; r->entered < r->depth; r->entered++) {
        luaL_checkstack(r->L, 8, "the tree is nested too deeply");
        push_of(r, r->entered);
    }
}

/* Pushes the value that the text is at. */
static void push_value(restorer *r)
{
    enter(r);
    push_of(r, r->depth);
}

/* Puts the value at the top in place of the one that the text is at, and pops it. */
static void replace_value(restorer *r)
{
    const level *l = r->depth > 0 ? &r->levels[r->depth - 1] : NULL;
    if (!l) {
        lua_replace(r->L, 1);
    } else if (!l->object) {
        lua_rawseti(r->L, -2, l->index);
    } else {
        push_key(r, l);
        lua_insert(r->L, -2);
        lua_rawset(r->L, -3);
    }
}

static void restore_array(restorer *r)
{
    lua_State *L = r->L;
    push_value(r);
    if (lua_istable(L, -1)) {
        lua_pushnil(L);
        if (lua_next(L, -2)) {
            lua_pop(L, 2); /* of the same key, later */
        } else {
            lua_pushvalue(L, r->array);
            lua_setmetatable(L, -2);
        }
    }
    lua_pop(L, 1);
}

static void restore_null(restorer *r)
{
    if (r->depth > 0 && !r->levels[r->depth - 1].object) {
        r->levels[r->depth - 1].nulls = true;
        return;
    }
    push_value(r);
    bool null = lua_rawequal(r->L, -1, r->null);
    lua_pop(r->L, 1);
    if (!null) return;
    lua_pushnil(r->L);
    replace_value(r);
}

#if LUA_VERSION_NUM >= 503
/* `digits`: the text of an integer that a double may not hold, or NULL. */
static void restore_number(restorer *r, const char *digits)
{
    lua_State *L = r->L;
    push_value(r);
    bool is_float = lua_type(L, -1) == LUA_TNUMBER && !lua_isinteger(L, -1);
    lua_Number x = is_float ? lua_tonumber(L, -1) : 0;
    lua_pop(L, 1);
    if (!is_float) return;
    errno = 0;
    long long integer = digits ? strtoll(digits, NULL, 10) : 0; /* a Lua string ends with a NUL */
    if (!digits || errno != 0) {
        if (!(x >= -EXACT && x <= EXACT) || floor(x) != x) return;
        integer = (long long)x;
    } else if ((lua_Number)integer != x) {
        return; /* of the same key, later */
    }
    lua_pushinteger(L, integer);
    replace_value(r);
}
#endif

/* Closes the gaps that nulls leave in the array at the top. */
static void close_gaps(const restorer *r)
{
    lua_State *L = r->L;
    int length = lua_istable(L, -1) ? (int)lua_rawlen(L, -1) : 0, kept = 0;
    if (length == 0) return;
    for (int i = 1; i <= length; i++) {
        lua_rawgeti(L, -1, i);
        if (lua_rawequal(L, -1, r->null)) lua_pop(L, 1);
        else lua_rawseti(L, -2, ++kept);
    }
    for (int i = length; i > kept; i--) {
        lua_pushnil(L);
        lua_rawseti(L, -2, i);
    }
    if (kept > 0) return;
    lua_pushvalue(L, r->array); /* of nothing but nulls: still an array */
    lua_setmetatable(L, -2);
}

static void open_level(restorer *r, bool object)
{
    if (r->depth == DEPTH) luaL_error(r->L, "the tree is nested too deeply");
    level *l = &r->levels[r->depth++];
    l->key = NULL;
    l->index = 1;
    l->object = l->key_next = object;
    l->nulls = false;
}

static void close_level(restorer *r)
{
    if (r->depth == 0) return;
    level *l = &r->levels[r->depth - 1];
    if (l->nulls) {
        enter(r);
        close_gaps(r);
    }
    if (r->entered == r->depth) {
        lua_pop(r->L, 1);
        r->entered--;
    }
    r->depth--;
}

/* Goes through a text that the decoder took. */
static void scan(restorer *r, const char *s, size_t n)
{
    for (size_t at = 0, end; at < n;) {
        level *l = r->depth > 0 ? &r->levels[r->depth - 1] : NULL;
        bool long_integer;
        switch (s[at]) {
        case '"':
            end = skip_string(s, n, at);
            if (l && l->key_next) {
                l->key = s + at;
                l->length = end - at;
                l->key_next = false;
            }
            at = end;
            break;
        case ',':
            if (l && l->object) l->key_next = true;
            else if (l) l->index++;
            at++;
            break;
        case '[':
            end = empty_array(s, n, at);
            if (end > 0) restore_array(r);
            else open_level(r, false);
            at = end > 0 ? end + 1 : at + 1;
            break;
        case '{':
            open_level(r, true);
            at++;
            break;
        case ']':
        case '}':
            close_level(r);
            at++;
            break;
        case 'n':
            restore_null(r);
            at += 4;
            break;
        case 't':
            at += 4;
            break;
        case 'f':
            at += 5;
            break;
        case '\0': /* which ends it for lua-cjson */
            return;
        default:
            if (s[at] != '-' && !digit(s[at])) {
                at++;
                break;
            }
            end = skip_number(s, n, at, &long_integer);
#if LUA_VERSION_NUM >= 503
            restore_number(r, long_integer ? s + at : NULL);
#endif
            at = end;
        }
    }
}

static int l_core_restore_json(lua_State *L)
{
    size_t n;
    restorer r; /* of which the levels aren't cleared: they are many */
    r.L = L;
    r.array = 3;
    r.null = 4;
    r.decode = 5;
    r.depth = r.entered = 0;
    luaL_checkany(L, 1);
    const char *s = luaL_checklstring(L, 2, &n);
    luaL_checktype(L, 3, LUA_TTABLE);
    luaL_checkany(L, 4);
    luaL_checktype(L, 5, LUA_TFUNCTION);
    lua_settop(L, 5);
    scan(&r, s, n);
    lua_settop(L, 1);
    return 1;
}

void lualxd_open_json(lua_State *L)
{
    lua_pushcfunction(L, l_core_restore_json);
    lua_setfield(L, -2, "restore_json");
}
