/* A request whose connection becomes a WebSocket.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_WEBSOCKET_H
#define LXD_WEBSOCKET_H

#include <stdbool.h>

#include "request.h"

/* Owned by its request. */
typedef struct lxd_websocket lxd_websocket;

/* `silence`: nanoseconds without anything, after which pings are answered: 0, at once; LXD_NEVER, never. NULL: no
 * memory. */
lxd_websocket *lxd_websocket_new(int64_t silence);
void lxd_websocket_free(lxd_websocket *w);

/* libcurl has connected: the handshake begins. May end the request, as all below. */
void lxd_websocket_begin(lxd_request *r);

/* Whether the connection is ours, not libcurl's any more. */
bool lxd_websocket_began(const lxd_request *r);

/* Reads and writes as much as goes without waiting. */
void lxd_websocket_drive(lxd_request *r);

/* Its time without anything is over. False: within the handshake, which has failed then. */
bool lxd_websocket_idle(lxd_request *r);

/* Once a turn: drives it where the drive of an earlier turn has left something to read. */
void lxd_websocket_go_on(lxd_request *r);

/* Puts the methods of a request that is a WebSocket into the table at the top of the stack. */
void lxd_websocket_methods(lua_State *L);

#endif
