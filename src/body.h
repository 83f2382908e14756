/* Bytes on their way: a buffer for what comes in, a source for what goes out. No Lua in here.
 * SPDX-License-Identifier: MIT */
#ifndef LXD_BODY_H
#define LXD_BODY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

/* Bytes that come in at one end and are taken from the other. All zero: empty. */
typedef struct lxd_buffer {
    char *bytes;   /* owned */
    size_t from;   /* first byte that wasn't taken */
    size_t used;   /* bytes from there on */
    size_t size;   /* of the allocation */
} lxd_buffer;

bool lxd_buffer_reserve(lxd_buffer *b, size_t more);
bool lxd_buffer_add(lxd_buffer *b, const char *bytes, size_t n);
void lxd_buffer_take(lxd_buffer *b, size_t n);
void lxd_buffer_free(lxd_buffer *b);

/* One part of a body: bytes, or a file. */
typedef struct lxd_piece {
    char *bytes;   /* owned; NULL for a file */
    char *path;    /* owned; NULL for bytes */
    int fd;        /* of the file; -1 while it isn't open */
    int64_t size;  /* of either */
} lxd_piece;

/* The body of a request. All zero: an empty one. */
typedef struct lxd_source {
    lxd_piece *pieces;   /* owned; unused when `live` */
    size_t count;        /* of pieces */
    size_t at;           /* piece under way */
    int64_t offset;      /* in that piece */
    bool live;           /* the bytes come by lxd_source_write */
    bool finished;       /* live: no more will come */
    bool wants_room;     /* live: a writer was turned away */
    lxd_buffer ring;     /* live: what was written and not yet read */
    int64_t length;      /* of the whole; -1: unknown */
    int64_t written;     /* live: bytes that were written so far */
    int64_t given;       /* bytes that were read so far */
    EVP_MD_CTX *digest;  /* over the files' bytes, where that was asked for */
} lxd_source;

#define LXD_ROOM ((size_t)256 * 1024) /* bytes that wait in memory, in either direction */

enum { LXD_SOURCE_WAIT = -1, LXD_SOURCE_FAILED = -2 };

bool lxd_source_pieces(lxd_source *s, size_t count);
bool lxd_source_hash_files(lxd_source *s);
const lxd_piece *lxd_source_open(lxd_source *s, int *error);
void lxd_source_shut(lxd_source *s);
long lxd_source_read(lxd_source *s, char *out, size_t max, int *error);
long lxd_source_write(lxd_source *s, const char *bytes, size_t n);
int lxd_source_hash(const lxd_source *s, unsigned char hash[32]);
void lxd_source_drop(lxd_source *s);
void lxd_source_free(lxd_source *s);

#endif
