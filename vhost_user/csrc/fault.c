/* SPDX-License-Identifier: MPL-2.0 */
/* What a device must never do, on purpose: to see how the driver in the guest takes it.
 *
 * Guest memory is treated as carefully as ever: only what is *told* to the guest is wrong.
 */
#include "ring.h"

struct fault {
    int kind;
    uint32_t count, value;
};

static int commit(struct gw_vring *ring, void *arguments) {
    const struct fault *asked = arguments;
    if (asked->kind == GW_FAULT_ID) {
        uint32_t count = (uint32_t)gw_least(asked->count, ring->num);
        for (uint32_t i = 0; i < count; i++)
            gw_put_used(ring, i, asked->value, 0);
        uint16_t last_avail = ring->last_avail;
        gw_publish(ring, count);
        ring->last_avail = last_avail; /* no chain was taken */
        return (int)count;
    }
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    uint32_t count = (uint32_t)gw_least((uint64_t)waiting, asked->count);
    if (asked->kind == GW_FAULT_LOSE) {
        ring->last_avail = (uint16_t)(ring->last_avail + count);
        return (int)count;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint16_t head = gw_head_at(ring, i);
        if (head >= ring->num)
            return gw_fail(ring, GW_BROKEN_HEAD, head);
        gw_put_used(ring, i, head, asked->value);
    }
    gw_publish(ring, count);
    return (int)count;
}

int gw_vring_fault(struct gw_vring *ring, int kind, uint32_t count, uint32_t value) {
    struct fault asked = {kind, count, value};
    return gw_run(ring, commit, &asked);
}
