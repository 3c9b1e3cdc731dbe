/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 * -------------------
 * A burst reads avail.idx once (acquire), walks and checks the chains behind it (chain.c), copies their payload, writes
 * used entries in the order the chains were made available, and publishes them with one store of used.idx (release). So
 * a chain is only ever taken and returned within one call; in between, the ring's whole state is last_avail and used_idx,
 * private copies of what guest memory should say and is never asked again.
 *
 * Popping is two passes: the first finds out how much there is, then a slab of exactly that size is allocated, the second
 * copies. The slab goes to Python, which frees it with its last view; nothing is cleared, everything handed out is
 * overwritten. (What is small goes to a buffer of the caller's, who copies it out: cheaper than a slab's life.) Pushing is
 * in push.c.
 *
 * Notification (virtio 1.3 sections 2.7.7 and 2.7.10): each side writes an index, fences (seq_cst), and reads the other's,
 * so that at least one sees the other's. After used.idx comes used_event; after avail_event comes avail.idx.
 *
 * Rings of guests that break the rules stop: the call answers which rule and the offending number, Python reports it.
 */
#define _GNU_SOURCE
#include "bytes.h"
#include "ring.h"
#include "relax.h"
#include "sigbus.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* No burst is larger than this, whatever is asked: offsets in it are 32 bits wide. */
#define BURST_BYTES_MAX (1u << 30)

/* -- making, placing ------------------------------------------------------------------------------------------------ */

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

/* -- notification --------------------------------------------------------------------------------------------------- */

void gw_event_signal(int fd) {
    static const uint64_t one = 1;
    /* The descriptor is non-blocking: a full counter (EAGAIN) is still readable, so nothing is lost. */
    ssize_t written = write(fd, &one, sizeof one);
    (void)written;
}

void gw_vring_signal(struct gw_vring *ring) {
    ring->owed = 0;
    if (ring->call_fd < 0)
        return;
    gw_event_signal(ring->call_fd);
    ring->counters.calls++;
}

int gw_vring_drain_kick(struct gw_vring *ring) {
    uint64_t count;
    if (ring->kick_fd < 0 || read(ring->kick_fd, &count, sizeof count) != sizeof count)
        return 0;
    ring->counters.kicks++;
    return 1;
}

static void log_used(const struct gw_vring *ring, uint64_t offset, uint64_t length) {
    if (ring->log_used && ring->log != NULL)
        gw_log_mark(ring->log, ring->log_gpa + offset, length);
}

/* "Kick me when you make entry `index` available." */
static void set_avail_event(struct gw_vring *ring, uint16_t index) {
    uint32_t offset = RING_ENTRIES + USED_ENTRY * ring->num;
    gw_store16(ring->used + offset, index, memory_order_relaxed);
    log_used(ring, offset, 2);
}

static void set_used_flags(struct gw_vring *ring, uint16_t flags) {
    gw_store16(ring->used + RING_FLAGS, flags, memory_order_relaxed);
    log_used(ring, RING_FLAGS, 2);
}

int gw_available(struct gw_vring *ring) {
    uint16_t index = gw_load16(ring->avail + RING_IDX, memory_order_acquire);
    uint16_t count = (uint16_t)(index - ring->last_avail);
    if (count > ring->num)
        return gw_fail(ring, GW_BROKEN_AVAIL_INDEX, index);
    return count;
}

static int available_now(struct gw_vring *ring, void *unused) {
    (void)unused;
    return gw_available(ring);
}

int gw_vring_room(struct gw_vring *ring) { return gw_run(ring, available_now, NULL); }

static int linger(struct gw_vring *ring, void *arguments) {
    for (uint32_t left = *(uint32_t *)arguments; left > 0; left--) {
        int count = gw_available(ring);
        if (count != 0)
            return count < 0 ? count : 1;
        gw_relax();
    }
    return 0;
}

int gw_vring_linger(struct gw_vring *ring, uint32_t looks) { return gw_run(ring, linger, &looks); }

static int suppress(struct gw_vring *ring, void *unused) {
    (void)unused;
    if (ring->event_idx)
        set_avail_event(ring, (uint16_t)(ring->last_avail - 1)); /* the whole index space away */
    else
        set_used_flags(ring, NO_NOTIFY);
    return 0;
}

int gw_vring_suppress(struct gw_vring *ring) { return gw_run(ring, suppress, NULL); }

static int arm(struct gw_vring *ring, void *arguments) {
    int beyond = *(int *)arguments;
    if (ring->event_idx)
        set_avail_event(ring, (uint16_t)(ring->last_avail + beyond));
    else
        set_used_flags(ring, 0);
    atomic_thread_fence(memory_order_seq_cst);
    int count = gw_available(ring);
    return count < 0 ? count : count > beyond;
}

int gw_vring_arm(struct gw_vring *ring, uint32_t beyond) {
    /* First: a kick from here on must wake us. */
    (void)gw_vring_drain_kick(ring);
    gw_vring_elapse(ring, GW_OWED_LOOKS);
    int most = (int)gw_least(beyond, ring->num);
    return gw_run(ring, arm, &most);
}

/* A backend that comes (back) to a ring in use knows nothing but its base: used.idx continues where the last one got to,
 * avail_event may be stale and would mute the guest for ever, and a call may have been lost with the last one. */
static int begin(struct gw_vring *ring, void *arguments) {
    ring->used_idx = gw_load16(ring->used + RING_IDX, memory_order_acquire);
    ring->fresh = false;
    int result = arm(ring, arguments);
    gw_vring_signal(ring);
    return result < 0 ? result : 0;
}

static int begin_if_ready(struct gw_vring *ring) {
    int beyond = 0;
    return ring->fresh ? gw_run(ring, begin, &beyond) : 0;
}

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

/* -- used entries --------------------------------------------------------------------------------------------------- */

/* Whether the guest wants a call for the last `count` chains published, as things stand now. */
static bool wanted(const struct gw_vring *ring, uint32_t count) {
    if (!ring->event_idx)
        return !(gw_load16(ring->avail + RING_FLAGS, memory_order_relaxed) & NO_INTERRUPT);
    uint16_t event = gw_load16(ring->avail + RING_ENTRIES + AVAIL_ENTRY * ring->num, memory_order_relaxed);
    return count > UINT16_MAX || (uint16_t)(ring->used_idx - event - 1) < (uint16_t)count;
}

static void publish(struct gw_vring *ring, uint32_t count) {
    uint16_t old = ring->used_idx;
    uint16_t new = (uint16_t)(old + count);
    gw_store16(ring->used + RING_IDX, new, memory_order_release);
    ring->used_idx = new;
    ring->last_avail = (uint16_t)(ring->last_avail + count);
    ring->counters.bursts++;
    ring->counters.burst_sizes[31 - __builtin_clz(count)]++; /* count <= num <= 32768 */
    ring->counters.chains += count;
    uint32_t slot = old & (ring->num - 1);
    uint32_t straight = (uint32_t)gw_least(count, ring->num - slot);
    log_used(ring, RING_ENTRIES + (uint64_t)USED_ENTRY * slot, (uint64_t)USED_ENTRY * straight);
    log_used(ring, RING_ENTRIES, (uint64_t)USED_ENTRY * (count - straight));
    log_used(ring, RING_IDX, 2);
    atomic_thread_fence(memory_order_seq_cst); /* idx out before the guest's wish is read (2.7.7, 2.7.10) */
    uint32_t owed_for = ring->owed > 0 ? ring->owed_for : 0;
    ring->owed_for = (uint32_t)gw_least((uint64_t)owed_for + count, UINT32_MAX);
}

void gw_publish(struct gw_vring *ring, uint32_t count) {
    if (count == 0)
        return;
    publish(ring, count);
    ring->owed = 0;
    if (wanted(ring, ring->owed_for))
        gw_vring_signal(ring);
    else
        ring->counters.calls_spared++;
}

void gw_publish_patiently(struct gw_vring *ring, uint32_t count) {
    if (count == 0)
        return;
    publish(ring, count);
    if (ring->owed == 0 && wanted(ring, count))
        ring->owed = GW_OWED_LOOKS;
    ring->counters.calls_spared++;
}

/* The guest has had time to find the chains by itself, as it does when an interrupt for another ring comes by the same
 * line. It says so by moving its event on, or by asking for no interrupts while it looks; either way it looks at used.idx
 * once more after asking for them again, so a wish read late loses nothing. */
static int settle(struct gw_vring *ring, void *arguments) {
    uint32_t looks = *(const uint32_t *)arguments;
    if (ring->owed == 0)
        return 0;
    ring->owed -= (uint32_t)gw_least(looks, ring->owed);
    if (ring->owed == 0 && wanted(ring, ring->owed_for))
        gw_vring_signal(ring);
    return 0;
}

void gw_vring_elapse(struct gw_vring *ring, uint32_t looks) {
    if (ring->owed > looks)
        ring->owed -= looks;
    else if (ring->owed > 0)
        (void)gw_run(ring, settle, &looks);
}

/* -- guest to device ------------------------------------------------------------------------------------------------ */

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
    if (waiting == 0) {
        uint32_t looks = 1;
        (void)settle(ring, &looks);
    }
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

/* -- words ---------------------------------------------------------------------------------------------------------- */

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
