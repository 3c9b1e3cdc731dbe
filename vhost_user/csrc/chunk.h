/* SPDX-License-Identifier: MPL-2.0 */
/* Grouping of small neighbours in a slab: a view of 40 bytes keeps its whole slab alive, so what is small is copied
 * out, and neighbours are copied together because one operation in Python costs as much as a few KiB of memcpy. */
#ifndef GUESTWIRE_CHUNK_H
#define GUESTWIRE_CHUNK_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
enum {
    CHUNK_SMALL = 2048, /* what is below this is copied out */
    CHUNK_SIZE = 8192,  /* at most so many bytes share one copy, and are kept by whoever keeps one of them */
};

/* A run of small neighbours: offsets into the slab. */
struct chunk {
    uint32_t begin, end;
};
/* cdef end */

/* The chunks of one burst as they form. */
struct chunker {
    struct chunk *chunks;
    size_t count;
    int open;  /* the last chunk may still grow */
    int share; /* the slab is no larger than a chunk: nothing needs to be copied out of it */
};

/* Places slab bytes [*begin, *end), which lie behind those placed before. Returns 0 when they stay where they are, or
 * the number (from 1) of the chunk they are copied with; *begin and *end are then offsets into it. */
static inline uint32_t chunk_place(struct chunker *c, uint32_t *begin, uint32_t *end) {
    if (*begin == *end) { /* nothing: a view of it must not keep anything */
        *begin = *end = 0;
        return 0;
    }
    if (c->share || *end - *begin >= CHUNK_SMALL) {
        c->open = 0;
        return 0;
    }
    if (!c->open || *begin < c->chunks[c->count - 1].end || *end - c->chunks[c->count - 1].begin > CHUNK_SIZE)
        c->chunks[c->count++] = (struct chunk){.begin = *begin, .end = *end};
    struct chunk *last = &c->chunks[c->count - 1];
    c->open = 1;
    last->end = *end;
    *begin -= last->begin;
    *end -= last->begin;
    return (uint32_t)c->count;
}

#endif
