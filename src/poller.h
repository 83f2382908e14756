/* One descriptor for every socket and timer of a Lua state.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_POLLER_H
#define LXD_POLLER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core.h"

#define LXD_POLLER "lualxd.poller"
#define LXD_WAKER "lualxd.waker"

struct lxd_engine;
struct lxd_request;

/* A socket that libcurl opened. */
typedef struct lxd_socket {
    struct lxd_engine *engine;
    struct lxd_socket *prev, *next;   /* in the engine's list */
    int fd;
    uint32_t serial;                  /* tells it from others that have had its number */
    bool opened;                      /* by us: it is a connection, not libcurl's own pipe */
    dev_t device;                     /* opened: which socket it is that has the number, */
    ino_t inode;                      /* as long as it has */
    bool wanted;                      /* libcurl wants to hear of it */
    uint32_t events;                  /* what the kernel watches; 0: it isn't registered */
} lxd_socket;

/* Owned by its userdata. */
typedef struct lxd_poller {
    int epoll;                        /* -1: none, closed or left behind by a fork */
    int timer;
    pid_t pid;                        /* whose descriptors these are */
    bool shown;                       /* somebody outside waits for the descriptor */
    int64_t due;                      /* when there is something to do even without an event */
    int64_t alarm;                    /* what whoever steps it has to do by when */
    int64_t armed;                    /* when the timer goes off at the latest */
    lxd_socket **sockets;             /* of all engines, by descriptor; owned */
    int room;                         /* descriptors that the table has a place for */
    uint32_t serial;                  /* of the last socket */
    struct lxd_engine *engines;       /* those that use it */
    struct lxd_request *news, *last;  /* what happened since the last step */
    int64_t next_id;                  /* of requests */
} lxd_poller;

enum { LXD_IN = 1, LXD_OUT = 2 };

lxd_poller *lxd_poller_check(lua_State *L, int arg);
void lxd_poller_fork(lxd_poller *p);
bool lxd_poller_use(lxd_poller *p);
bool lxd_poller_enter(lxd_poller *p, lxd_socket *s);
lxd_socket *lxd_poller_find(const lxd_poller *p, int fd);
void lxd_poller_leave(lxd_poller *p, const lxd_socket *s);
bool lxd_poller_watch(lxd_poller *p, lxd_socket *s, int what);
void lxd_poller_unwatch(lxd_poller *p, lxd_socket *s);
void lxd_poller_turn(lxd_poller *p, int wait);
void lxd_poller_settle(lxd_poller *p);
void lxd_poller_note(lxd_poller *p, struct lxd_request *r);
void lxd_poller_forget(struct lxd_request *r);

#endif
