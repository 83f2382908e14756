/* How a server is reached: its unix socket, or its host and what TLS has to know.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_ENDPOINT_H
#define LXD_ENDPOINT_H

#include <stdbool.h>

#include <curl/curl.h>

#include "core.h"

/* Shared by an engine and by every connection that was made for it: counted. */
typedef struct lxd_endpoint lxd_endpoint;

/* What one easy handle's TLS handshake has found out; all zero before. It lives as long as the handle
 * may connect, and is dropped by whoever owns it. */
typedef struct lxd_handshake {
    lxd_endpoint *endpoint; /* borrowed: of the last lxd_endpoint_apply */
} lxd_handshake;

/* Makes one from the options of an engine, into `out`, whose owner frees it whatever happens. False:
 * the world's fault, a message is pushed. Raises for a wrong option and for want of memory. */
bool lxd_endpoint_new(lua_State *L, int options, lxd_endpoint **out);
void lxd_endpoint_drop(lxd_endpoint *p);

/* The path of its unix socket; NULL for a host. */
const char *lxd_endpoint_path(const lxd_endpoint *p);

/* Tells an easy handle how to reach the server: socket or TLS, no proxy, the version of HTTP: the
 * best that the server has, or 1.1 alone, without which there is no upgrade to a WebSocket. The
 * handle's URL, callbacks and sockets are its owner's. The engine must outlive the handle. */
CURLcode lxd_endpoint_apply(lxd_endpoint *p, CURL *easy, lxd_handshake *h, bool upgrade);

void lxd_handshake_drop(lxd_handshake *h);

#endif
