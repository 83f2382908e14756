/* The connections of one client: a libcurl multi handle on a poller.
 * SPDX-License-Identifier: MIT
 *
 * libcurl's callbacks here only keep lists and times; nothing of Lua runs under them. Sockets are
 * opened and closed by us, so that they close on exec and a forked child can find them. */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transfer.h"
#include "websocket.h"

#define ROUNDS 8        /* calls of libcurl in one run: a peer with ever more to say must not hold us */
#define SUBMIT_TURNS 16 /* turns that submit gives a body which the kernel takes at once */

/* The userdata. */
typedef struct handle {
    lxd_engine *engine; /* owned; NULL: closed */
} handle;

static lxd_engine *to_engine(lua_State *L, int arg)
{
    return ((handle *)luaL_checkudata(L, arg, LXD_ENGINE))->engine;
}

/* The open engine at an argument, in this process. */
static lxd_engine *check_engine(lua_State *L, int arg)
{
    lxd_engine *e = to_engine(L, arg);
    if (!e || !e->poller) luaL_error(L, "attempt to use a closed engine");
    if (!lxd_poller_use(e->poller)) luaL_error(L, "no poller after fork: %s", strerror(errno));
    return e;
}

/* Takes a socket out that is closed already, or is about to be. */
static void remove_socket(lxd_socket *s)
{
    lxd_engine *e = s->engine;
    lxd_poller_unwatch(e->poller, s);
    lxd_poller_leave(e->poller, s);
    if (s->prev) s->prev->next = s->next;
    else e->sockets = s->next;
    if (s->next) s->next->prev = s->prev;
    LXD_FREE(s);
}

/* libcurl (7.88) closes a socket by itself, without saying so, when it gives up a host's connection
 * before that has come about. What the kernel knew of it is gone, and the number may be another's. */
static void forget_socket(lxd_socket *s)
{
    s->events = 0;
    remove_socket(s);
}

/* Whether the number of a connection is still that connection's (see forget_socket). */
static bool is_itself(const lxd_socket *s)
{
    struct stat st;
    return fstat(s->fd, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode;
}

/* Adds what libcurl opened to the list. NULL: no memory. */
static lxd_socket *add_socket(lxd_engine *e, curl_socket_t fd)
{
    lxd_socket *old = lxd_poller_find(e->poller, fd), *s = LXD_CALLOC(1, sizeof *s);
    if (old) forget_socket(old); /* of any engine: the number is this one's now */
    if (!s) return NULL;
    s->engine = e;
    s->fd = fd;
    if (!lxd_poller_enter(e->poller, s)) {
        LXD_FREE(s);
        return NULL;
    }
    s->next = e->sockets;
    if (s->next) s->next->prev = s;
    e->sockets = s;
    return s;
}

static lxd_socket *find_socket(const lxd_engine *e, curl_socket_t fd)
{
    lxd_socket *s = lxd_poller_find(e->poller, fd);
    return s && s->engine == e ? s : NULL;
}

/* CURLOPT_OPENSOCKETFUNCTION */
curl_socket_t lxd_engine_open_socket(void *request, curlsocktype use, struct curl_sockaddr *a)
{
    (void)use;
    lxd_request *r = request;
    int fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
    r->socket_error = fd < 0 ? errno : 0;
    if (fd < 0) return CURL_SOCKET_BAD;
    struct stat st;
    lxd_socket *s = fstat(fd, &st) == 0 ? add_socket(r->engine, fd) : NULL;
    if (!s) {
        r->socket_error = ENOMEM;
        close(fd);
        return CURL_SOCKET_BAD;
    }
    s->opened = true;
    s->device = st.st_dev;
    s->inode = st.st_ino;
    return fd;
}

/* CURLOPT_CLOSESOCKETFUNCTION; libcurl calls it for kept connections as late as when the multi
 * handle goes. */
int lxd_engine_close_socket(void *engine, curl_socket_t fd)
{
    lxd_socket *s = find_socket(engine, fd);
    if (s) remove_socket(s);
    return close(fd);
}

/* CURLMOPT_SOCKETFUNCTION */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *engine, void *unused)
{
    (void)unused;
    lxd_engine *e = engine;
    lxd_socket *s = find_socket(e, fd);
    if (s && s->opened && !is_itself(s)) {
        forget_socket(s);
        s = NULL;
    }
    if (what == CURL_POLL_REMOVE) {
        if (s && !s->opened) remove_socket(s);
        else if (s) s->wanted = false; /* see lxd_poller_turn */
        return 0;
    }
    lxd_request *r = NULL;
    if (curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&r) == CURLE_OK && r) r->fd = fd;
    int events = (what & CURL_POLL_IN ? LXD_IN : 0) | (what & CURL_POLL_OUT ? LXD_OUT : 0);
    if ((s || (s = add_socket(e, fd))) && lxd_poller_watch(e->poller, s, events)) return 0;
    int error = s ? errno : ENOMEM;
    for (r = e->active; r; r = r->next)
        if (r->fd == fd)
            lxd_request_blame(r, LXD_FAILED, error, "a socket can't be watched: %s", strerror(error));
    e->unwatched = true;
    return 0; /* libcurl (7.88) crashes on anything else */
}

/* CURLMOPT_TIMERFUNCTION */
static int on_timer(CURLM *multi, long milliseconds, void *engine)
{
    (void)multi;
    lxd_engine *e = engine;
    e->timer_at = milliseconds < 0 ? LXD_NEVER : lxd_now() + milliseconds * INT64_C(1000000);
    e->timer_told = true;
    return 0;
}

/* There was progress: its time without any begins now. */
void lxd_engine_touch(lxd_request *r)
{
    r->touched = lxd_now();
    if (r->timeout > 0 && r->engine && r->touched + r->timeout < r->engine->idle_at)
        r->engine->idle_at = r->touched + r->timeout;
}

static bool make_multi(lxd_engine *e)
{
    if (e->multi) return true;
    e->timer_at = LXD_NEVER;
    e->multi = curl_multi_init();
    if (!e->multi) return false;
    curl_multi_setopt(e->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(e->multi, CURLMOPT_SOCKETDATA, e);
    curl_multi_setopt(e->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(e->multi, CURLMOPT_TIMERDATA, e);
    /* How many there are is ours to say. libcurl counts WebSockets, too, and would close kept connections
     * to make room for them. */
    curl_multi_setopt(e->multi, CURLMOPT_MAXCONNECTS, (long)INT16_MAX);
    curl_multi_setopt(e->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, e->connections);
    return true;
}

/* Puts a request in line. */
static void enqueue(lxd_engine *e, lxd_request *r)
{
    lxd_request *before = r->urgent ? e->urgent_last : e->queue_last;
    r->state = LXD_QUEUED;
    r->prev = before;
    r->next = before ? before->next : e->queue;
    if (before) before->next = r;
    else e->queue = r;
    if (r->next) r->next->prev = r;
    else e->queue_last = r;
    if (r->urgent) e->urgent_last = r;
    e->queued++;
}

/* Takes a request out of the queue or from among the active. */
static void unlink_request(lxd_engine *e, lxd_request *r)
{
    bool queued = r->state == LXD_QUEUED;
    if (r->prev) r->prev->next = r->next;
    else if (queued) e->queue = r->next;
    else e->active = r->next;
    if (r->next) r->next->prev = r->prev;
    else if (queued) e->queue_last = r->prev;
    if (queued && r == e->urgent_last) e->urgent_last = r->prev;
    r->prev = r->next = NULL;
    if (queued) e->queued--;
    else if (!r->ws) e->actives--;
}

/* Ends a request as r->kind says; its userdata keeps it for who asks for the result. */
void lxd_engine_end(lxd_request *r)
{
    lxd_engine *e = r->engine;
    unlink_request(e, r);
    if (r->easy) {
        lxd_transfer_harvest(r);
        curl_multi_remove_handle(e->multi, r->easy);
        /* A transfer that ends on a connection which others still use keeps its buffer, too. */
        bool clean = r->kind == LXD_NO_FAILURE && !r->ws && !(r->shared && e->actives > 0);
        if (clean && e->spares < e->connections) {
            curl_easy_reset(r->easy);
            e->spare[e->spares++] = r->easy;
        } else {
            /* Not to be used again: a reset leaves the buffer of a transfer that broke off, and
             * libcurl then refuses CURLOPT_BUFFERSIZE. */
            curl_easy_cleanup(r->easy);
        }
        r->easy = NULL;
    }
    r->state = LXD_DONE;
    r->engine = NULL;
    lxd_source_drop(&r->source);
    lxd_poller_note(e->poller, r);
}

/* Opens the files of its body; false, and it has ended: one can't be read. */
static bool open_files(lxd_request *r)
{
    int error;
    const lxd_piece *bad = lxd_source_open(&r->source, &error);
    if (!bad) return true;
    lxd_request_blame(r, LXD_FILE, error, "%s: %s", bad->path ? bad->path : "body",
                      error ? strerror(error) : "not a plain file");
    lxd_engine_end(r);
    return false;
}

/* Hands one of the queue to libcurl. */
static void start(lxd_engine *e, lxd_request *r)
{
    if (!open_files(r)) return;
    unlink_request(e, r);
    r->state = LXD_ACTIVE;
    r->next = e->active;
    if (r->next) r->next->prev = r;
    e->active = r;
    if (!r->ws) e->actives++;
    lxd_engine_touch(r);
    r->began = r->touched;
    r->easy = e->spares > 0 ? e->spare[--e->spares] : curl_easy_init();
    CURLcode code = CURLE_OUT_OF_MEMORY;
    if (r->easy && make_multi(e)) code = lxd_transfer_setup(r);
    if (code == CURLE_OK && curl_multi_add_handle(e->multi, r->easy) != CURLM_OK)
        code = CURLE_OUT_OF_MEMORY;
    if (code == CURLE_OK) return;
    lxd_transfer_outcome(r, code);
    lxd_engine_end(r);
}

static void start_queued(lxd_engine *e)
{
    while (e->queue && e->actives < e->connections) start(e, e->queue);
}

/* Ends what was blamed while libcurl had it. */
static void end_unwatched(lxd_engine *e)
{
    lxd_request *next;
    e->unwatched = false;
    for (lxd_request *r = e->active; r; r = next) {
        next = r->next;
        if (r->kind != LXD_NO_FAILURE) lxd_engine_end(r);
    }
}

/* Ends what libcurl says it is done with. */
static void reap(lxd_engine *e)
{
    int left;
    CURLMsg *message;
    while (e->multi && (message = curl_multi_info_read(e->multi, &left))) {
        if (message->msg != CURLMSG_DONE) continue;
        CURLcode code = message->data.result; /* the message goes with the handle */
        lxd_request *r = NULL;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&r);
        if (r->ws && code == CURLE_OK) {
            lxd_websocket_begin(r);
            continue;
        }
        lxd_transfer_outcome(r, code);
        lxd_engine_end(r);
    }
}

bool lxd_engine_watch(lxd_request *r, int what)
{
    lxd_socket *s = find_socket(r->engine, r->fd);
    if (!s) return false;
    if (what) return lxd_poller_watch(r->engine->poller, s, what);
    lxd_poller_unwatch(r->engine->poller, s); /* or a hang-up would be news for ever */
    return true;
}

/* Ends every request the same way, and gives libcurl's handles back. */
static void end_all(lxd_engine *e, lxd_kind kind, const char *message)
{
    while (e->active || e->queue) {
        lxd_request *r = e->active ? e->active : e->queue;
        lxd_request_blame(r, kind, 0, "%s", message);
        lxd_engine_end(r);
    }
    while (e->spares > 0) curl_easy_cleanup(e->spare[--e->spares]);
    if (e->multi) curl_multi_cleanup(e->multi);
    e->multi = NULL;
    while (e->sockets) forget_socket(e->sockets);
    e->broken = e->eager = e->unwatched = false;
    e->timer_at = e->idle_at = LXD_NEVER;
}

static void call(lxd_engine *e, curl_socket_t fd, int what)
{
    int running;
    if (curl_multi_socket_action(e->multi, fd, what, &running) != CURLM_OK) e->broken = true;
}

/* The kernel has news of a socket. */
void lxd_engine_event(lxd_socket *s, int what)
{
    lxd_engine *e = s->engine;
    for (lxd_request *r = e->active; r; r = r->next) {
        if (r->fd != s->fd) continue;
        if (lxd_websocket_began(r)) {
            lxd_websocket_drive(r);
            return;
        }
        if (!r->shared) lxd_engine_touch(r);
    }
    int in = what & LXD_IN ? CURL_CSELECT_IN : 0;
    call(e, s->fd, in | (what & LXD_OUT ? CURL_CSELECT_OUT : 0));
}

/* On a connection with others what the kernel says is no news of this one: has libcurl sent of its body? */
static void see_uploads(lxd_engine *e)
{
    for (lxd_request *r = e->active; r; r = r->next) {
        curl_off_t sent = 0;
        if (!r->shared || r->uploaded >= r->source.given) continue;
        curl_easy_getinfo(r->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
        if (sent > r->uploaded) lxd_engine_touch(r);
        r->uploaded = sent;
    }
}

/* Ends requests that have made no progress for their time; those that wait for us have none. */
static void check_idle(lxd_engine *e, int64_t now)
{
    lxd_request *next;
    e->idle_at = LXD_NEVER;
    for (lxd_request *r = e->active; r; r = next) {
        next = r->next;
        if (r->timeout == 0 || r->recv_paused || r->send_paused) continue;
        int64_t at = r->touched + r->timeout;
        if (at > now) {
            if (at < e->idle_at) e->idle_at = at;
        } else if (!r->ws || !lxd_websocket_idle(r)) {
            lxd_request_blame(r, LXD_TIMEOUT, 0, "no progress for %g s",
                              (double)r->timeout / 1e9);
            lxd_engine_end(r);
        }
    }
}

/* A drive of a WebSocket may end that one, and no other. */
static void go_on(lxd_engine *e)
{
    lxd_request *next;
    e->eager = false;
    for (lxd_request *r = e->active; r; r = next) {
        next = r->next;
        if (r->ws) lxd_websocket_go_on(r);
    }
}

/* Calls libcurl as long as it wants to be called now, ends what is done, starts what waits. */
void lxd_engine_run(lxd_engine *e)
{
    if (e->eager) go_on(e);
    for (int i = 0; i < ROUNDS; i++) {
        reap(e);
        if (e->unwatched) end_unwatched(e);
        if (e->broken) end_all(e, LXD_FAILED, "libcurl gave up");
        start_queued(e);
        if (!e->multi || e->timer_at > lxd_now()) break;
        e->timer_told = false;
        call(e, CURL_SOCKET_TIMEOUT, 0);
        if (!e->timer_told) {
            /* libcurl doesn't repeat a time that it has told before, although it may have found
             * that we came a little early. */
            long milliseconds = -1;
            curl_multi_timeout(e->multi, &milliseconds);
            on_timer(e->multi, milliseconds, e);
        }
    }
    see_uploads(e);
    int64_t now = lxd_now();
    if (e->idle_at > now) return;
    check_idle(e, now);
    start_queued(e);
}

/* When the engine wants to run again. */
int64_t lxd_engine_next(const lxd_engine *e)
{
    return e->broken || e->unwatched || e->eager ? 0 : e->timer_at < e->idle_at ? e->timer_at : e->idle_at;
}

/* Ends a request as cancelled, unless it has ended. */
void lxd_engine_cancel(lxd_request *r)
{
    lxd_engine *e = r->engine;
    if (!e) return;
    lxd_poller_fork(e->poller);
    if (!r->engine) return; /* ended by that: it is the parent's */
    lxd_request_blame(r, LXD_CANCELLED, 0, "cancelled");
    lxd_engine_end(r);
    start_queued(e);
    lxd_poller_settle(e->poller);
}

/* In a child: ends what is the parent's, without a byte or a shutdown on its connections. Each
 * descriptor is replaced by a socket that leads nowhere, whatever libcurl then does with it. */
void lxd_engine_fork(lxd_engine *e)
{
    for (lxd_socket *s = e->sockets; s; s = s->next) {
        if (!s->opened || !is_itself(s)) continue;
        int nowhere = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (nowhere < 0) { /* no descriptor left: this one makes room */
            close(s->fd);
            nowhere = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        }
        if (nowhere < 0 || nowhere == s->fd) continue;
        dup3(nowhere, s->fd, O_CLOEXEC);
        close(nowhere);
    }
    end_all(e, LXD_FORKED, "this request is the parent process's");
}

void lxd_engine_close(lxd_engine *e)
{
    lxd_poller *p = e->poller;
    if (!p) return;
    lxd_poller_fork(p);
    end_all(e, LXD_CANCELLED, "the client was closed");
    lxd_poller_settle(p);
    if (e->prev) e->prev->next = e->next;
    else p->engines = e->next;
    if (e->next) e->next->prev = e->prev;
    e->poller = NULL;
}

/* Whether a body that is in memory may still find room in the kernel. */
static bool more_to_send(const lxd_request *r)
{
    return r->state == LXD_ACTIVE && r->has_body && !r->source.live &&
           r->source.given < r->source.length;
}

static int l_engine_submit(lua_State *L)
{
    check_engine(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lxd_request *r = lxd_request_new(L, 2); /* with its memory from Lua: nothing raises after it */
    lua_getuservalue(L, 1);
    lua_setuservalue(L, 3);
    lxd_engine *e = check_engine(L, 1); /* again: collecting garbage may have closed it */
    r->id = e->poller->next_id++;
    if (r->timeout < 0) r->timeout = e->timeout;
    r->engine = e;
    enqueue(e, r);
    if (open_files(r) && r->ws) start(e, r); /* beside the others: it may stay for long */
    lxd_engine_run(e);
    if (r->state == LXD_QUEUED) lxd_source_shut(&r->source); /* any number may stand in line */
    for (int i = 0; i < SUBMIT_TURNS && more_to_send(r); i++) {
        int64_t before = r->source.given;
        lxd_poller_turn(e->poller, 0);
        if (r->source.given == before) break;
    }
    lxd_poller_settle(e->poller);
    return 1;
}

static int l_engine_count(lua_State *L)
{
    lxd_engine *e = check_engine(L, 1);
    lua_pushinteger(L, e->actives);
    lua_pushinteger(L, e->queued);
    return 2;
}

static int l_engine_connects(lua_State *L)
{
    lua_pushinteger(L, (lua_Integer)check_engine(L, 1)->connects);
    return 1;
}

static int l_engine_certificate(lua_State *L)
{
    lxd_endpoint_push_server(L, check_engine(L, 1)->endpoint);
    return 1;
}

static int l_engine_close(lua_State *L)
{
    handle *h = luaL_checkudata(L, 1, LXD_ENGINE);
    lxd_engine *e = h->engine;
    if (!e) return 0;
    h->engine = NULL;
    lxd_engine_close(e);
    LXD_FREE(e->spare);
    lxd_endpoint_drop(e->endpoint);
    LXD_FREE(e);
    return 0;
}

static int l_engine_tostring(lua_State *L)
{
    lxd_engine *e = to_engine(L, 1);
    if (e && e->poller) lua_pushfstring(L, LXD_ENGINE ": %p", (void *)e);
    else lua_pushliteral(L, LXD_ENGINE " (closed)");
    return 1;
}

/* Reads the options into an engine that its userdata owns already. */
static void read_options(lua_State *L, int options, lxd_engine *e)
{
    lua_getfield(L, options, "connections");
    lua_Number connections = lua_tonumber(L, -1);
    if (!(connections >= 1 && connections <= 1024))
        luaL_error(L, "option 'connections' must be 1 to 1024");
    e->connections = (long)connections;
    lua_getfield(L, options, "timeout");
    lua_Number timeout = lua_tonumber(L, -1);
    if (!lua_isnumber(L, -1) || !(timeout >= 0)) luaL_error(L, "option 'timeout' must be seconds");
    e->timeout = timeout < 1e9 ? (int64_t)(timeout * 1e9) : 0;
    lua_pop(L, 2);
}

static int l_core_engine(lua_State *L)
{
    lxd_poller_check(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    handle *h = lua_newuserdata(L, sizeof *h);
    h->engine = NULL;
    luaL_getmetatable(L, LXD_ENGINE);
    lua_setmetatable(L, -2);
    /* What its requests keep alive: the engine, and with it the poller. */
    lua_createtable(L, 2, 0);
    lua_pushvalue(L, 1);
    lua_rawseti(L, -2, 1);
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, 2);
    lua_setuservalue(L, -2);
    lxd_engine *e = h->engine = LXD_CALLOC(1, sizeof *e);
    if (!e) return luaL_error(L, "not enough memory");
    e->timer_at = e->idle_at = LXD_NEVER;
    read_options(L, 2, e);
    if (!lxd_endpoint_new(L, 2, &e->endpoint)) {
        lua_pushnil(L);
        lua_insert(L, -2);
        return 2;
    }
    e->spare = LXD_CALLOC((size_t)e->connections, sizeof *e->spare);
    if (!e->spare) return luaL_error(L, "not enough memory");
    e->poller = lxd_poller_check(L, 1);
    e->next = e->poller->engines;
    if (e->next) e->next->prev = e;
    e->poller->engines = e;
    return 1;
}

static const luaL_Reg methods[] = {
    {"submit", l_engine_submit},     {"count", l_engine_count},
    {"connects", l_engine_connects}, {"certificate", l_engine_certificate},
    {"close", l_engine_close},       {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", l_engine_close},
    {"__close", l_engine_close},
    {"__tostring", l_engine_tostring},
    {NULL, NULL},
};

void lualxd_open_engine(lua_State *L)
{
    lxd_new_type(L, LXD_ENGINE, methods, metamethods);
    lua_pushcfunction(L, l_core_engine);
    lua_setfield(L, -2, "engine");
}
