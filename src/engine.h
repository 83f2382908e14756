/* The connections of one client: a libcurl multi handle on a poller.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_ENGINE_H
#define LXD_ENGINE_H

#include <stdbool.h>

#include <curl/curl.h>

#include "endpoint.h"
#include "poller.h"
#include "request.h"

#define LXD_ENGINE "lualxd.engine"

/* Owned by its userdata. */
typedef struct lxd_engine {
    lxd_poller *poller;                /* NULL: closed */
    struct lxd_engine *prev, *next;    /* in the poller's list */
    CURLM *multi;                      /* made when it is first needed, and again after a fork */
    lxd_endpoint *endpoint;            /* where all its requests go */
    long connections;                  /* requests under way at once */
    int64_t timeout;                   /* of a request that has none of its own */
    lxd_request *active;               /* in any order */
    long actives;                      /* of which WebSockets don't count */
    lxd_request *queue, *queue_last;   /* first come, first served, but for the urgent: */
    lxd_request *urgent_last;          /* those are its front, up to this one; or NULL */
    long queued;
    lxd_socket *sockets;               /* every socket that libcurl has open */
    CURL **spare;                      /* easy handles to use again, room for `connections` */
    long spares;
    int64_t timer_at;                  /* when libcurl wants to be called */
    bool timer_told;                   /* it said so during this call */
    int64_t idle_at;                   /* no request can run out of time before this */
    bool eager;                        /* a WebSocket has more to read than one drive may */
    bool unwatched;                    /* a socket can't be watched: its requests are to be ended */
    bool broken;                       /* libcurl's multi handle gave up */
    int64_t connects;                  /* connections so far */
} lxd_engine;

void lxd_engine_event(lxd_socket *s, int what);
void lxd_engine_run(lxd_engine *e);
int64_t lxd_engine_next(const lxd_engine *e);
/* Has the socket of a WebSocket watched. */
bool lxd_engine_watch(lxd_request *r, int what);
void lxd_engine_touch(lxd_request *r);
void lxd_engine_end(lxd_request *r);
void lxd_engine_cancel(lxd_request *r);
void lxd_engine_fork(lxd_engine *e);
void lxd_engine_close(lxd_engine *e);
curl_socket_t lxd_engine_open_socket(void *request, curlsocktype use, struct curl_sockaddr *a);
int lxd_engine_close_socket(void *engine, curl_socket_t fd);

#endif
