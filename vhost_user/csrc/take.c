/* SPDX-License-Identifier: MPL-2.0 */
#include "take.h"

/* What pop knows of a landing. */
struct approach {
    struct gw_apart apart;
    struct gw_take *take;
};

static uint32_t land(struct gw_apart *apart, const uint8_t *chain, uint32_t got, uint32_t length) {
    struct gw_take *take = ((struct approach *)(void *)apart)->take;
    return gw_land(&take->landing, chain, got, length, take->inbox.accept, take->inbox.mtu);
}

static void run(void *argument) {
    struct gw_take *take = argument;
    struct gw_landing *landing = &take->landing;
    struct approach approach = {{land, landing->ground, 0}, take};
    take->burst.apart = landing->room > 0 ? &approach.apart : NULL;
    landing->frames = landing->segments = landing->bytes = landing->wire = landing->longest = landing->full = 0;
    take->burst.slab = NULL;
    take->burst.patient = vnet_can_wait;
    take->frames = 0;
    take->chains = 0;
    if (take->budget > 0)
        take->chains = gw_vring_pop(take->ring, take->budget, take->max_bytes, take->max_chain, &take->burst);
    landing->room = 0; /* its ground is the caller's again */
    if (take->chains < 0)
        landing->frames = landing->wire = 0; /* they are still in the ring, or it is broken */
    if (landing->frames > 0) {
        take->inbox.frames = landing->frames;
        take->inbox.bytes = landing->wire;
        take->inbox.heard = landing->full ? UINT64_MAX : landing->wire;
    }
    if (take->chains <= 0)
        return;
    uint8_t *bytes = take->burst.slab != NULL ? take->burst.slab : take->burst.small;
    const uint32_t *chain = (const uint32_t *)(const void *)bytes;
    uint64_t index = 8 * (uint64_t)take->chains;
    const uint8_t *payload = bytes + index;
    for (int32_t i = 0; take->steer != NULL && i < take->chains; i++)
        if (chain[2 * i + 1] > VNET_HEADER)
            gw_steer_learn(take->steer, gw_flow(payload + chain[2 * i] + VNET_HEADER, chain[2 * i + 1] - VNET_HEADER),
                           (uint8_t)take->pair);
    take->frames = vnet_take(&take->inbox, bytes, (uint32_t)take->chains, take->burst.bytes - index, (int)take->join);
    if (take->frames == 0)
        take->inbox.records[0].end = 0;
    take->inbox.frames += landing->frames;
    take->inbox.bytes += landing->wire;
    take->inbox.heard = take->inbox.bytes;
}

int32_t gw_take_one(struct gw_take *take) {
    run(take);
    return take->chains;
}

void gw_take(struct gw_pool *pool, struct gw_take *takes, uint32_t count, int wake) {
    struct gw_job table[STEER_PAIRS];
    if (count > STEER_PAIRS)
        return;
    for (uint32_t i = 0; i < count; i++)
        table[i] = (struct gw_job){run, &takes[i]};
    gw_pool_run(pool, table, count, wake);
}
