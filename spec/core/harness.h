/* The core's allocators in the harness; every file of the core is compiled with this in front.
 * SPDX-License-Identifier: MIT */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>

void *harness_malloc(size_t n);
void *harness_calloc(size_t n, size_t size);
void *harness_realloc(void *block, size_t n);
void harness_free(void *block);

#define LXD_MALLOC harness_malloc
#define LXD_CALLOC harness_calloc
#define LXD_REALLOC harness_realloc
#define LXD_FREE harness_free

#endif
