/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 * -------------------
 * A burst reads avail.idx once (acquire), walks and checks the chains behind it (chain.c), copies their payload (pop.c,
 * push.c), writes used entries in the order the chains were made available, and publishes them with one store of used.idx
 * (release; notify.c). So a chain is only ever taken and returned within one call; in between, the ring's whole state is
 * last_avail and used_idx, private copies of what guest memory should say and is never asked again.
 *
 * Here is a ring's life: made, placed in guest memory, started, stopped; and the guard its bursts run under.
 *
 * Rings of guests that break the rules stop: the call answers which rule and the offending number, Python reports it.
 */
#define _GNU_SOURCE
#include "ring.h"
#include "sigbus.h"

#include <stdlib.h>

/* -- making ---------------------------------------------------------------------------------------------------------- */

struct gw_vring *gw_vring_new(uint32_t max_num) {
    struct gw_vring *ring = calloc(1, sizeof *ring);
    if (ring == NULL)
        return NULL;
    ring->max_num = max_num;
    ring->num = max_num;
    ring->kick_fd = ring->call_fd = -1;
    /* Enough for the longest chain behind a burst of ordinary ones. */
    ring->piece_room = gw_chain_pieces_max(ring) + 4096;
    ring->pieces = malloc(ring->piece_room * sizeof *ring->pieces);
    ring->chains = malloc(max_num * sizeof *ring->chains);
    if (ring->pieces == NULL || ring->chains == NULL) {
        gw_vring_free(ring);
        return NULL;
    }
    return ring;
}

void gw_vring_free(struct gw_vring *ring) {
    free(ring->pieces);
    free(ring->chains);
    free(ring);
}

void gw_vring_set_features(struct gw_vring *ring, uint64_t features) {
    ring->log_all = features >> F_LOG_ALL & 1;
    ring->indirect = features >> F_INDIRECT_DESC & 1;
    ring->event_idx = features >> F_EVENT_IDX & 1;
}

static void look_at_seals(struct gw_vring *ring) {
    ring->guarded = (ring->memory != NULL && ring->memory->unsealed) || (ring->log != NULL && ring->log->unsealed);
}

void gw_vring_set_log(struct gw_vring *ring, const struct gw_log *log) {
    ring->log = log;
    look_at_seals(ring);
}

void gw_vring_set_kick(struct gw_vring *ring, int fd) { ring->kick_fd = fd; }
void gw_vring_set_call(struct gw_vring *ring, int fd) { ring->call_fd = fd; }
uint32_t gw_vring_base(const struct gw_vring *ring) { return ring->last_avail; }
uint64_t gw_vring_error_value(const struct gw_vring *ring) { return ring->error_value; }
const struct gw_counters *gw_vring_counters(const struct gw_vring *ring) { return &ring->counters; }

int gw_run(struct gw_vring *ring, int (*burst)(struct gw_vring *, void *), void *arguments) {
    if (ring->memory == NULL)
        return 0;
    if (!ring->guarded)
        return burst(ring, arguments);
    struct gw_guard guard;
    if (sigsetjmp(guard.jump, 0)) {
        gw_guard_leave(&guard);
        free(ring->slab);
        ring->slab = NULL;
        return gw_fail(ring, GW_BROKEN_TRUNCATED, 0);
    }
    if (gw_guard_enter(&guard, ring->memory, ring->log) != 0)
        return gw_fail(ring, GW_BROKEN_GUARD, 0);
    int result = burst(ring, arguments);
    gw_guard_leave(&guard);
    return result;
}

/* -- placing, starting ----------------------------------------------------------------------------------------------- */

/* A backend that comes (back) to a ring in use knows nothing but its base: used.idx continues where the last one got to,
 * avail_event may be stale and would mute the guest for ever, and a call may have been lost with the last one. */
static int begin(struct gw_vring *ring, void *unused) {
    (void)unused;
    ring->used_idx = gw_load16(ring->used + RING_IDX, memory_order_acquire);
    ring->fresh = false;
    int result = gw_ask_for_kicks(ring, 0);
    gw_vring_signal(ring);
    return result < 0 ? result : 0;
}

static int begin_if_ready(struct gw_vring *ring) { return ring->fresh ? gw_run(ring, begin, NULL) : 0; }

int gw_vring_start(struct gw_vring *ring, uint32_t base) {
    ring->last_avail = (uint16_t)base;
    ring->fresh = true;
    return begin_if_ready(ring);
}

int gw_vring_place(struct gw_vring *ring, const struct gw_memory *memory, uint32_t num, uint64_t desc_uva,
                   uint64_t avail_uva, uint64_t used_uva, uint32_t flags, uint64_t log_gpa) {
    uint64_t gpa;
    uint8_t *desc = gw_host_of_uva(memory, desc_uva, 16ull * num, &gpa);
    uint8_t *avail = gw_host_of_uva(memory, avail_uva, RING_ENTRIES + (uint64_t)AVAIL_ENTRY * num + 2, &gpa);
    uint8_t *used = gw_host_of_uva(memory, used_uva, RING_ENTRIES + (uint64_t)USED_ENTRY * num + 2, &gpa);
    if (desc == NULL || avail == NULL || used == NULL)
        return gw_fail(ring, GW_BROKEN_PLACE, desc == NULL ? desc_uva : avail == NULL ? avail_uva : used_uva);
    /* The message's addresses were aligned; a region mapped at an odd offset could still undo that. */
    if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4)
        return gw_fail(ring, GW_BROKEN_ALIGNMENT, desc_uva);
    ring->memory = memory;
    ring->hint = 0;
    ring->num = num;
    ring->desc = desc;
    ring->avail = avail;
    ring->used = used;
    /* Addresses behind a log address that overflows are nobody's: nothing to mark. */
    ring->log_used = (flags & 1) && log_gpa <= UINT64_MAX - (RING_ENTRIES + (uint64_t)USED_ENTRY * num + 2);
    ring->log_gpa = log_gpa;
    look_at_seals(ring);
    return begin_if_ready(ring);
}

void gw_vring_unplace(struct gw_vring *ring) {
    ring->memory = NULL;
    look_at_seals(ring);
}

void gw_vring_stop(struct gw_vring *ring) {
    gw_vring_elapse(ring, GW_OWED_LOOKS);
    gw_vring_unplace(ring);
    ring->fresh = false;
}

/* -- words ----------------------------------------------------------------------------------------------------------- */

const char *gw_vring_strerror(int result) {
    switch (result) {
    case GW_BROKEN_AVAIL_INDEX:
        return "the available index moved by more than the ring's size";
    case GW_BROKEN_HEAD:
        return "an available entry names a descriptor beyond the ring";
    case GW_BROKEN_NEXT:
        return "a descriptor's next is beyond its table";
    case GW_BROKEN_LOOP:
        return "a descriptor chain is longer than the ring: a loop";
    case GW_BROKEN_INDIRECT_REFUSED:
        return "an indirect descriptor was used without having been negotiated";
    case GW_BROKEN_INDIRECT_NEXT:
        return "an indirect descriptor has a next one";
    case GW_BROKEN_INDIRECT_NESTED:
        return "an indirect table contains an indirect descriptor";
    case GW_BROKEN_INDIRECT_LENGTH:
        return "an indirect table's length is not a multiple of 16 up to the ring's size";
    case GW_BROKEN_ORDER:
        return "a device-readable buffer follows a device-writable one";
    case GW_BROKEN_WRITABLE:
        return "a device-writable buffer in a queue to the device";
    case GW_BROKEN_READABLE:
        return "a device-readable buffer in a queue from the device";
    case GW_BROKEN_ADDRESS:
        return "a buffer lies outside guest memory";
    case GW_BROKEN_PIECES:
        return "a chain is in too many pieces";
    case GW_BROKEN_LENGTH:
        return "a chain is longer than 4 GiB";
    case GW_BROKEN_SMALL:
        return "a buffer is too small for the device's header";
    case GW_BROKEN_TRUNCATED:
        return "the file behind guest memory was truncated";
    case GW_BROKEN_GUARD:
        return "unsealed guest memory cannot be guarded: SIGBUS handlers were replaced too often in this process";
    case GW_BROKEN_PLACE:
        return "the ring does not lie inside one memory region";
    case GW_BROKEN_ALIGNMENT:
        return "the ring's memory is misaligned";
    default:
        return "unknown";
    }
}
