/* How a server is reached: its unix socket, or its host and what TLS has to know.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_ENDPOINT_H
#define LXD_ENDPOINT_H

#include <stdbool.h>

#include <curl/curl.h>

#include "core.h"

/* Shared by an engine and by every connection that was made for it: counted. */
typedef struct lxd_endpoint lxd_endpoint;

/* What a TLS handshake has found out about the server: counted, too. */
typedef struct lxd_peer lxd_peer;

/* What belongs to one easy handle; all zero before. It lives as long as the handle may connect, and is
 * dropped by whoever owns it. */
typedef struct lxd_handshake {
    lxd_endpoint *endpoint; /* borrowed: of the last lxd_endpoint_apply */
    lxd_peer *peer;         /* held: of the last connection that was begun for the handle, or NULL */
} lxd_handshake;

/* Makes one from the options of an engine, into `out`, whose owner frees it whatever happens. False:
 * the world's fault, a message is pushed. Raises for a wrong option and for want of memory. */
bool lxd_endpoint_new(lua_State *L, int options, lxd_endpoint **out);
void lxd_endpoint_drop(lxd_endpoint *p);

/* The path of its unix socket; NULL for a host. */
const char *lxd_endpoint_path(const lxd_endpoint *p);

/* Pushes the PEM text of the certificate that was accepted last; nil before. */
void lxd_endpoint_push_server(lua_State *L, const lxd_endpoint *p);

/* What a connection over TLS is for; on a unix socket all is HTTP/1.1. */
typedef enum lxd_use {
    LXD_ANY,     /* HTTP/2 where the server has it: one connection for any number of requests */
    LXD_UPGRADE, /* HTTP/1.1 on a new connection: what a WebSocket begins with */
    LXD_ALONE,   /* HTTP/1.1, for long bodies. Over HTTP/2 libcurl (7.88) lets a server send 32 MiB to a
                  * reader who has paused, spins while a server takes no more of an upload, and loses the
                  * answer of one that refuses to read it to its end */
} lxd_use;

/* Tells an easy handle how to reach the server: socket or TLS, no proxy, the version of HTTP. The
 * handle's URL, callbacks and sockets are its owner's. */
CURLcode lxd_endpoint_apply(lxd_endpoint *p, CURL *easy, lxd_handshake *h, lxd_use use);

/* Whether the connection that a request is about to be sent on carries others at the same time. */
bool lxd_endpoint_shares(const lxd_endpoint *p, CURL *easy);

/* Why the handshake refused the server, or our certificate, in words; NULL: it didn't. `reason` is a word
 * for programs. */
const char *lxd_handshake_refusal(const lxd_handshake *h, const char **reason);

/* Puts `certificate` and `fingerprint` of a refused server into the table on top of the stack. */
void lxd_handshake_push_refused(lua_State *L, lxd_handshake *h);

void lxd_handshake_drop(lxd_handshake *h);

#endif
