/* Bytes on their way: what comes in, what goes out. No Lua and no libcurl in here.
 * SPDX-License-Identifier: MIT */
#include "body.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

/* Makes room for `more` bytes behind what is there. False: no memory, nothing changed. */
bool lxd_buffer_reserve(lxd_buffer *b, size_t more)
{
    if (more > SIZE_MAX / 4 - b->used) return false;
    size_t need = b->used + more;
    if (b->from + need <= b->size) return true;
    if (b->from > 0) { /* what was taken makes the room first */
        memmove(b->bytes, b->bytes + b->from, b->used);
        b->from = 0;
        if (need <= b->size) return true;
    }
    size_t size = b->size < 512 ? 512 : b->size;
    while (size < need) size += size / 2 + 1;
    char *bytes = LXD_REALLOC(b->bytes, size);
    if (!bytes) return false;
    b->bytes = bytes;
    b->size = size;
    return true;
}

/* Appends bytes. False: no memory, nothing changed. */
bool lxd_buffer_add(lxd_buffer *b, const char *bytes, size_t n)
{
    if (!lxd_buffer_reserve(b, n)) return false;
    if (n > 0) memcpy(b->bytes + b->from + b->used, bytes, n);
    b->used += n;
    return true;
}

/* Forgets the first n bytes, or all when there are fewer. */
void lxd_buffer_take(lxd_buffer *b, size_t n)
{
    if (n >= b->used) {
        b->from = b->used = 0;
    } else {
        b->from += n;
        b->used -= n;
    }
}

void lxd_buffer_free(lxd_buffer *b)
{
    LXD_FREE(b->bytes);
    memset(b, 0, sizeof *b);
}

/* Makes `count` empty pieces for the caller to fill. False: no memory. */
bool lxd_source_pieces(lxd_source *s, size_t count)
{
    if (count == 0) return true;
    s->pieces = LXD_CALLOC(count, sizeof *s->pieces);
    if (!s->pieces) return false;
    s->count = count;
    for (size_t i = 0; i < count; i++) s->pieces[i].fd = -1; /* 0 would be somebody's */
    return true;
}

/* Has a SHA-256 kept of the files' bytes. False: no memory. */
bool lxd_source_hash_files(lxd_source *s)
{
    s->digest = EVP_MD_CTX_new();
    return s->digest && EVP_DigestInit_ex(s->digest, EVP_sha256(), NULL) == 1;
}

/* Opens the files that aren't open and adds up the length. Gives the piece that can't be read, with its errno; an
 * errno of 0 says that it isn't a plain file (whose length nobody knows beforehand). */
const lxd_piece *lxd_source_open(lxd_source *s, int *error)
{
    if (s->live) return NULL;
    int64_t length = 0;
    for (size_t i = 0; i < s->count; i++) {
        lxd_piece *p = &s->pieces[i];
        if (p->path && p->fd < 0) {
            struct stat st;
            /* Without O_NONBLOCK a FIFO would keep us here until somebody writes to it. */
            p->fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
            *error = errno;
            if (p->fd < 0) return p;
            if (fstat(p->fd, &st) != 0) {
                *error = errno;
                return p;
            }
            *error = S_ISDIR(st.st_mode) ? EISDIR : 0;
            if (!S_ISREG(st.st_mode)) return p;
            p->size = st.st_size;
        }
        *error = EFBIG;
        if (p->size > INT64_MAX - length) return p;
        length += p->size;
    }
    s->length = length;
    return NULL;
}

/* Closes the files, of which nothing was read, until they are opened again. */
void lxd_source_shut(lxd_source *s)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->pieces[i].fd >= 0) close(s->pieces[i].fd);
        s->pieces[i].fd = -1;
    }
}

/* Reads from a file; LXD_SOURCE_FAILED with an errno, 0 where the file became shorter. */
static long read_file(lxd_source *s, lxd_piece *p, char *out, size_t max, int *error)
{
    ssize_t n;
    do n = read(p->fd, out, max);
    while (n < 0 && errno == EINTR);
    *error = n < 0 ? errno : 0;
    if (n <= 0) return LXD_SOURCE_FAILED;
    if (s->digest && EVP_DigestUpdate(s->digest, out, (size_t)n) != 1) {
        *error = ENOMEM;
        return LXD_SOURCE_FAILED;
    }
    return (long)n;
}

/* Gives the next bytes: how many, 0 at the end, LXD_SOURCE_WAIT when none were written yet,
 * LXD_SOURCE_FAILED when the piece `at` can't be read on (for a live body: it ended too early). */
long lxd_source_read(lxd_source *s, char *out, size_t max, int *error)
{
    *error = 0;
    if (s->live) {
        size_t n = s->ring.used < max ? s->ring.used : max;
        if (n == 0 && !s->finished) return LXD_SOURCE_WAIT;
        if (n == 0) return s->length >= 0 && s->given < s->length ? LXD_SOURCE_FAILED : 0;
        memcpy(out, s->ring.bytes + s->ring.from, n);
        lxd_buffer_take(&s->ring, n);
        s->given += (int64_t)n;
        return (long)n;
    }
    while (s->at < s->count) {
        lxd_piece *p = &s->pieces[s->at];
        int64_t left = p->size - s->offset;
        if (left == 0) {
            s->at++;
            s->offset = 0;
            continue;
        }
        size_t want = left < (int64_t)max ? (size_t)left : max;
        long n = (long)want;
        if (p->path) n = read_file(s, p, out, want, error);
        else memcpy(out, p->bytes + s->offset, want);
        if (n < 0) return n;
        s->offset += n;
        s->given += n;
        return n;
    }
    return 0;
}

/* Takes bytes of a live body as far as there is room: how many, -1 for no memory. */
long lxd_source_write(lxd_source *s, const char *bytes, size_t n)
{
    size_t room = s->ring.used < LXD_ROOM ? LXD_ROOM - s->ring.used : 0;
    size_t take = n < room ? n : room;
    s->wants_room = take < n;
    if (!lxd_buffer_add(&s->ring, bytes, take)) return -1;
    s->written += (int64_t)take;
    return (long)take;
}

/* The SHA-256 of the files: 1 and the bytes once they were read whole, 0 before, -1 for no memory. */
int lxd_source_hash(const lxd_source *s, unsigned char hash[32])
{
    if (!s->digest || s->live || s->given < s->length) return 0;
    /* A copy is finished, so that one may ask twice. */
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    bool ok = copy && EVP_MD_CTX_copy_ex(copy, s->digest) == 1 &&
              EVP_DigestFinal_ex(copy, hash, NULL) == 1;
    EVP_MD_CTX_free(copy);
    return ok ? 1 : -1;
}

/* Lets go of files and bytes that won't be sent any more; the counters and the hash stay. */
void lxd_source_drop(lxd_source *s)
{
    lxd_source_shut(s);
    for (size_t i = 0; i < s->count; i++) {
        LXD_FREE(s->pieces[i].bytes);
        LXD_FREE(s->pieces[i].path);
    }
    LXD_FREE(s->pieces);
    s->pieces = NULL;
    s->count = s->at = 0;
    s->offset = 0;
    s->finished = true;
    lxd_buffer_free(&s->ring);
}

void lxd_source_free(lxd_source *s)
{
    lxd_source_drop(s);
    EVP_MD_CTX_free(s->digest);
    s->digest = NULL;
}
