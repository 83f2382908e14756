/* SPDX-License-Identifier: MIT */
/* What a GET over a unix socket costs with libcurl and nothing else: one easy handle, one kept
   connection, the body gathered in memory. Says microseconds of CPU and of wall time per GET. */

#define _GNU_SOURCE
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

struct body {
    char *bytes;
    size_t length, room;
};

static size_t take(char *bytes, size_t size, size_t count, void *into) {
    struct body *body = into;
    size_t more = size * count;
    if (body->length + more > body->room) {
        size_t room = (body->length + more) * 2;
        char *moved = realloc(body->bytes, room);
        if (moved == NULL)
            return 0;
        body->bytes = moved;
        body->room = room;
    }
    memcpy(body->bytes + body->length, bytes, more);
    body->length += more;
    return more;
}

static double wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void get(CURL *easy, struct body *body) {
    body->length = 0;
    CURLcode code = curl_easy_perform(easy);
    if (code != CURLE_OK) {
        fprintf(stderr, "bare: %s\n", curl_easy_strerror(code));
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: bare SOCKET URL COUNT\n");
        return 2;
    }
    long count = strtol(argv[3], NULL, 10);
    struct body body = {NULL, 0, 0};
    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURL *easy = curl_easy_init();
    curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, argv[1]);
    curl_easy_setopt(easy, CURLOPT_URL, argv[2]);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &body);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    for (long i = 0; i < count / 10 + 1; i++)
        get(easy, &body);
    double cpu0 = cpu(), wall0 = wall();
    for (long i = 0; i < count; i++)
        get(easy, &body);
    double cpu1 = cpu(), wall1 = wall();
    printf("{\"cpu\": %.3f, \"wall\": %.3f, \"bytes\": %zu}\n", (cpu1 - cpu0) / (double)count,
           (wall1 - wall0) / (double)count, body.length);
    curl_easy_cleanup(easy);
    free(body.bytes);
    return 0;
}
