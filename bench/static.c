/* SPDX-License-Identifier: MIT */
/* A server that is never the bottleneck: it answers `GET /1.0` with one file and every other GET
   with another, over a unix socket, on kept connections. It ends when its standard input does. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <signal.h>
#include <unistd.h>

#define CLIENTS 64 /* descriptors below this number are served */

struct answer {
    char *bytes;
    size_t length;
};

struct client {
    char head[8192];
    size_t length;
};

static struct client clients[CLIENTS];

static void fail(const char *what) {
    fprintf(stderr, "static: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The whole answer with the file as its body, as LXD's heads look. */
static struct answer load(const char *path) {
    static char body[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail(path);
    size_t length = fread(body, 1, sizeof body, file);
    fclose(file);
    struct answer answer = {malloc(length + 512), 0};
    if (answer.bytes == NULL)
        fail(path);
    int head = snprintf(answer.bytes, 512,
                        "HTTP/1.1 200 OK\r\n"
                        "Content-Type: application/json\r\n"
                        "Etag: \"8cb4f3a7d27c6d2d1c8c0f2e0a3b4c5d8cb4f3a7d27c6d2d1c8c0f2e0a3b4c5d\"\r\n"
                        "Date: Mon, 18 Apr 2016 22:24:54 GMT\r\n"
                        "Content-Length: %zu\r\n\r\n",
                        length);
    memcpy(answer.bytes + head, body, length);
    answer.length = (size_t)head + length;
    return answer;
}

/* Answers what has come on one connection; says whether it goes on. */
static int serve(int fd, const struct answer *root, const struct answer *item) {
    struct client *client = &clients[fd];
    ssize_t got = read(fd, client->head + client->length, sizeof client->head - client->length - 1);
    if (got <= 0)
        return 0;
    client->length += (size_t)got;
    client->head[client->length] = '\0';
    if (strstr(client->head, "\r\n\r\n") == NULL)
        return client->length < sizeof client->head - 1;
    const struct answer *answer = strncmp(client->head, "GET /1.0 ", 9) == 0 ? root : item;
    client->length = 0;
    /* A few kilobytes always fit into the buffer of a socket whose last answer was read. */
    return send(fd, answer->bytes, answer->length, MSG_NOSIGNAL) == (ssize_t)answer->length;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: static SOCKET ROOT-FILE ITEM-FILE\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct answer root = load(argv[2]), item = load(argv[3]);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof at.sun_path) {
        errno = ENAMETOOLONG;
        fail(argv[1]);
    }
    strcpy(at.sun_path, argv[1]);
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (door < 0 || bind(door, (struct sockaddr *)&at, sizeof at) < 0 || listen(door, 128) < 0)
        fail(argv[1]);
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = door};
    epoll_ctl(poll, EPOLL_CTL_ADD, door, &event);
    event.data.fd = STDIN_FILENO;
    epoll_ctl(poll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(poll, events, 16, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) {
                unlink(argv[1]);
                return 0;
            } else if (fd == door) {
                int one = accept4(door, NULL, NULL, SOCK_CLOEXEC);
                if (one < 0)
                    continue;
                if (one >= CLIENTS) {
                    close(one);
                    continue;
                }
                clients[one].length = 0;
                event.data.fd = one;
                epoll_ctl(poll, EPOLL_CTL_ADD, one, &event);
            } else if (!serve(fd, &root, &item)) {
                close(fd);
            }
        }
    }
}
