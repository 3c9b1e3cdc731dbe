/* SPDX-License-Identifier: MPL-2.0 */
/* Guest to device: chains, copied once and returned, or returned without a look.
 *
 * Popping is two passes: the first finds out how much there is, then a slab of exactly that size is allocated, the second
 * copies. The slab goes to Python, which frees it with its last view; nothing is cleared, everything handed out is
 * overwritten. (What is small goes to a buffer of the caller's, who copies it out: cheaper than a slab's life.) Where
 * somebody wants the payload of the first chains elsewhere, it goes there at once, in the first pass.
 */
#include "bytes.h"
#include "ring.h"

#include <stdlib.h>

/* No burst is larger than this, whatever is asked: offsets in it are 32 bits wide. */
#define BURST_BYTES_MAX (1u << 30)

struct pop {
    uint32_t budget;
    uint64_t max_bytes, max_chain;
    struct gw_burst *burst;
};

void gw_slab_free(void *slab) { free(slab); }

static void copy_chains(struct gw_vring *ring, uint8_t *slab, uint32_t taken, uint32_t records) {
    uint32_t *record = (uint32_t *)(void *)slab;
    uint8_t *payload = slab + 8 * (size_t)records;
    uint32_t offset = 0;
    for (uint32_t i = 0; i < taken; i++) {
        const struct gw_chain *chain = &ring->chains[i];
        if (chain->unrecorded)
            continue;
        *record++ = offset;
        *record++ = (uint32_t)chain->bytes;
        for (uint32_t p = chain->first; p < chain->end; p++) {
            gw_copy(payload + offset, ring->pieces[p].host, ring->pieces[p].length);
            offset += ring->pieces[p].length;
        }
    }
}

/* Whether nobody waits for any of these to come back. */
static bool all_patient(const struct gw_burst *burst, const uint8_t *copies, uint32_t records) {
    const uint32_t *record = (const uint32_t *)(const void *)copies;
    const uint8_t *payload = copies + 8 * (size_t)records;
    for (uint32_t i = 0; i < records; i++)
        if (!burst->patient(payload + record[2 * i], record[2 * i + 1]))
            return false;
    return true;
}

/* The first bytes of a chain, up to `most`; how many. */
static uint32_t copy_head(const struct gw_vring *ring, const struct gw_chain *chain, uint8_t *to, uint32_t most) {
    uint32_t got = 0;
    for (uint32_t p = chain->first; p < chain->end && got < most; p++) {
        uint32_t part = (uint32_t)gw_least(ring->pieces[p].length, most - got);
        gw_copy(to + got, ring->pieces[p].host, part);
        got += part;
    }
    return got;
}

/* All but the first `skip` bytes of a chain; returns what is behind them. */
static uint8_t *copy_rest(const struct gw_vring *ring, const struct gw_chain *chain, uint32_t skip, uint8_t *to) {
    for (uint32_t p = chain->first; p < chain->end; p++) {
        const struct gw_piece *piece = &ring->pieces[p];
        uint32_t before = (uint32_t)gw_least(piece->length, skip);
        gw_copy(to, piece->host + before, piece->length - before);
        to += piece->length - before;
        skip -= before;
    }
    return to;
}

/* A chain in front of all that have records: 1 if it went apart, 0 if neither it nor what comes behind it is to, -1 if
 * both stay in the ring. */
static int go_apart(struct gw_vring *ring, struct gw_apart *apart, struct gw_chain *chain) {
    uint8_t head[GW_APART_HEAD];
    uint32_t got = copy_head(ring, chain, head, sizeof head);
    uint32_t header = apart->header(apart, head, got, (uint32_t)chain->bytes);
    if (header == 0)
        return 0;
    if (header == GW_APART_LEAVE)
        return -1;
    apart->at = copy_rest(ring, chain, header, apart->at);
    apart->chains++;
    chain->unrecorded = true;
    ring->piece_count = chain->first;
    return 1;
}

static int pop(struct gw_vring *ring, void *arguments) {
    const struct pop *asked = arguments;
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    if (waiting == 0)
        gw_settle(ring, 1);
    uint32_t limit = (uint32_t)gw_least((uint64_t)waiting, asked->budget);
    uint32_t taken = 0, records = 0, dropped = 0;
    uint64_t bytes = 0, gone = 0; /* to the slab; apart */
    struct gw_apart *apart = asked->burst->apart;
    gw_scratch_reset(ring);
    for (; taken < limit && gw_scratch_left(ring); taken++) {
        struct gw_chain *chain = &ring->chains[taken];
        int result = gw_chain_walk(ring, gw_head_at(ring, taken), false, chain);
        if (result < 0 && taken == 0)
            return result;
        if (result < 0)
            break; /* those before are good; the next burst begins with this one */
        if (chain->bytes > asked->max_chain) {
            chain->unrecorded = true;
            dropped++;
            ring->piece_count = chain->first;
            continue;
        }
        if ((records > 0 || gone > 0) && bytes + gone + chain->bytes > asked->max_bytes)
            break;
        if (apart != NULL) {
            int went = go_apart(ring, apart, chain);
            if (went < 0)
                break;
            if (went > 0) {
                gone += chain->bytes;
                continue;
            }
            apart = NULL;
        }
        bytes += chain->bytes;
        records++;
    }
    uint64_t size = 8 * (uint64_t)records + bytes;
    if (size > asked->burst->small_size) {
        ring->slab = malloc(size);
        if (ring->slab == NULL) {
            ring->counters.no_memory++;
            return GW_NO_MEMORY;
        }
    }
    uint8_t *copies = ring->slab != NULL ? ring->slab : asked->burst->small;
    if (records > 0)
        copy_chains(ring, copies, taken, records);
    for (uint32_t i = 0; i < taken; i++)
        gw_put_used(ring, i, ring->chains[i].head, 0);
    if (records + (gone > 0) > 0 && asked->burst->patient && all_patient(asked->burst, copies, records))
        gw_publish_patiently(ring, taken);
    else
        gw_publish(ring, taken);
    ring->counters.dropped_long += dropped;
    ring->counters.bytes += bytes + gone;
    asked->burst->slab = ring->slab;
    asked->burst->bytes = size;
    ring->slab = NULL;
    return (int)records;
}

int gw_vring_pop(struct gw_vring *ring, uint32_t budget, uint64_t max_bytes, uint64_t max_chain,
                 struct gw_burst *burst) {
    struct pop asked = {budget, gw_least(max_bytes, BURST_BYTES_MAX), gw_least(max_chain, BURST_BYTES_MAX), burst};
    burst->slab = NULL;
    burst->bytes = 0;
    return gw_run(ring, pop, &asked);
}

static int discard(struct gw_vring *ring, void *arguments) {
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    uint32_t count = (uint32_t)gw_least((uint64_t)waiting, *(uint32_t *)arguments);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t head = gw_head_at(ring, i);
        if (head >= ring->num)
            return gw_fail(ring, GW_BROKEN_HEAD, head);
        gw_put_used(ring, i, head, 0);
    }
    gw_publish(ring, count);
    ring->counters.discarded += count;
    return (int)count;
}

int gw_vring_discard(struct gw_vring *ring, uint32_t budget) { return gw_run(ring, discard, &budget); }
