/* SPDX-License-Identifier: MPL-2.0 */
/* The driver's side of a round trip, timed: one message to the device, and what comes back. */
#ifndef GUESTWIRE_VTRIP_H
#define GUESTWIRE_VTRIP_H

#include "vdriver.h"

/* cdef begin */
struct vdrv_trip {
    struct vdrv_ring *tx, *rx;
    struct vdrv_pool *tx_pool, *rx_pool;
    int tx_kick, rx_kick; /* eventfds */
    struct vdrv_message message;
    int merge;            /* as vdrv_receive */
    uint64_t patience;    /* ns to look for an answer; one look at least */
    uint8_t *out;
    size_t size;
    /* out */
    struct vdrv_received answer;
    uint64_t began, ended; /* CLOCK_MONOTONIC, ns: before the message is copied in, and after its answer was copied out */
    uint64_t kicks;        /* given, counted on */
};

enum vdrv_outcome {
    VDRV_NOTHING, /* no answer in time, or it is longer than `size`, or a ring is at fault */
    VDRV_ANSWER,
    VDRV_NO_ROOM, /* no buffer or descriptor is free for the message */
};

/* Sends the message (send = 0: none, look on for another answer to the last one), kicks if the device wants to know, and
 * looks at the receive ring, without sleeping, until something is there. One message is copied out, and its buffers go
 * back to the device. */
int vdrv_trip(struct vdrv_trip *trip, int send);
/* cdef end */

#endif
