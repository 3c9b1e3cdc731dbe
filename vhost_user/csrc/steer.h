/* SPDX-License-Identifier: MPL-2.0 */
/* Which queue pair a flow belongs to: automatic receive steering (virtio 1.3 section 5.1.6.5.5). */
#ifndef GUESTWIRE_STEER_H
#define GUESTWIRE_STEER_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
enum {
    STEER_FLOWS = 1024,   /* entries; flows that share one share a pair */
    STEER_PAIRS = 128,    /* queue pairs a device can have */
    STEER_HEAD = 64,      /* bytes of a frame that are looked at: a tag, IPv6 and ports */
    STEER_NOWHERE = 0xff,
};

/* One device's. `pair` remembers through which pair the guest last sent a flow; `slot` is where that pair stands among
 * those frames can be sent to now. Both are bytes, written and read by several threads; any mixture is a good answer. */
struct gw_steer {
    uint8_t pair[STEER_FLOWS];
    uint8_t slot[STEER_PAIRS];
    uint32_t slots;
};

void gw_steer_clear(struct gw_steer *steer);

/* For each of n heads of STEER_HEAD bytes: the slot its frame goes to. */
void gw_steer_burst(const struct gw_steer *steer, const uint8_t *heads, uint32_t n, uint8_t *slots);
/* cdef end */

/* The same number for both directions of a flow. */
uint32_t gw_flow(const uint8_t *frame, size_t length);

/* The guest sent a frame of this flow through `pair`. */
static inline void gw_steer_learn(struct gw_steer *steer, uint32_t flow, uint8_t pair) {
    volatile uint8_t *entry = &steer->pair[flow % STEER_FLOWS];
    if (*entry != pair) /* so that flows at rest share the cache line */
        *entry = pair;
}

/* Where a frame of this flow goes: to the pair it came from, or spread by its number. There is at least one slot. */
static inline uint32_t gw_steer_pick(const struct gw_steer *steer, uint32_t flow) {
    uint8_t pair = *(const volatile uint8_t *)&steer->pair[flow % STEER_FLOWS];
    if (pair < STEER_PAIRS) {
        uint8_t slot = *(const volatile uint8_t *)&steer->slot[pair];
        if (slot < steer->slots)
            return slot;
    }
    return (uint32_t)((uint64_t)flow * steer->slots >> 32);
}

#endif
