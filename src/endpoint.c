/* How a server is reached: its unix socket, or its host and what TLS has to know.
 * SPDX-License-Identifier: MIT */
#include "endpoint.h"

#include <string.h>

struct lxd_endpoint {
    long holders; /* engine and connections */
    char *path;   /* owned: of the unix socket, or NULL */
};

void lxd_endpoint_drop(lxd_endpoint *p)
{
    if (!p || --p->holders > 0) return;
    LXD_FREE(p->path);
    LXD_FREE(p);
}

bool lxd_endpoint_new(lua_State *L, int options, lxd_endpoint **out)
{
    lxd_endpoint *p = *out = LXD_CALLOC(1, sizeof *p);
    if (!p) return luaL_error(L, "not enough memory");
    p->holders = 1;
    lua_getfield(L, options, "unix");
    if (lua_isnil(L, -1)) { /* the URL says it all */
        lua_pop(L, 1);
        return true;
    }
    size_t n;
    const char *path = lua_tolstring(L, -1, &n);
    if (!path || strlen(path) != n || n == 0) return luaL_error(L, "option 'unix' is no path");
    p->path = LXD_MALLOC(n + 1);
    if (!p->path) return luaL_error(L, "not enough memory");
    memcpy(p->path, path, n + 1);
    lua_pop(L, 1);
    return true;
}

const char *lxd_endpoint_path(const lxd_endpoint *p)
{
    return p->path;
}

#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode code_ = curl_easy_setopt(easy, option, value);                                    \
        if (code_ != CURLE_OK) return code_;                                                       \
    } while (0)

CURLcode lxd_endpoint_apply(lxd_endpoint *p, CURL *easy, lxd_handshake *h, bool upgrade)
{
    (void)upgrade; /* LXD speaks HTTP/1.1 alone on its unix socket */
    h->endpoint = p;
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    if (p->path) SET(CURLOPT_UNIX_SOCKET_PATH, p->path);
    return CURLE_OK;
}

void lxd_handshake_drop(lxd_handshake *h)
{
    h->endpoint = NULL;
}
