/* SPDX-License-Identifier: MPL-2.0 */
/* What the files about rings share: a ring's private state and how guest memory is read and written. */
#ifndef GW_RING_H
#define GW_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "vring.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio structures are little-endian and read here without swapping"
#endif

/* virtio feature bits (virtio 1.3 section 6; VHOST_F_LOG_ALL from vhost). */
#define F_LOG_ALL 26
#define F_INDIRECT_DESC 28
#define F_EVENT_IDX 29

/* Contiguous guest memory: what is left of a descriptor after translation. */
struct gw_piece {
    uint8_t *host;
    uint64_t gpa;
    uint32_t length;
};

/* Offsets in the avail and used rings; both begin with le16 flags and idx. */
enum { RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4 };
enum { AVAIL_ENTRY = 2, USED_ENTRY = 8, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

struct gw_chain {
    uint64_t bytes;      /* all pieces together */
    uint32_t first, end; /* ring->pieces[first..end) */
    uint32_t head;       /* its id in the used ring */
    bool unrecorded;     /* returned without a record: dropped, or gone apart */
};

struct gw_vring {
    const struct gw_memory *memory; /* NULL: no place */
    uint8_t *desc, *avail, *used;
    uint32_t num;
    uint32_t hint;                /* the region looked up last */
    uint16_t last_avail;          /* next index to take */
    uint16_t used_idx;            /* next index to publish; read from guest memory only at start (rule 10) */
    uint32_t owed;                /* looks in vain until a call that was put off is due; 0: none was */
    uint32_t owed_for;            /* chains published since it was put off, with those it was put off for */
    bool event_idx, indirect;     /* negotiated */
    bool log_all, log_used;       /* mark payload; mark the used ring at log_gpa */
    bool fresh;                   /* started, but nothing read from guest memory yet */
    bool guarded;                 /* memory or log may be truncated: run bursts under a SIGBUS guard */
    int kick_fd, call_fd;         /* -1: none */
    const struct gw_log *log;     /* or NULL */
    uint64_t log_gpa;
    uint64_t error_value;
    uint64_t partial;             /* payload of the packet behind those the last push accepted that it did place */
    uint8_t *slab;                /* being filled: freed if a guard ends the burst */
    struct gw_counters counters;
    uint32_t max_num;
    uint32_t piece_count, piece_room; /* scratch in use, of how much */
    uint32_t work;                    /* descriptors looked at in this burst */
    struct gw_piece *pieces;
    struct gw_chain *chains; /* max_num */
};

/* Descriptors one burst looks at before it yields (rule 14): 256 chains of 16 KiB in 64-byte crumbs. Also what one frame
 * may need before it counts as unplaceable. */
#define GW_WORK_MAX 65536

/* Pieces one chain may have (rule 8): its descriptors, as many splits at region borders, and then some. */
static inline uint32_t gw_chain_pieces_max(const struct gw_vring *ring) { return 2 * ring->num + GW_REGIONS_MAX; }

static inline uint16_t gw_load16(uint8_t *at, memory_order order) {
    return atomic_load_explicit((_Atomic uint16_t *)(void *)at, order);
}

static inline void gw_store16(uint8_t *at, uint16_t value, memory_order order) {
    atomic_store_explicit((_Atomic uint16_t *)(void *)at, value, order);
}

static inline int gw_fail(struct gw_vring *ring, int result, uint64_t value) {
    ring->error_value = value;
    return result;
}

static inline uint64_t gw_least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Rule 1: how many chains are available; more than the ring holds is a lie. Read once per burst. */
static inline int gw_available(struct gw_vring *ring) {
    uint16_t index = gw_load16(ring->avail + RING_IDX, memory_order_acquire);
    uint16_t count = (uint16_t)(index - ring->last_avail);
    if (count > ring->num)
        return gw_fail(ring, GW_BROKEN_AVAIL_INDEX, index);
    return count;
}

/* Rule 2: the head behind `position` more taken chains, read once; chain.c bounds it. */
static inline uint16_t gw_head_at(struct gw_vring *ring, uint32_t position) {
    uint32_t slot = (ring->last_avail + position) & (ring->num - 1);
    return gw_load16(ring->avail + RING_ENTRIES + (size_t)AVAIL_ENTRY * slot, memory_order_relaxed);
}

static inline void gw_scratch_reset(struct gw_vring *ring) { ring->piece_count = ring->work = 0; }

static inline bool gw_scratch_left(const struct gw_vring *ring) {
    return ring->piece_room - ring->piece_count >= gw_chain_pieces_max(ring) && ring->work < GW_WORK_MAX;
}

static inline void gw_put_used(struct gw_vring *ring, uint32_t position, uint32_t head, uint32_t length) {
    uint32_t slot = (ring->used_idx + position) & (ring->num - 1);
    _Atomic uint32_t *entry = (_Atomic uint32_t *)(void *)(ring->used + RING_ENTRIES + (size_t)USED_ENTRY * slot);
    atomic_store_explicit(entry, head, memory_order_relaxed);
    atomic_store_explicit(entry + 1, length, memory_order_relaxed);
}

/* Run one burst under the SIGBUS guard, if it needs one; every function that touches guest memory goes through here. */
int gw_run(struct gw_vring *ring, int (*burst)(struct gw_vring *, void *), void *arguments);

/* Publish `count` entries written by gw_put_used, take as many chains, and call the guest if it wants that. */
void gw_publish(struct gw_vring *ring, uint32_t count);

/* The same for chains nobody waits for: the call may wait for the next one, or until GW_OWED_LOOKS have elapsed. */
void gw_publish_patiently(struct gw_vring *ring, uint32_t count);

/* Within a burst: `looks` looks found nothing to do, so what is owed comes closer, or is made. */
void gw_settle(struct gw_vring *ring, uint32_t looks);

/* Within a burst: ask for a kick when more than `beyond` chains are available; 1 if they are, 0, or a gw_result. */
int gw_ask_for_kicks(struct gw_vring *ring, int beyond);

/* Walk and check the chain that begins at head; its pieces are appended to ring->pieces, of which the caller left
 * gw_chain_pieces_max. `writable` is the direction every buffer must have. 0 or a gw_result. */
int gw_chain_walk(struct gw_vring *ring, uint16_t head, bool writable, struct gw_chain *chain);

#endif
