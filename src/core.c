/* The module lualxd.core: opens every type, and what needs no file of its own.
 * SPDX-License-Identifier: MIT */
#include "core.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <curl/curl.h>
#include <openssl/evp.h>

void lxd_new_type(lua_State *L, const char *name, const luaL_Reg *methods,
                  const luaL_Reg *metamethods)
{
    luaL_newmetatable(L, name); /* or the one of an earlier require, which is filled again */
    luaL_setfuncs(L, metamethods, 0);
    lua_pushstring(L, name);
    lua_setfield(L, -2, "__name");
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}

void lxd_push_hex(lua_State *L, const unsigned char *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    char hex[2 * LXD_HEX_MAX];
    for (size_t i = 0; i < n; i++) {
        hex[2 * i] = digits[bytes[i] >> 4];
        hex[2 * i + 1] = digits[bytes[i] & 15];
    }
    lua_pushlstring(L, hex, 2 * n);
}

static int l_core_now(lua_State *L)
{
    lua_pushnumber(L, (lua_Number)lxd_now() / 1e9);
    return 1;
}

static int l_core_pid(lua_State *L)
{
    lua_pushinteger(L, lxd_pid());
    return 1;
}

static int l_core_sha256(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 1, &n);
    unsigned char hash[EVP_MAX_MD_SIZE];
    unsigned int length;
    if (EVP_Digest(bytes, n, hash, &length, EVP_sha256(), NULL) != 1)
        return luaL_error(L, "not enough memory");
    lxd_push_hex(L, hash, length);
    return 1;
}

static int l_core_random(lua_State *L)
{
    unsigned char bytes[LXD_HEX_MAX];
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 0 && n <= LXD_HEX_MAX, 1, "out of range");
    for (lua_Integer at = 0; at < n; at += 256) /* getentropy gives no more at a time */
        if (getentropy(bytes + at, (size_t)(n - at < 256 ? n - at : 256)) != 0)
            return luaL_error(L, "the system gives no random bytes");
    lxd_push_hex(L, bytes, (size_t)n);
    return 1;
}

static int l_core_is_socket(lua_State *L)
{
    size_t n;
    struct stat st;
    const char *path = luaL_checklstring(L, 1, &n);
    /* To connect one needs to be allowed to write to it. */
    lua_pushboolean(L, strlen(path) == n && stat(path, &st) == 0 && S_ISSOCK(st.st_mode) &&
                           faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0);
    return 1;
}

static const luaL_Reg functions[] = {
    {"now", l_core_now},       {"pid", l_core_pid},
    {"sha256", l_core_sha256}, {"random", l_core_random},
    {"is_socket", l_core_is_socket}, {NULL, NULL},
};

static pid_t pid;

static void in_child(void)
{
    pid = getpid();
}

pid_t lxd_pid(void)
{
    return pid;
}

/* Once a process. LuaJIT's lua_close unloads C modules in its first round of finalizers, while those
 * of requests that finalizers made (what a script left unsent is sent then) come in a second one: the
 * code must still be there. So must libcurl's for a thread that still looks up a name for a request
 * that was given up (CURLOPT_QUICK_EXIT). */
static void init_process(void)
{
    static const char anchor;
    Dl_info self;
    pid = getpid();
    pthread_atfork(NULL, NULL, in_child);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (dladdr(&anchor, &self) != 0)
        (void)dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

__attribute__((visibility("default"))) int luaopen_lualxd_core(lua_State *L);

int luaopen_lualxd_core(lua_State *L)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_process);
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    lualxd_open_poller(L);
    lualxd_open_waiter(L);
    lualxd_open_engine(L);
    lualxd_open_request(L);
    lualxd_open_json(L);
    lualxd_open_identity(L);
    return 1;
}
