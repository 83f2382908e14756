/* Lets memory fail at every place where the core asks for some, one after the other: harness FILE
 * SPDX-License-Identifier: MIT
 *
 * Each round makes a Lua state, lets the n-th request for memory fail while scenario.lua runs, sees
 * that it ends with an error of memory or well, that the same objects work afterwards, and that
 * closing the state gives back every block and every descriptor. Four allocators fail in turn: Lua's,
 * the core's own, OpenSSL's (which is asked so often that one place in 41 must do), libcurl's. */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <curl/curl.h>
#include <openssl/crypto.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "harness.h"

int luaopen_lualxd_core(lua_State *L);

/* An allocator that fails: the n-th time, and as often as `times` after it. */
typedef struct failing {
    long n;      /* counts down; <= 0: fails, as long as -n < times; LONG_MAX: never */
    long times;
    long blocks; /* that are in use */
    bool failed;
} failing;

#define NEVER 1000000000L

static failing lua_memory, core_memory, ssl_memory, curl_memory;

static bool fails(failing *f)
{
    if (f->n >= NEVER) return false;
    f->n--;
    if (f->n > 0 || -f->n >= f->times) return false;
    f->failed = true;
    return true;
}

static void *lua_alloc(void *unused, void *block, size_t old, size_t size)
{
    (void)unused;
    if (size == 0) {
        lua_memory.blocks -= block != NULL;
        free(block);
        return NULL;
    }
    if ((!block || size > old) && fails(&lua_memory)) return NULL; /* shrinking must not fail */
    lua_memory.blocks += block == NULL;
    return realloc(block, size);
}

static void *get(failing *f, void *block, size_t size)
{
    if (fails(f)) return NULL;
    void *got = realloc(block, size);
    f->blocks += !block && got;
    return got;
}

static void give(failing *f, void *block)
{
    f->blocks -= block != NULL;
    free(block);
}

static void *zeroed(failing *f, size_t n, size_t size)
{
    void *got = get(f, NULL, n * size > 0 ? n * size : 1);
    if (got) memset(got, 0, n * size);
    return got;
}

/* The core's, by LXD_MALLOC and its like. */
void *harness_malloc(size_t n)
{
    return get(&core_memory, NULL, n);
}

void *harness_calloc(size_t n, size_t size)
{
    return zeroed(&core_memory, n, size);
}

void *harness_realloc(void *block, size_t n)
{
    return get(&core_memory, block, n);
}

void harness_free(void *block)
{
    give(&core_memory, block);
}

/* OpenSSL's. It keeps some for the process; only the core's blocks are counted. */
static void *ssl_malloc(size_t n, const char *file, int line)
{
    (void)file, (void)line;
    return n == 0 || fails(&ssl_memory) ? NULL : malloc(n);
}

static void *ssl_realloc(void *block, size_t n, const char *file, int line)
{
    (void)file, (void)line;
    if (n == 0) {
        free(block);
        return NULL;
    }
    return fails(&ssl_memory) ? NULL : realloc(block, n);
}

static void ssl_free(void *block, const char *file, int line)
{
    (void)file, (void)line;
    free(block);
}

static void *curl_malloc(size_t n)
{
    return get(&curl_memory, NULL, n > 0 ? n : 1);
}

static void *curl_calloc(size_t n, size_t size)
{
    return zeroed(&curl_memory, n, size);
}

static void *curl_realloc(void *block, size_t n)
{
    return get(&curl_memory, block, n);
}

static char *curl_strdup(const char *s)
{
    char *copy = get(&curl_memory, NULL, strlen(s) + 1);
    return copy ? strcpy(copy, s) : NULL;
}

static void curl_mem_free(void *block)
{
    give(&curl_memory, block);
}

/* The server: answers each request once it is there. It uses no memory but this. */
#define CHUNKED (-1L)

static int listener, connections[64];
static long left[64]; /* bytes of the body that are still to come */
static char path[100];

/* Takes bytes of a request; whether it is whole. A head comes in one piece here. */
static bool whole(char *bytes, size_t n, long *to_come)
{
    char *end = *to_come == 0 ? strstr(bytes, "\r\n\r\n") : NULL;
    if (end) {
        char *length = strstr(bytes, "Content-Length: ");
        *to_come = strstr(bytes, "chunked") ? CHUNKED : length ? atol(length + 16) : 0;
        n -= (size_t)(end + 4 - bytes);
        bytes = end + 4;
    }
    if (*to_come == CHUNKED) {
        if (n < 5 || memcmp(bytes + n - 5, "0\r\n\r\n", 5) != 0) return false;
        *to_come = 0;
    } else {
        *to_come -= (long)n;
    }
    return *to_come == 0;
}

static int l_pump(lua_State *L)
{
    static const char answer[] = "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 6\r\n\r\nanswer";
    char bytes[65536];
    (void)L;
    for (size_t i = 0; i < 64; i++) {
        if (connections[i] < 0) {
            connections[i] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            left[i] = 0;
        }
        if (connections[i] < 0) continue;
        ssize_t n = recv(connections[i], bytes, sizeof bytes - 1, 0);
        if (n > 0) {
            bytes[n] = 0;
            if (whole(bytes, (size_t)n, &left[i]))
                send(connections[i], answer, sizeof answer - 1, MSG_NOSIGNAL);
        } else if (n == 0 || errno != EAGAIN) {
            close(connections[i]);
            connections[i] = -1;
        }
    }
    return 0;
}

static void close_connections(void)
{
    for (size_t i = 0; i < 64; i++) {
        if (connections[i] >= 0) close(connections[i]);
        connections[i] = -1;
    }
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) close(fd);
}

static int descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static _Noreturn void die(const char *what, long n, const char *why)
{
    fprintf(stderr, "harness: %s, allocation %ld: %s\n", what, n, why);
    exit(1);
}

/* The arguments of scenario.lua. */
static int l_prepare(lua_State *L)
{
    const char *file = lua_touserdata(L, 1);
    bool broken = lua_toboolean(L, 2);
    luaL_openlibs(L);
    if (luaL_loadfile(L, "spec/core/scenario.lua") != 0) return lua_error(L);
    luaL_requiref(L, "lualxd.core", luaopen_lualxd_core, 0);
    lua_newtable(L);
    lua_pushcfunction(L, l_pump);
    lua_setfield(L, -2, "pump");
    lua_pushstring(L, path);
    lua_setfield(L, -2, "path");
    lua_pushstring(L, file);
    lua_pushboolean(L, broken);
    lua_call(L, 4, 2);
    return 2;
}

/* Whether the message at the top is about memory: anything else is a mistake. */
static bool about_memory(lua_State *L)
{
    const char *message = lua_tostring(L, -1);
    return message && (strstr(message, "not enough memory") || strstr(message, "out of memory"));
}

/* One round; whether memory failed at all in it. */
static bool round_trip(const char *what, failing *f, long n, long times, const char *file)
{
    int fds = descriptors();
    long core_blocks = core_memory.blocks;
    lua_State *L = lua_newstate(lua_alloc, NULL);
    if (!L) die(what, n, "no state");
    lua_pushcfunction(L, l_prepare);
    lua_pushlightuserdata(L, (void *)file);
    lua_pushboolean(L, f != &lua_memory);
    if (lua_pcall(L, 2, 2, 0) != 0) die(what, n, lua_tostring(L, -1));
    f->failed = false;
    f->times = times;
    f->n = n;
    lua_pushvalue(L, -2);
    int result = lua_pcall(L, 0, 0, 0);
    f->n = NEVER;
    if (result != 0) {
        if (!about_memory(L)) die(what, n, lua_tostring(L, -1));
        lua_pop(L, 1);
    }
    lua_gc(L, LUA_GCCOLLECT, 0);
    lua_pushvalue(L, -1);
    if (lua_pcall(L, 0, 0, 0) != 0) die(what, n, lua_tostring(L, -1));
    lua_close(L);
    close_connections();
    if (lua_memory.blocks != 0) die(what, n, "blocks of Lua stay");
    if (core_memory.blocks != core_blocks) die(what, n, "blocks of the core stay");
    if (descriptors() != fds) die(what, n, "descriptors stay");
    return f->failed;
}

static void each(const char *what, failing *f, long times, long step, const char *file)
{
    long n = 1;
    while (round_trip(what, f, n, times, file)) n += step;
    printf("%s: %ld rounds, one place failed %s in each\n", what, (n - 1) / step,
           times == 1 ? "alone" : "with those after it");
}

int main(int argc, char **argv)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    lua_memory.n = core_memory.n = ssl_memory.n = curl_memory.n = NEVER;
    if (argc < 2 || !CRYPTO_set_mem_functions(ssl_malloc, ssl_realloc, ssl_free)) return 2;
    if (curl_global_init_mem(CURL_GLOBAL_DEFAULT, curl_malloc, curl_mem_free, curl_realloc,
                             curl_strdup, curl_calloc) != 0)
        return 2;
    memset(connections, -1, sizeof connections);
    snprintf(path, sizeof path, "%s.socket", argv[1]);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    unlink(path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) != 0 || listen(listener, 64) != 0) return 2;
    round_trip("warm-up", &lua_memory, NEVER, 1, argv[1]);
    long curl_blocks = curl_memory.blocks;
    /* Lua tries again after a collection: the second of the two makes it an error. */
    each("Lua's memory", &lua_memory, 2, 1, argv[1]);
    each("Lua's memory", &lua_memory, NEVER, 1, argv[1]);
    each("the core's memory", &core_memory, 1, 1, argv[1]);
    each("the core's memory", &core_memory, NEVER, 1, argv[1]);
    each("OpenSSL's memory", &ssl_memory, 1, 41, argv[1]);
    each("OpenSSL's memory", &ssl_memory, NEVER, 41, argv[1]);
    each("libcurl's memory", &curl_memory, 1, 1, argv[1]);
    if (curl_memory.blocks != curl_blocks) die("libcurl's memory", 0, "blocks of libcurl stay");
    unlink(path);
    puts("7 passed, 0 failed");
    return 0;
}
