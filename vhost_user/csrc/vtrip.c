/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * What a bench of round trips is to measure is the device's side, so the driver's must be as quick as a guest's kernel at
 * least: everything between the message and its answer is one call. It is a real trip all the same: a chain is made
 * available, published and kicked by the rules of vdriver.c, the answer comes out of a buffer the device filled, and that
 * buffer goes back. */
#define _GNU_SOURCE
#include "vtrip.h"

#include <time.h>

#include "relax.h"

/* Looks between two readings of the clock, which take as long as one of them. */
enum { LOOKS = 16 };

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void publish(struct vdrv_trip *trip, struct vdrv_ring *ring, int kick) {
    trip->kicks += (uint64_t)vdrv_show(ring, kick);
}

int vdrv_trip(struct vdrv_trip *trip, int send) {
    if (send) {
        trip->began = now();
        if (vdrv_send(trip->tx, trip->tx_pool, &trip->message, 1) != 1)
            return VDRV_NO_ROOM;
        publish(trip, trip->tx, trip->tx_kick);
    }
    uint32_t looks = 0;
    for (uint64_t due = now() + trip->patience; vdrv_pending(trip->rx) == 0; gw_relax())
        if (trip->rx->fault || (looks++ % LOOKS == 0 && now() >= due))
            return VDRV_NOTHING;
    if (vdrv_receive(trip->rx, trip->rx_pool, trip->out, trip->size, &trip->answer, 1, trip->merge) != 1)
        return VDRV_NOTHING;
    trip->ended = now();
    if (vdrv_post(trip->rx, trip->rx_pool) > 0)
        publish(trip, trip->rx, trip->rx_kick);
    return VDRV_ANSWER;
}
