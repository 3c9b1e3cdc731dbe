/* SPDX-License-Identifier: MPL-2.0 */
/* Bursts of frames from the transmit rings of one network card: out of the ring and judged in one call. */
#ifndef GUESTWIRE_TAKE_H
#define GUESTWIRE_TAKE_H

#include "landing.h"
#include "pool.h"
#include "steer.h"
#include "vnet.h"
#include "vring.h"

/* cdef begin */
/* One ring's part. */
struct gw_take {
    struct gw_vring *ring;
    struct gw_steer *steer; /* to learn from what comes through `pair`; or NULL */
    uint32_t pair;
    uint32_t budget; /* 0: not now */
    uint32_t join;   /* as vnet_take */
    uint64_t max_bytes, max_chain;
    struct gw_burst burst;
    struct vnet_inbox inbox; /* its drops are this ring's alone */
    struct gw_landing landing; /* for this burst: room is 0 afterwards */
    /* out */
    int32_t chains;  /* of the burst, or a gw_result */
    uint32_t frames; /* records of the inbox; the first one ends at 0 if there are none */
};

/* gw_vring_pop and vnet_take for a ring whose gate is held; what is in `chains` then. */
int32_t gw_take_one(struct gw_take *take);

/* The same for each of `count` rings, whose gates are held, with everybody in the pool (or NULL). */
void gw_take(struct gw_pool *pool, struct gw_take *takes, uint32_t count, int wake);
/* cdef end */

#endif
