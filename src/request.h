/* One HTTP exchange: what was asked, how far it is, how it ended.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_REQUEST_H
#define LXD_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include <curl/curl.h>

#include "body.h"
#include "core.h"
#include "endpoint.h"

typedef enum lxd_state { LXD_QUEUED, LXD_ACTIVE, LXD_DONE } lxd_state;

/* Kinds of failure; the names that Lua sees are in request.c. */
typedef enum lxd_kind {
    LXD_NO_FAILURE,
    LXD_CONNECT,
    LXD_TLS,
    LXD_TIMEOUT,
    LXD_PROTOCOL,
    LXD_CANCELLED,
    LXD_LOST,
    LXD_FILE,
    LXD_FORKED,
    LXD_FAILED
} lxd_kind;

/* Owned by its userdata. While it waits or runs it is in a list of its engine, and it may be in the
 * list of news of a poller; whoever dies first takes it out, so no pointer here outlives its target. */
typedef struct lxd_request {
    struct lxd_engine *engine;                  /* NULL once done */
    struct lxd_request *prev, *next;            /* in the engine's queue or among its active */
    struct lxd_poller *noted;                   /* in whose list of news it is, or NULL */
    struct lxd_request *news_prev, *news_next;  /* in that list */
    int64_t id;                                 /* what step calls it */
    lxd_state state;
    /* what was asked */
    char *method;                /* owned */
    char *url;                   /* owned */
    struct curl_slist *headers;  /* owned */
    bool has_body;               /* also an empty one */
    lxd_source source;           /* the body */
    bool once;                   /* must not reach the server twice */
    bool stream;                 /* the answer's body is taken piece by piece */
    bool brief;                  /* a stream that its reader will cut off soon */
    bool urgent;                 /* before those in line that aren't */
    struct lxd_websocket *ws;    /* owned; what its connection is to become, or NULL */
    size_t limit;                /* bytes of an answer in memory */
    int64_t timeout;             /* nanoseconds without progress; 0: no limit */
    /* under way */
    CURL *easy;                  /* owned; NULL unless active */
    curl_socket_t fd;            /* the socket that libcurl last wanted watched for it */
    bool shared;                 /* its connection carries others at the same time */
    int64_t uploaded;            /* bytes that libcurl had sent when that was last looked at */
    int64_t began;               /* when libcurl got it; 0: not yet */
    int64_t touched;             /* when there was progress last */
    int socket_error;            /* errno of a socket that couldn't be made */
    lxd_handshake handshake;     /* with the server, where there was one */
    bool recv_paused;            /* the stream's buffer is full */
    bool send_paused;            /* nobody has written bytes of the body yet */
    long attempts;               /* how often it was sent */
    long connects;               /* connections that this took */
    char words[CURL_ERROR_SIZE]; /* libcurl's own about a failure */
    /* the answer */
    bool in_head;                /* between a status line and its empty line */
    bool head_done;              /* the final response's head is whole */
    int status;                  /* of the last status line */
    size_t head_bytes;           /* of all heads, provisional ones too */
    lxd_buffer head;             /* header lines of the final response */
    lxd_buffer body;             /* what wasn't taken yet */
    lxd_buffer aside;            /* what came before it, while Lua makes a string of that */
    int64_t received;            /* bytes of the body */
    int64_t to_receive;          /* its length, -1: unknown */
    /* how it ended */
    lxd_kind kind;               /* LXD_NO_FAILURE: with an answer */
    bool unsure;                 /* some of it left this process */
    int error;                   /* errno, or 0 */
    char message[CURL_ERROR_SIZE];
} lxd_request;

void lxd_request_blame(lxd_request *r, lxd_kind kind, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The request at an argument, ended if it is another process's. */
lxd_request *lxd_request_check(lua_State *L, int arg);

/* Bytes of the body that are there. */
static inline size_t lxd_request_held(const lxd_request *r)
{
    return r->body.used + r->aside.used;
}

/* For the methods that take bytes of the body: call it before anything is looked at. */
void lxd_request_prepare(lua_State *L);

/* Whether this is a finalizer's call within another that takes bytes: it gets none. */
bool lxd_request_taking(lua_State *L, int arg);

/* After lxd_request_prepare, with nothing pushed since: pushes the first n bytes of what came and takes
 * them out. More may have come meanwhile. False: a finalizer has closed the request meanwhile, and
 * nothing is left of it. */
bool lxd_request_push_body(lua_State *L, int arg, size_t n);

/* Makes a request from the options at an index: pushes its userdata. Raises for a wrong option. */
lxd_request *lxd_request_new(lua_State *L, int options);

#endif
