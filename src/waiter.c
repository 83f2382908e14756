/* Waits for descriptors on behalf of an event loop that can wait for sockets of its own only: nginx.
 * SPDX-License-Identifier: MIT
 *
 * A thread listens on a unix socket. Who connects sends the number of a descriptor and a line feed; the
 * thread answers one byte once it is readable, and is ready for the next number. It touches nothing
 * else: no Lua state, no curl. The socket has no name any more when anybody could use it: the path
 * leads over a descriptor of this process, and a peer that isn't this process is turned away. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "core.h"

#define LXD_WAITER "lualxd.waiter"
#define BATCH 32
#define PATIENCE 10000 /* microseconds until another try for a descriptor, or for memory */

/* One who waits: a connection, and the descriptor it asked for. */
typedef struct seat {
    struct seat *next, **link;
    int peer;
    int watched; /* a duplicate of its own, so that two may wait for one; -1: none now */
    char number[12];
    size_t length;
    bool dead;
} seat;

/* What the thread owns: nobody else touches it between its start and its end. */
typedef struct hall {
    int epoll, listener, quit;
    int spare;     /* given up for a peer when there is no other descriptor left; -1: it is used up */
    pid_t pid;
    seat *seats;
    seat *leaving; /* an event of this batch may still name them */
} hall;

/* The userdata. */
typedef struct waiter {
    pthread_t thread;
    hall *hall;    /* the thread's; freed after it was joined. NULL: closed */
    int name;      /* O_PATH descriptor of the socket */
} waiter;

static char listener_mark, quit_mark; /* what epoll's data points to when it is no seat */

static bool watch(hall *h, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    return epoll_ctl(h->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void unwatch(hall *h, seat *s)
{
    if (s->watched < 0) return;
    epoll_ctl(h->epoll, EPOLL_CTL_DEL, s->watched, NULL);
    close(s->watched);
    s->watched = -1;
}

/* Explicitly: while a forked child has the connection open too, closing it neither ends the watch, whose
 * events would name a seat that is gone, nor is seen by the other end. */
static void leave(hall *h, seat *s)
{
    if (s->dead) return;
    s->dead = true;
    unwatch(h, s);
    epoll_ctl(h->epoll, EPOLL_CTL_DEL, s->peer, NULL);
    shutdown(s->peer, SHUT_RDWR);
    close(s->peer);
    *s->link = s->next;
    if (s->next) s->next->link = s->link;
    s->next = h->leaving;
    h->leaving = s;
}

/* There is no descriptor for whoever wants to connect: turned away, or the listener stays readable and
 * the thread spins. */
static void turn_away(hall *h)
{
    if (h->spare >= 0) close(h->spare);
    int peer = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer >= 0) close(peer);
    h->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    /* Another thread was quicker at taking what was closed here. */
    if (peer < 0 && h->spare < 0) usleep(PATIENCE);
}

static void welcome(hall *h)
{
    struct ucred who;
    socklen_t size = sizeof who;
    int peer = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0) {
        if (errno == EMFILE || errno == ENFILE) turn_away(h);
        else if (errno == ENOMEM || errno == ENOBUFS) usleep(PATIENCE); /* or it spins, see above */
        return;
    }
    seat *s = NULL;
    if (getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.pid == h->pid)
        s = LXD_CALLOC(1, sizeof *s);
    if (!s || !watch(h, peer, s)) {
        LXD_FREE(s);
        close(peer);
        return;
    }
    s->peer = peer;
    s->watched = -1;
    s->next = h->seats;
    s->link = &h->seats;
    if (s->next) s->next->link = &s->next;
    h->seats = s;
}

static void answer(hall *h, seat *s)
{
    unwatch(h, s);
    if (send(s->peer, "r", 1, MSG_NOSIGNAL) != 1) leave(h, s);
}

/* A descriptor that can't be watched counts as readable: who waited finds out what is wrong with it. But
 * where there is none left for a duplicate, nothing is wrong with it, and nobody is told so: the peer
 * goes, which it sees. */
static void begin(hall *h, seat *s)
{
    unwatch(h, s);
    s->number[s->length] = '\0';
    s->length = 0;
    s->watched = fcntl(atoi(s->number), F_DUPFD_CLOEXEC, 0);
    if (s->watched < 0 && errno == EMFILE) leave(h, s);
    else if (s->watched < 0 || !watch(h, s->watched, s)) answer(h, s);
}

/* The peer has said something, or has gone. */
static bool listen_to(hall *h, seat *s)
{
    char c;
    ssize_t n = recv(s->peer, &c, 1, MSG_PEEK);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n <= 0) {
        leave(h, s);
        return true;
    }
    while (!s->dead && recv(s->peer, &c, 1, 0) == 1) {
        if (c == '\n') begin(h, s);
        else if (c >= '0' && c <= '9' && s->length < sizeof s->number - 1) s->number[s->length++] = c;
        else leave(h, s);
    }
    return true;
}

/* An event of a seat is either's: of its peer or of what it watches. */
static void attend(hall *h, seat *s)
{
    if (!s->dead && !listen_to(h, s) && s->watched >= 0) answer(h, s);
}

static void *run(void *data)
{
    hall *h = data;
    struct epoll_event events[BATCH];
    for (;;) {
        int n = epoll_wait(h->epoll, events, BATCH, -1);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &quit_mark) return NULL;
            if (what == &listener_mark) welcome(h);
            else attend(h, what);
        }
        while (h->leaving) {
            seat *s = h->leaving;
            h->leaving = s->next;
            LXD_FREE(s);
        }
    }
}

static void free_hall(hall *h)
{
    while (h->seats) leave(h, h->seats);
    while (h->leaving) {
        seat *s = h->leaving;
        h->leaving = s->next;
        LXD_FREE(s);
    }
    if (h->epoll >= 0) close(h->epoll);
    if (h->listener >= 0) close(h->listener);
    if (h->quit >= 0) close(h->quit);
    if (h->spare >= 0) close(h->spare);
    LXD_FREE(h);
}

/* A listening socket without a name, and a descriptor of it to connect by; false, with errno. */
static bool open_listener(int *listener, int *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char directory[sizeof address.sun_path - 2];
    const char *base = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/lualxd-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(directory)) return false;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/s", directory);
    *listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool ok = *listener >= 0 && bind(*listener, (struct sockaddr *)&address, sizeof address) == 0 &&
        chmod(address.sun_path, 0600) == 0 && listen(*listener, 128) == 0 &&
        (*name = open(address.sun_path, O_PATH | O_CLOEXEC)) >= 0;
    int error = errno;
    unlink(address.sun_path);
    rmdir(directory);
    errno = error;
    return ok;
}

/* The thread gets no signals: they are for whoever has handlers. */
static int start(waiter *w)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->thread, NULL, run, w->hall);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/* 0, or what went wrong; then nothing is open. */
static int open_waiter(waiter *w)
{
    hall *h = LXD_CALLOC(1, sizeof *h);
    if (!h) return ENOMEM;
    h->epoll = h->listener = h->quit = h->spare = w->name = -1;
    h->pid = lxd_pid();
    w->hall = h;
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    h->quit = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int error = 0;
    if (h->epoll < 0 || h->quit < 0 || h->spare < 0 || !open_listener(&h->listener, &w->name) ||
        !watch(h, h->listener, &listener_mark) || !watch(h, h->quit, &quit_mark))
        error = errno ? errno : EIO;
    if (!error) error = start(w);
    if (error) {
        if (w->name >= 0) close(w->name);
        free_hall(h);
        w->hall = NULL;
    }
    return error;
}

/* Ends the thread, waits for that and frees what it had. A forked child has no thread. */
static void close_waiter(waiter *w)
{
    hall *h = w->hall;
    if (!h) return;
    w->hall = NULL;
    close(w->name);
    if (h->pid != lxd_pid()) {
        /* The parent's thread may have been in the middle of anything: its seats are left alone. */
        close(h->epoll);
        close(h->listener);
        close(h->quit);
        if (h->spare >= 0) close(h->spare);
        return;
    }
    uint64_t one = 1;
    while (write(h->quit, &one, sizeof one) < 0 && errno == EINTR) {}
    pthread_join(w->thread, NULL);
    free_hall(h);
}

/* Where to connect to. In a forked child another thread takes over. */
static int l_waiter_path(lua_State *L)
{
    waiter *w = luaL_checkudata(L, 1, LXD_WAITER);
    if (!w->hall) return luaL_error(L, "attempt to use a closed waiter");
    if (w->hall->pid != lxd_pid()) {
        close_waiter(w);
        int error = open_waiter(w);
        if (error) return luaL_error(L, "no waiter after fork: %s", strerror(error));
    }
    lua_pushfstring(L, "/proc/self/fd/%d", w->name);
    return 1;
}

static int l_waiter_close(lua_State *L)
{
    close_waiter(luaL_checkudata(L, 1, LXD_WAITER));
    return 0;
}

static int l_core_waiter(lua_State *L)
{
    waiter *w = lua_newuserdata(L, sizeof *w);
    memset(w, 0, sizeof *w);
    luaL_getmetatable(L, LXD_WAITER);
    lua_setmetatable(L, -2);
    int error = open_waiter(w);
    if (!error) return 1;
    lua_pushnil(L);
    lua_pushstring(L, strerror(error));
    return 2;
}

static const luaL_Reg methods[] = {
    {"path", l_waiter_path},
    {"close", l_waiter_close},
    {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", l_waiter_close},
    {"__close", l_waiter_close},
    {NULL, NULL},
};

void lualxd_open_waiter(lua_State *L)
{
    lxd_new_type(L, LXD_WAITER, methods, metamethods);
    lua_pushcfunction(L, l_core_waiter);
    lua_setfield(L, -2, "waiter");
}
