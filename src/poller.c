/* One descriptor for many: an epoll instance that watches the sockets and one timerfd.
 * SPDX-License-Identifier: MIT
 *
 * The only Linux-only file. After a fork both descriptors belong to parent and child at once, and
 * taking a socket out in one would take it out for the other: a child closes them and opens its own,
 * before it does anything else (lxd_poller_fork). */
#include "poller.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "engine.h"

#define BATCH 64 /* events of one turn; the rest stays readable */

/* The userdata. */
typedef struct handle {
    lxd_poller *poller; /* owned; NULL: closed */
} handle;

static lxd_poller *to_poller(lua_State *L, int arg)
{
    return ((handle *)luaL_checkudata(L, arg, LXD_POLLER))->poller;
}

/* The open poller at an argument, whose descriptors are this process's. */
lxd_poller *lxd_poller_check(lua_State *L, int arg)
{
    lxd_poller *p = to_poller(L, arg);
    if (!p) luaL_error(L, "attempt to use a closed poller");
    if (!lxd_poller_use(p)) luaL_error(L, "no poller after fork: %s", strerror(errno));
    return p;
}

static void close_descriptors(lxd_poller *p)
{
    if (p->epoll >= 0) close(p->epoll);
    if (p->timer >= 0) close(p->timer);
    p->epoll = p->timer = -1;
}

/* Opens both descriptors; false, with errno and none open, when there are none left. */
static bool open_descriptors(lxd_poller *p)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    p->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (p->epoll < 0 || p->timer < 0 ||
        epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->timer, &event) != 0) {
        int error = errno;
        close_descriptors(p);
        errno = error;
        return false;
    }
    p->pid = lxd_pid();
    p->armed = LXD_NEVER;
    return true;
}

/* Lets go of what is the parent's, if there was a fork; nothing that the parent watches changes. */
void lxd_poller_fork(lxd_poller *p)
{
    if (p->epoll < 0 || p->pid == lxd_pid()) return;
    close_descriptors(p);
    for (lxd_engine *e = p->engines; e; e = e->next) lxd_engine_fork(e);
}

/* Call before anything else with a poller: its descriptors are this process's from here on. */
bool lxd_poller_use(lxd_poller *p)
{
    lxd_poller_fork(p);
    if (p->epoll >= 0) return true;
    if (!open_descriptors(p)) return false;
    lxd_poller_settle(p);
    return true;
}

/* Gives a socket its place in the table, which nobody else has (lxd_poller_find). False: no memory. */
bool lxd_poller_enter(lxd_poller *p, lxd_socket *s)
{
    if (s->fd >= p->room) {
        int room = s->fd < 32 ? 64 : s->fd < INT32_MAX / 2 ? s->fd * 2 : INT32_MAX;
        lxd_socket **sockets = LXD_REALLOC(p->sockets, (size_t)room * sizeof *sockets);
        if (!sockets) return false;
        memset(sockets + p->room, 0, (size_t)(room - p->room) * sizeof *sockets);
        p->sockets = sockets;
        p->room = room;
    }
    if (++p->serial == 0) p->serial = 1; /* with descriptor 0 it would be the timer's */
    s->serial = p->serial;
    p->sockets[s->fd] = s;
    return true;
}

/* The socket of any engine that has a number; NULL: none. */
lxd_socket *lxd_poller_find(const lxd_poller *p, int fd)
{
    return fd >= 0 && fd < p->room ? p->sockets[fd] : NULL;
}

void lxd_poller_leave(lxd_poller *p, const lxd_socket *s)
{
    p->sockets[s->fd] = NULL;
}

/* What an event carries. Never an address: an event may come for a socket that is gone, one of this
 * batch, or one that a child has kept open after libcurl closed it. */
static uint64_t mark(const lxd_socket *s)
{
    return (uint64_t)s->serial << 32 | (uint32_t)s->fd;
}

/* Has a socket watched for LXD_IN, LXD_OUT or both. */
bool lxd_poller_watch(lxd_poller *p, lxd_socket *s, int what)
{
    struct epoll_event event = {.data.u64 = mark(s)};
    event.events = (what & LXD_IN ? EPOLLIN : 0u) | (what & LXD_OUT ? EPOLLOUT : 0u);
    s->wanted = true;
    if (s->events == event.events) return true;
    int change = s->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (p->epoll < 0) return false;
    if (epoll_ctl(p->epoll, change, s->fd, &event) != 0 &&
        /* It was closed meanwhile, which the kernel knows and libcurl didn't say. */
        !(errno == ENOENT && epoll_ctl(p->epoll, EPOLL_CTL_ADD, s->fd, &event) == 0))
        return false;
    s->events = event.events;
    return true;
}

/* Ends the watch. Explicitly, and before the socket is closed: while a forked child has it open too,
 * closing it doesn't. */
void lxd_poller_unwatch(lxd_poller *p, lxd_socket *s)
{
    struct epoll_event unused = {0};
    s->wanted = false;
    if (s->events && p->epoll >= 0) epoll_ctl(p->epoll, EPOLL_CTL_DEL, s->fd, &unused);
    s->events = 0;
}

static void expire(lxd_poller *p)
{
    uint64_t times;
    if (read(p->timer, &times, sizeof times) < 0) return; /* armed anew meanwhile */
    p->armed = LXD_NEVER;
}

/* Advances everything once: what the kernel has events for, within so many milliseconds (-1: as long
 * as it takes), and what is due. */
void lxd_poller_turn(lxd_poller *p, int wait)
{
    struct epoll_event events[BATCH];
    int n = epoll_wait(p->epoll, events, BATCH, wait);
    for (int i = 0; i < n; i++) {
        uint64_t whose = events[i].data.u64;
        unsigned what = events[i].events;
        if (whose == 0) {
            expire(p);
            continue;
        }
        lxd_socket *s = lxd_poller_find(p, (int)(whose & UINT32_MAX));
        if (!s || mark(s) != whose) continue;
        if (s->wanted) {
            /* A hang-up and an error are for the reader and the writer to find out. */
            int in = what & (EPOLLIN | EPOLLHUP | EPOLLERR) ? LXD_IN : 0;
            int out = what & (EPOLLOUT | EPOLLERR) ? LXD_OUT : 0;
            lxd_engine_event(s, in | out);
        } else {
            /* A kept connection stays registered, which saves two system calls per request; it
             * goes when there is something on it that nobody asked for. */
            lxd_poller_unwatch(p, s);
        }
    }
    for (lxd_engine *e = p->engines; e; e = e->next) lxd_engine_run(e);
}

/* Finds out by when something is to be done. Whoever waits for the descriptor outside of `wait` is
 * told by a timer; to set one is dear, one that goes off at once most of all. An earlier one is left:
 * it costs one idle step, and a request then costs no system call for its time-out. */
void lxd_poller_settle(lxd_poller *p)
{
    int64_t at = p->news ? 0 : p->alarm;
    for (const lxd_engine *e = p->engines; e && at > 0; e = e->next) {
        int64_t next = lxd_engine_next(e);
        if (next < at) at = next;
    }
    p->due = at;
    if (!p->shown || at >= p->armed || p->epoll < 0) return;
    if (at < 1) at = 1; /* zero would disarm it */
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / 1000000000),
                                        .tv_nsec = (long)(at % 1000000000)}};
    if (timerfd_settime(p->timer, TFD_TIMER_ABSTIME, &t, NULL) == 0) p->armed = at;
}

/* Puts a request among the news, once. */
void lxd_poller_note(lxd_poller *p, lxd_request *r)
{
    if (r->noted) return;
    r->noted = p;
    r->news_next = NULL;
    r->news_prev = p->last;
    if (p->last) p->last->news_next = r;
    else p->news = r;
    p->last = r;
}

/* Takes a request out of the news. */
void lxd_poller_forget(lxd_request *r)
{
    lxd_poller *p = r->noted;
    if (!p) return;
    if (r->news_prev) r->news_prev->news_next = r->news_next;
    else p->news = r->news_next;
    if (r->news_next) r->news_next->news_prev = r->news_prev;
    else p->last = r->news_prev;
    r->noted = NULL;
}

static int l_poller_pollfd(lua_State *L)
{
    lxd_poller *p = lxd_poller_check(L, 1);
    p->shown = true;
    lxd_poller_settle(p);
    lua_pushinteger(L, p->epoll);
    return 1;
}

/* A time of lxd_now's clock, given in seconds; nil: never. */
static int64_t to_time(lua_State *L, int arg)
{
    lua_Number at = luaL_optnumber(L, arg, HUGE_VAL);
    return at >= 9e9 ? LXD_NEVER : at > 0 ? (int64_t)(at * 1e9) : 0;
}

static int l_poller_alarm(lua_State *L)
{
    lxd_poller *p = lxd_poller_check(L, 1);
    p->alarm = to_time(L, 2);
    lxd_poller_settle(p);
    return 0;
}

/* How long to wait for `seconds` at most, or until something is due; -1: nothing is. */
static int64_t patience(const lxd_poller *p, lua_Number seconds)
{
    int64_t left = seconds > 0 ? seconds < 1e9 ? (int64_t)(seconds * 1e9) : LXD_NEVER : 0;
    int64_t until = p->due == LXD_NEVER || left == 0 ? LXD_NEVER : p->due - lxd_now();
    if (until < left) left = until > 0 ? until : 0;
    return left == LXD_NEVER ? -1 : left;
}

static int l_poller_step(lua_State *L)
{
    lxd_poller *p = lxd_poller_check(L, 1);
    int64_t wait = patience(p, luaL_optnumber(L, 3, 0));
    int n = 0;
    luaL_checktype(L, 2, LUA_TTABLE);
    /* Rounded up: who comes too early has to come again. */
    lxd_poller_turn(p, wait < 0 ? -1 : wait < INT64_C(1000000) * INT32_MAX
        ? (int)((wait + 999999) / 1000000) : INT32_MAX);
    /* Storing an id may collect garbage, whose finalizers may close any request, or this poller. */
    while ((p = to_poller(L, 1)) && p->news) {
        lxd_request *r = p->news;
        lua_pushinteger(L, (lua_Integer)r->id);
        lua_rawseti(L, 2, n + 1);
        if (to_poller(L, 1) != p || p->news != r) continue;
        lxd_poller_forget(r);
        n++;
    }
    if (p) lxd_poller_settle(p);
    lua_pushinteger(L, n);
    return 1;
}

static int l_poller_wait(lua_State *L)
{
    lxd_poller *p = lxd_poller_check(L, 1);
    int64_t left = patience(p, luaL_optnumber(L, 2, HUGE_VAL));
    struct pollfd fd = {.fd = p->epoll, .events = POLLIN};
    struct timespec t = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    int n = ppoll(&fd, 1, left < 0 ? NULL : &t, NULL);
    lua_pushboolean(L, n > 0 || (n == 0 && p->due <= lxd_now()));
    return 1;
}

static int l_poller_close(lua_State *L)
{
    handle *h = luaL_checkudata(L, 1, LXD_POLLER);
    lxd_poller *p = h->poller;
    if (!p) return 0;
    h->poller = NULL;
    lxd_poller_fork(p);
    while (p->engines) lxd_engine_close(p->engines);
    while (p->news) lxd_poller_forget(p->news);
    close_descriptors(p);
    LXD_FREE(p->sockets);
    LXD_FREE(p);
    return 0;
}

static int l_poller_tostring(lua_State *L)
{
    lxd_poller *p = to_poller(L, 1);
    if (p) lua_pushfstring(L, LXD_POLLER " (%d)", p->epoll);
    else lua_pushliteral(L, LXD_POLLER " (closed)");
    return 1;
}

/* The pollers of a Lua state number their requests in ranges of their own, so that no id is used
 * twice; LuaJIT's numbers hold 2^21 such ranges. */
static int64_t first_id(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, "lualxd.pollers");
    lua_Integer n = lua_tointeger(L, -1);
    lua_pop(L, 1);
    lua_pushinteger(L, n + 1);
    lua_setfield(L, LUA_REGISTRYINDEX, "lualxd.pollers");
    return ((int64_t)n << 32) + 1;
}

static int l_core_poller(lua_State *L)
{
    handle *h = lua_newuserdata(L, sizeof *h);
    h->poller = NULL;
    luaL_getmetatable(L, LXD_POLLER);
    lua_setmetatable(L, -2);
    int64_t id = first_id(L);
    lxd_poller *p = h->poller = LXD_CALLOC(1, sizeof *p);
    if (!p) return luaL_error(L, "not enough memory");
    p->next_id = id;
    p->due = p->alarm = LXD_NEVER;
    if (!open_descriptors(p)) {
        int error = errno;
        lua_pushnil(L);
        lua_pushstring(L, strerror(error));
        p->epoll = p->timer = -1;
        return 2;
    }
    return 1;
}

static const luaL_Reg methods[] = {
    {"pollfd", l_poller_pollfd}, {"step", l_poller_step}, {"wait", l_poller_wait},
    {"alarm", l_poller_alarm},   {"close", l_poller_close}, {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", l_poller_close},
    {"__close", l_poller_close},
    {"__tostring", l_poller_tostring},
    {NULL, NULL},
};

/* What one waiter can wait for by itself: a timer, and beside it any other descriptor. The userdata. */
typedef struct lxd_waker {
    int timer;                        /* -1: closed */
    int epoll;                        /* holds the timer and `watched`; -1: not needed yet */
    int watched;                      /* -1: none */
    pid_t pid;                        /* whose descriptors these are */
} lxd_waker;

static void close_waker(lxd_waker *w)
{
    if (w->timer >= 0) close(w->timer);
    if (w->epoll >= 0) close(w->epoll);
    w->timer = w->epoll = w->watched = -1;
}

static bool open_waker(lxd_waker *w)
{
    w->pid = lxd_pid();
    w->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return w->timer >= 0;
}

/* The open waker at an argument. A forked child has one of its own: the parent sets the other. */
static lxd_waker *check_waker(lua_State *L, int arg)
{
    lxd_waker *w = luaL_checkudata(L, arg, LXD_WAKER);
    if (w->timer >= 0 && w->pid != lxd_pid()) {
        close_waker(w);
        if (!open_waker(w)) luaL_error(L, "no waker after fork: %s", strerror(errno));
    }
    if (w->timer < 0) luaL_error(L, "attempt to use a closed waker");
    return w;
}

static int l_waker_fd(lua_State *L)
{
    lxd_waker *w = check_waker(L, 1);
    lua_pushinteger(L, w->epoll >= 0 ? w->epoll : w->timer);
    return 1;
}

static int l_waker_set(lua_State *L)
{
    lxd_waker *w = check_waker(L, 1);
    int64_t left = to_time(L, 2);
    struct itimerspec t = {{0, 0}, {0, 0}};
    if (left < 1) left = 1; /* zero would disarm it */
    if (left != LXD_NEVER) {
        t.it_value.tv_sec = (time_t)(left / 1000000000);
        t.it_value.tv_nsec = (long)(left % 1000000000);
    }
    timerfd_settime(w->timer, 0, &t, NULL);
    return 0;
}

static int l_waker_watch(lua_State *L)
{
    lxd_waker *w = check_waker(L, 1);
    int fd = (int)luaL_optinteger(L, 2, -1);
    struct epoll_event event = {.events = EPOLLIN};
    if (w->watched >= 0) epoll_ctl(w->epoll, EPOLL_CTL_DEL, w->watched, &event);
    w->watched = -1;
    if (fd < 0) return 0;
    if (w->epoll < 0) {
        w->epoll = epoll_create1(EPOLL_CLOEXEC);
        if (w->epoll >= 0) epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->timer, &event);
    }
    if (w->epoll < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        return luaL_error(L, "can't wait for a descriptor: %s", strerror(errno));
    w->watched = fd;
    return 0;
}

static int l_waker_close(lua_State *L)
{
    close_waker(luaL_checkudata(L, 1, LXD_WAKER));
    return 0;
}

static int l_core_waker(lua_State *L)
{
    lxd_waker *w = lua_newuserdata(L, sizeof *w);
    w->timer = w->epoll = w->watched = -1;
    luaL_getmetatable(L, LXD_WAKER);
    lua_setmetatable(L, -2);
    if (open_waker(w)) return 1;
    int error = errno;
    lua_pushnil(L);
    lua_pushstring(L, strerror(error));
    return 2;
}

static const luaL_Reg waker_methods[] = {
    {"fd", l_waker_fd},       {"set", l_waker_set}, {"watch", l_waker_watch},
    {"close", l_waker_close}, {NULL, NULL},
};

static const luaL_Reg waker_metamethods[] = {
    {"__gc", l_waker_close},
    {"__close", l_waker_close},
    {NULL, NULL},
};

void lualxd_open_poller(lua_State *L)
{
    lxd_new_type(L, LXD_POLLER, methods, metamethods);
    lxd_new_type(L, LXD_WAKER, waker_methods, waker_metamethods);
    lua_pushcfunction(L, l_core_poller);
    lua_setfield(L, -2, "poller");
    lua_pushcfunction(L, l_core_waker);
    lua_setfield(L, -2, "waker");
}
