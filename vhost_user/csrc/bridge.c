/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 * -------------------
 * A frame is forwarded when everything about it is ordinary: its addresses are in the table of routes, its header is
 * sound, the receiver takes it as it is (but for a checksum, which is finished here), and the receiver's ring has room.
 * Otherwise the call ends before it, with the reason, and the frame is still in its ring: whoever called takes it the
 * long way, which knows all the rules. So this file decides nothing about networks; it must only never differ.
 *
 * Everything is judged on a private copy. A frame below 2 KiB is copied as a whole into a scratch buffer that never
 * leaves the first-level cache, judged there (vnet.c) and copied out; so what a guest changes meanwhile is either seen
 * or not, and sender and receiver may even share memory (ring rules 3, 11 and 12). Of a large frame, whose checksum is the
 * receiver's business, only the headers are copied first; its payload moves once, from guest to guest. Should the sender
 * change that under us, the receiver sees one mixture or another of the sender's bytes, as on any wire.
 *
 * Nothing is visible before the end of the call: chains of both sides are walked and filled behind local counts, then the
 * receivers' used indexes are stored, then the sender's. A receiver whose ring is wrong loses its ring, the sender nothing;
 * the frame stays where it is. Several calls may run at once, for rings of one sender: each owns its source, and a receiving
 * ring is locked while one frame is put into it. A job holds at most one such lock. When flows cross, from each sending
 * ring to each receiving one, threads take the rings from each other for every frame; this is noticed, and told.
 *
 * Memory that may be truncated is guarded for the whole call, on both sides: whoever's page is gone is blamed and left
 * out, and what was done before is still published. */
#define _GNU_SOURCE
#include "bridge.h"

#include <sched.h>
#include <string.h>

#include "ring.h"
#include "sigbus.h"

enum {
    ETHER_HEADER = 14,
    MIN_FRAME = 60,       /* without FCS (IEEE 802.3) */
    MAX_SUPERFRAME = ETHER_HEADER + 65535,
    NUM_BUFFERS = 10,     /* offset in struct virtio_net_hdr */
    NEEDS_CSUM = 1,
    GSO_TCPV4 = 1,
    GSO_TCPV6 = 4,
    GSO_UDP_L4 = 5,
    GSO_ECN = 0x80,
    COPIED_WHOLE = 2048,  /* frames below are */
    CROSSINGS = 8,        /* of a run that are no matter */
    HEADERS = 256,        /* what is copied of others: a tag, IPv4 or IPv6, and TCP, all with all options */
};

/* -- moving bytes --------------------------------------------------------------------------------------------------- */

/* A place in a chain. */
struct cursor {
    const struct gw_piece *piece;
    uint32_t offset;
};

static uint32_t here(struct cursor *cursor) {
    while (cursor->offset == cursor->piece->length) {
        cursor->piece++;
        cursor->offset = 0;
    }
    return cursor->piece->length - cursor->offset;
}

static void fetch(struct cursor *from, uint8_t *to, uint64_t count) {
    while (count > 0) {
        uint32_t some = (uint32_t)gw_least(here(from), count);
        memcpy(to, from->piece->host + from->offset, some);
        from->offset += some;
        to += some;
        count -= some;
    }
}

static void store(struct gw_vring *ring, struct cursor *to, const uint8_t *from, uint64_t count) {
    bool log = ring->log_all && ring->log != NULL;
    while (count > 0) {
        uint32_t some = (uint32_t)gw_least(here(to), count);
        memmove(to->piece->host + to->offset, from, some); /* both may be the same guest's memory */
        if (log)
            gw_log_mark(ring->log, to->piece->gpa + to->offset, some);
        to->offset += some;
        from += some;
        count -= some;
    }
}

/* -- one frame into one ring ---------------------------------------------------------------------------------------- */

/* A frame on its way: its header and beginning in the scratch buffer, the rest still in the source's chain. */
struct frame {
    uint8_t *bytes;    /* virtio_net_hdr and what follows */
    uint64_t private;  /* how many of them are there */
    struct cursor rest;
    uint64_t length;   /* all together, header included */
};

enum { SHORT = -1, NO_FIT = -2 }; /* beside gw_result below GW_BROKEN */

/* As gather in push.c. */
static int gather(struct gw_outlet *outlet, bool merge, uint64_t length) {
    struct gw_vring *ring = outlet->ring;
    uint64_t room = 0;
    uint32_t count = 0;
    gw_scratch_reset(ring);
    do {
        if (count == ring->num || !gw_scratch_left(ring))
            return NO_FIT;
        if (outlet->taken + count >= outlet->waiting) {
            int waiting = gw_available(ring);
            if (waiting < 0)
                return waiting;
            outlet->waiting = (uint32_t)waiting;
            if (outlet->taken + count >= outlet->waiting)
                return SHORT;
        }
        struct gw_chain *chain = &ring->chains[count];
        int result = gw_chain_walk(ring, gw_head_at(ring, outlet->taken + count), true, chain);
        if (result < 0)
            return result;
        if (merge && chain->bytes < VNET_HEADER)
            return gw_fail(ring, GW_BROKEN_SMALL, chain->bytes);
        room += chain->bytes;
        count++;
        if (!merge && room < length)
            return NO_FIT;
    } while (room < length);
    return (int)count;
}

static void fill(struct gw_outlet *outlet, struct frame *frame, uint32_t count) {
    struct gw_vring *ring = outlet->ring;
    uint64_t left = frame->length, private = frame->private;
    const uint8_t *bytes = frame->bytes;
    frame->bytes[NUM_BUFFERS] = (uint8_t)count;
    frame->bytes[NUM_BUFFERS + 1] = (uint8_t)(count >> 8);
    for (uint32_t i = 0; i < count; i++) {
        const struct gw_chain *chain = &ring->chains[i];
        uint64_t part = gw_least(left, chain->bytes), more = part;
        struct cursor to = {&ring->pieces[chain->first], 0};
        uint64_t some = gw_least(more, private);
        store(ring, &to, bytes, some);
        bytes += some;
        private -= some;
        more -= some;
        while (more > 0) {
            some = gw_least(here(&frame->rest), more);
            store(ring, &to, frame->rest.piece->host + frame->rest.offset, some);
            frame->rest.offset += (uint32_t)some;
            more -= some;
        }
        gw_put_used(ring, outlet->taken + i, chain->head, (uint32_t)part);
        left -= part;
    }
}

static void lock(struct gw_bridge *job, struct gw_outlet *outlet) {
    if (job->alone)
        return;
    _Atomic uint32_t *word = (_Atomic uint32_t *)&outlet->lock;
    while (atomic_exchange_explicit(word, 1, memory_order_acquire) != 0)
        for (int look = 0; atomic_load_explicit(word, memory_order_relaxed) != 0; look++)
            if (look % 64 == 63)
                (void)sched_yield();
    job->held = outlet;
    job->crossed += outlet->user != 0 && outlet->user != job->number;
    outlet->user = job->number;
}

static void unlock(struct gw_bridge *job) {
    if (job->held == NULL)
        return;
    _Atomic uint32_t *word = (_Atomic uint32_t *)&job->held->lock;
    job->held = NULL;
    atomic_store_explicit(word, 0, memory_order_release);
}

/* Put the frame into the ring. -1, or the reason to stop before it. */
static int deliver(struct gw_bridge *job, struct gw_port *port, struct gw_outlet *outlet, struct frame *frame) {
    int stop = -1;
    lock(job, outlet);
    int count = outlet->result < 0 ? outlet->result : gather(outlet, port->merge, frame->length);
    if (count == SHORT) {
        outlet->ring->counters.shortages++;
        stop = GW_STOP_ROOM;
    } else if (count == NO_FIT) {
        outlet->ring->counters.dropped_no_fit++;
    } else if (count < 0) {
        outlet->result = count;
        stop = GW_STOP_OUTLET;
    } else {
        fill(outlet, frame, (uint32_t)count);
        outlet->taken += (uint32_t)count;
        outlet->ring->counters.bytes += frame->length;
    }
    unlock(job);
    return stop;
}

/* -- one frame out of the source ------------------------------------------------------------------------------------ */

/* Whether the judge looks at nothing beyond HEADERS bytes of this frame: its checksum is not ours to verify, and no chain
 * of IPv6 extension headers leads away. */
static bool headers_are_enough(const uint8_t *bytes) {
    if (!(bytes[0] & NEEDS_CSUM))
        return false;
    const uint8_t *frame = bytes + VNET_HEADER;
    uint32_t at = 12;
    for (int tags = 0; tags < 2; tags++)
        if ((frame[at] == 0x81 && frame[at + 1] == 0) || (frame[at] == 0x88 && frame[at + 1] == 0xa8))
            at += 4;
    if (frame[at] != 0x86 || frame[at + 1] != 0xdd)
        return true;
    uint8_t next = frame[at + 2 + 6];
    return next == 6 || next == 17;
}

static bool takes(const struct gw_port *port, uint32_t gso_type) {
    if ((gso_type & GSO_ECN) && !(port->gso & VNET_ECN))
        return false;
    switch (gso_type & ~(uint32_t)GSO_ECN) {
    case GSO_TCPV4:
        return port->gso & VNET_TSO4;
    case GSO_TCPV6:
        return port->gso & VNET_TSO6;
    default:
        return port->gso & VNET_USO; /* the only other one that is ever let through */
    }
}

/* The header for a receiver that takes what the record says, and bytes before the payload for superframes. */
static void write_header(uint8_t *bytes, const struct vnet_record *r) {
    uint32_t length = 0;
    if (r->gso_type == GSO_UDP_L4)
        length = r->csum_start + 8u;
    else if (r->gso_type != 0)
        length = r->csum_start + (bytes[VNET_HEADER + r->csum_start + 12] >> 4) * 4u;
    uint16_t words[5] = {(uint16_t)(r->flags | r->gso_type << 8), (uint16_t)length, r->gso_size, r->csum_start,
                         r->csum_offset};
    memcpy(bytes, words, sizeof words);
}

static void drop(struct gw_bridge *job, int reason) {
    atomic_fetch_add_explicit((_Atomic uint64_t *)&job->inbox->drops[reason], 1, memory_order_relaxed);
}

static void hit(struct gw_bridge *job, uint32_t id) {
    if (job->count[id]++ == 0)
        job->hit[job->hits++] = (uint16_t)id;
}

/* Forward or drop the frame in `chain`: -1 when it is done with, or the reason to stop before it. */
static int forward_one(struct gw_bridge *job, const struct gw_chain *chain) {
    uint64_t length = chain->bytes;
    uint8_t *bytes = job->scratch;
    struct frame frame = {bytes, length, {&job->source->pieces[chain->first], 0}, length};
    if (length < VNET_HEADER + ETHER_HEADER) {
        drop(job, length < VNET_HEADER ? VNET_DROP_HEADER : VNET_DROP_SHORT);
        return -1;
    }
    if (length >= COPIED_WHOLE)
        frame.private = HEADERS;
    fetch(&frame.rest, bytes, frame.private);
    const struct gw_route *route = &job->routes->slot[gw_route_find(job->routes, bytes + VNET_HEADER)];
    if (route->port == 0 || route->deadline < job->now)
        return GW_STOP_ROUTE;
    struct gw_port *port = job->ports[route->port - 1];
    if (port->closed || port->count == 0)
        return GW_STOP_UNUSUAL;
    if (frame.private < length && (!port->guest_csum || !headers_are_enough(bytes))) {
        fetch(&frame.rest, bytes + frame.private, length - frame.private);
        frame.private = length;
    }
    struct vnet_record record;
    int reason = vnet_judge(bytes, 0, (uint32_t)length, job->inbox->accept, job->inbox->mtu, &record);
    if (reason >= 0) {
        drop(job, reason);
        return -1;
    }
    uint64_t size = length - VNET_HEADER;
    if (record.gso_type != 0 ? !takes(port, record.gso_type) || size > MAX_SUPERFRAME
                             : size > (uint64_t)port->mtu + ETHER_HEADER)
        return GW_STOP_UNUSUAL;
    struct gw_outlet *outlet = port->outlets;
    if (job->steer != NULL || port->count > 1) {
        uint32_t flow = gw_flow(bytes + VNET_HEADER, size);
        if (job->steer != NULL)
            gw_steer_learn(job->steer, flow, (uint8_t)job->pair);
        if (port->count > 1)
            outlet += gw_steer_pick(port->steer, flow);
    }
    if (!outlet->usable)
        return GW_STOP_UNUSUAL;
    if (!port->guest_csum) {
        if (record.flags & NEEDS_CSUM)
            (void)vnet_finish_checksum(bytes + VNET_HEADER, size, record.csum_start, record.csum_offset);
        record.flags = record.csum_start = record.csum_offset = 0;
    }
    write_header(bytes, &record);
    if (size < MIN_FRAME) {
        memset(bytes + length, 0, MIN_FRAME - size);
        frame.length = frame.private = VNET_HEADER + MIN_FRAME;
    }
    int stop = deliver(job, port, outlet, &frame);
    if (stop < 0) {
        job->frames++;
        job->bytes += length - VNET_HEADER;
        hit(job, route->id);
    }
    return stop;
}

static int move(struct gw_bridge *job) {
    struct gw_vring *source = job->source;
    int waiting = gw_available(source);
    if (waiting < 0) {
        job->result = waiting;
        return GW_STOP_SOURCE;
    }
    uint64_t bytes = 0;
    gw_scratch_reset(source);
    for (; job->taken < (uint32_t)waiting; job->taken++) {
        struct gw_chain chain;
        if (job->taken == job->budget || bytes >= job->max_bytes || !gw_scratch_left(source))
            return GW_STOP_BUDGET;
        source->piece_count = 0;
        int result = gw_chain_walk(source, gw_head_at(source, job->taken), false, &chain);
        if (result < 0) {
            if (job->taken == 0)
                job->result = result; /* as in pop: what came before is good */
            return GW_STOP_SOURCE;
        }
        if (chain.bytes > job->max_chain)
            source->counters.dropped_long++;
        else {
            int stop = forward_one(job, &chain);
            if (stop >= 0)
                return stop;
            bytes += chain.bytes;
            source->counters.bytes += chain.bytes;
        }
        gw_put_used(source, job->taken, chain.head, 0);
        job->unpublished = job->taken + 1;
    }
    return GW_STOP_EMPTY;
}

/* May be called again after a fault: what was blamed is left out. */
static void work(struct gw_bridge *job) {
    if (!job->finishing) {
        job->finishing = 1;
        job->stop = (uint32_t)move(job);
    }
    for (uint32_t i = 0; i < job->outlet_count; i++) {
        struct gw_outlet *outlet = job->outlets[i];
        lock(job, outlet);
        uint32_t taken = outlet->taken;
        outlet->taken = outlet->waiting = 0;
        if (taken > 0)
            gw_publish(outlet->ring, taken);
        unlock(job);
    }
    uint32_t taken = job->unpublished;
    job->unpublished = 0;
    gw_publish(job->source, taken);
}

/* -- faults --------------------------------------------------------------------------------------------------------- */

static struct gw_reach reach_of(const struct gw_vring *ring, const struct gw_reach *next) {
    return (struct gw_reach){ring->memory, ring->log, next};
}

/* The page at this address is gone. */
static void blame(struct gw_bridge *job, uintptr_t at) {
    struct gw_reach source = reach_of(job->source, NULL);
    job->stop = GW_STOP_SOURCE;
    if (gw_within(&source, at)) {
        job->result = gw_fail(job->source, GW_BROKEN_TRUNCATED, 0);
        job->unpublished = 0;
    } else
        for (uint32_t i = 0; i < job->outlet_count; i++) {
            struct gw_outlet *outlet = job->outlets[i];
            struct gw_reach reach = reach_of(outlet->ring, NULL);
            if (outlet->ring->memory == NULL || !gw_within(&reach, at))
                continue;
            outlet->result = gw_fail(outlet->ring, GW_BROKEN_TRUNCATED, 0);
            outlet->taken = 0;
            job->stop = GW_STOP_OUTLET;
        }
    unlock(job);
}

static void run(void *argument) {
    struct gw_bridge *job = argument;
    job->result = 0;
    job->stop = GW_STOP_BUDGET;
    job->taken = job->frames = job->finishing = job->unpublished = 0;
    job->bytes = 0;
    job->held = NULL;
    for (uint32_t i = 0; i < job->hits; i++)
        job->count[job->hit[i]] = 0;
    job->hits = 0;
    if (!job->usable || job->source->memory == NULL)
        return;
    bool guarded = job->source->guarded;
    struct gw_reach reach[1 + BRIDGE_OUTLETS];
    reach[0] = reach_of(job->source, NULL);
    for (uint32_t i = 0; i < job->outlet_count; i++)
        if (job->outlets[i]->ring->memory != NULL && job->outlets[i]->ring->guarded) {
            guarded = true;
            reach[i + 1] = reach_of(job->outlets[i]->ring, reach[0].next);
            reach[0].next = &reach[i + 1];
        }
    if (!guarded) {
        work(job);
        return;
    }
    struct gw_guard guard;
    if (sigsetjmp(guard.jump, 0)) {
        gw_guard_leave(&guard);
        blame(job, guard.at);
    }
    if (gw_guard_enter_all(&guard, reach) != 0) {
        job->result = gw_fail(job->source, GW_BROKEN_GUARD, 0);
        return;
    }
    work(job);
    gw_guard_leave(&guard);
}

int gw_bridge(struct gw_pool *pool, struct gw_bridge *jobs, uint32_t count, int wake, uint32_t budget, int64_t now) {
    struct gw_job table[STEER_PAIRS];
    if (count == 0 || count > STEER_PAIRS || jobs->outlet_count > BRIDGE_OUTLETS)
        return BRIDGE_LEFT;
    for (uint32_t i = 0; i < jobs->outlet_count; i++) {
        struct gw_outlet *outlet = jobs->outlets[i];
        outlet->result = 0;
        outlet->lock = outlet->user = outlet->waiting = outlet->taken = 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        jobs[i].alone = count == 1 || pool == NULL;
        jobs[i].number = i + 1;
        jobs[i].crossed = 0;
        jobs[i].budget = budget;
        jobs[i].now = now;
        table[i] = (struct gw_job){run, &jobs[i]};
    }
    gw_pool_run(pool, table, count, wake);
    int answer = 0;
    for (uint32_t i = 0; i < count; i++) {
        answer |= jobs[i].frames > 0 ? BRIDGE_MOVED : 0;
        answer |= jobs[i].stop > GW_STOP_BUDGET ? BRIDGE_LEFT : 0;
        answer |= jobs[i].result < 0 ? BRIDGE_BROKE : 0;
        /* A ring that another core used is some ten cache lines away: as much as a small frame costs. */
        answer |= jobs[i].crossed > CROSSINGS && jobs[i].crossed > jobs[i].frames / 8 ? BRIDGE_CROSSED : 0;
    }
    for (uint32_t i = 0; i < jobs->outlet_count; i++)
        answer |= jobs->outlets[i]->result < 0 ? BRIDGE_BROKE : 0;
    return answer;
}
