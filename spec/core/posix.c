/* What the core's specs need of the system and Lua doesn't have: raw sockets, fork, limits.
 * SPDX-License-Identifier: MIT
 *
 * For tests alone: descriptors are plain integers, every failure is `nil, message, errno`. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>

static int fail(lua_State *L)
{
    int error = errno;
    lua_pushnil(L);
    lua_pushstring(L, strerror(error));
    lua_pushinteger(L, error);
    return 3;
}

static int result(lua_State *L, long n)
{
    if (n < 0) return fail(L);
    lua_pushinteger(L, n);
    return 1;
}

/* listen(path, backlog) -> fd: a unix socket, not blocking */
static int l_listen(lua_State *L)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", luaL_checkstring(L, 1));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail(L);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
        listen(fd, (int)luaL_optinteger(L, 2, 64)) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return fail(L);
    }
    lua_pushinteger(L, fd);
    return 1;
}

/* listen_tcp(backlog) -> fd, port: on 127.0.0.1, not blocking */
static int l_listen_tcp(lua_State *L)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail(L);
    if (bind(fd, (struct sockaddr *)&a, size) != 0 || listen(fd, (int)luaL_optinteger(L, 1, 16)) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &size) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return fail(L);
    }
    lua_pushinteger(L, fd);
    lua_pushinteger(L, ntohs(a.sin_port));
    return 2;
}

static int l_accept(lua_State *L)
{
    return result(L, accept4((int)luaL_checkinteger(L, 1), NULL, NULL,
                             SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/* recv(fd, max) -> bytes ("" at the end) */
static int l_recv(lua_State *L)
{
    char bytes[65536];
    size_t max = (size_t)luaL_optinteger(L, 2, sizeof bytes);
    ssize_t n = recv((int)luaL_checkinteger(L, 1), bytes, max < sizeof bytes ? max : sizeof bytes, 0);
    if (n < 0) return fail(L);
    lua_pushlstring(L, bytes, (size_t)n);
    return 1;
}

static int l_send(lua_State *L)
{
    size_t n;
    const char *bytes = luaL_checklstring(L, 2, &n);
    return result(L, send((int)luaL_checkinteger(L, 1), bytes, n, MSG_NOSIGNAL));
}

/* pending(fd) -> bytes that can be received */
static int l_pending(lua_State *L)
{
    int n = 0;
    if (ioctl((int)luaL_checkinteger(L, 1), FIONREAD, &n) != 0) return fail(L);
    return result(L, n);
}

/* reset(fd): closes a TCP connection with a RST */
static int l_reset(lua_State *L)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    int fd = (int)luaL_checkinteger(L, 1);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    return result(L, close(fd));
}

static int l_shutdown(lua_State *L)
{
    return result(L, shutdown((int)luaL_checkinteger(L, 1), SHUT_WR));
}

static int l_close(lua_State *L)
{
    return result(L, close((int)luaL_checkinteger(L, 1)));
}

static int l_fork(lua_State *L)
{
    fflush(NULL);
    return result(L, fork());
}

/* exit(code): at once, nothing is collected */
static int l_exit(lua_State *L)
{
    _exit((int)luaL_checkinteger(L, 1));
}

/* waitpid(pid) -> exit status, or -signal */
static int l_waitpid(lua_State *L)
{
    int status;
    if (waitpid((pid_t)luaL_checkinteger(L, 1), &status, 0) < 0) return fail(L);
    lua_pushinteger(L, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    return 1;
}

/* alarm(seconds): a test that hangs ends */
static int l_alarm(lua_State *L)
{
    alarm((unsigned)luaL_checkinteger(L, 1));
    return 0;
}

static void ignore(int signal)
{
    (void)signal;
}

/* interrupt_after(seconds): SIGUSR1 comes, with a handler that does nothing and doesn't restart */
static int l_interrupt_after(lua_State *L)
{
    struct sigaction action = {.sa_handler = ignore};
    double seconds = luaL_checknumber(L, 1);
    pid_t parent = getpid();
    sigaction(SIGUSR1, &action, NULL);
    pid_t child = fork();
    if (child == 0) {
        usleep((useconds_t)(seconds * 1e6));
        kill(parent, SIGUSR1);
        _exit(0);
    }
    return result(L, child);
}

/* limit_files(n) -> the limit before */
static int l_limit_files(lua_State *L)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    lua_pushinteger(L, (lua_Integer)limit.rlim_cur);
    limit.rlim_cur = (rlim_t)luaL_checkinteger(L, 1);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return fail(L);
    return 1;
}

/* fail_call(name, errno): a system call fails from now on, in this thread and those that it starts */
static int l_fail_call(lua_State *L)
{
    static const char *const names[] = {"accept4", "epoll_ctl", NULL};
    static const unsigned numbers[] = {SYS_accept4, SYS_epoll_ctl};
    unsigned number = numbers[luaL_checkoption(L, 1, NULL, names)];
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)luaL_checkinteger(L, 2)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof rules / sizeof *rules, .filter = rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail(L);
    return result(L, prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

/* descriptors() -> how many are open, and a table of them */
static int l_descriptors(lua_State *L)
{
    lua_Integer n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d) return fail(L);
    lua_newtable(L);
    for (struct dirent *e; (e = readdir(d));) {
        char target[256];
        if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d)) continue;
        ssize_t length = readlinkat(dirfd(d), e->d_name, target, sizeof target);
        lua_pushlstring(L, target, length < 0 ? 0 : (size_t)length);
        lua_rawseti(L, -2, atoi(e->d_name));
        n++;
    }
    closedir(d);
    lua_pushinteger(L, n);
    lua_insert(L, -2);
    return 2;
}

/* memory() -> bytes of this process that are in memory */
static int l_memory(lua_State *L)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return fail(L);
    if (fscanf(f, "%*s %ld", &pages) != 1) pages = 0;
    fclose(f);
    lua_pushinteger(L, (lua_Integer)pages * sysconf(_SC_PAGESIZE));
    return 1;
}

static int l_mkfifo(lua_State *L)
{
    return result(L, mkfifo(luaL_checkstring(L, 1), 0600));
}

static int l_chmod(lua_State *L)
{
    return result(L, chmod(luaL_checkstring(L, 1), (mode_t)luaL_checkinteger(L, 2)));
}

static int l_truncate(lua_State *L)
{
    return result(L, truncate(luaL_checkstring(L, 1), (off_t)luaL_checkinteger(L, 2)));
}

/* as_user(uid): for the rest of this process */
static int l_as_user(lua_State *L)
{
    return result(L, setresuid((uid_t)luaL_checkinteger(L, 1), (uid_t)luaL_checkinteger(L, 1),
                               (uid_t)luaL_checkinteger(L, 1)));
}

static int l_getuid(lua_State *L)
{
    return result(L, (long)getuid());
}

/* directory() -> a new one that only we can use */
static int l_directory(lua_State *L)
{
    char path[] = "/tmp/lualxd-core-XXXXXX";
    if (!mkdtemp(path)) return fail(L);
    lua_pushstring(L, path);
    return 1;
}

static int l_rmdir(lua_State *L)
{
    return result(L, rmdir(luaL_checkstring(L, 1)));
}

/* sleep(seconds) */
static int l_sleep(lua_State *L)
{
    usleep((useconds_t)(luaL_checknumber(L, 1) * 1e6));
    return 0;
}

/* cloexec(fd) -> whether it closes on exec */
static int l_cloexec(lua_State *L)
{
    int flags = fcntl((int)luaL_checkinteger(L, 1), F_GETFD);
    if (flags < 0) return fail(L);
    lua_pushboolean(L, flags & FD_CLOEXEC);
    return 1;
}

static const luaL_Reg functions[] = {
    {"listen", l_listen},
    {"listen_tcp", l_listen_tcp},
    {"accept", l_accept},
    {"recv", l_recv},
    {"send", l_send},
    {"pending", l_pending},
    {"reset", l_reset},
    {"shutdown", l_shutdown},
    {"close", l_close},
    {"fork", l_fork},
    {"exit", l_exit},
    {"waitpid", l_waitpid},
    {"alarm", l_alarm},
    {"interrupt_after", l_interrupt_after},
    {"limit_files", l_limit_files},
    {"fail_call", l_fail_call},
    {"descriptors", l_descriptors},
    {"memory", l_memory},
    {"mkfifo", l_mkfifo},
    {"chmod", l_chmod},
    {"truncate", l_truncate},
    {"as_user", l_as_user},
    {"getuid", l_getuid},
    {"directory", l_directory},
    {"rmdir", l_rmdir},
    {"sleep", l_sleep},
    {"cloexec", l_cloexec},
    {NULL, NULL},
};

int luaopen_spec_posix(lua_State *L);

int luaopen_spec_posix(lua_State *L)
{
    lua_newtable(L);
    for (const luaL_Reg *f = functions; f->name; f++) {
        lua_pushcfunction(L, f->func);
        lua_setfield(L, -2, f->name);
    }
    return 1;
}
