/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 * -------------------
 * Who tells whom (virtio 1.3 sections 2.7.7 and 2.7.10): each side writes an index, fences (seq_cst), and reads the
 * other's wish, so that at least one sees the other. After used.idx comes used_event, which says whether the guest is to be
 * called; after avail_event, which says whether we are to be kicked, comes avail.idx.
 *
 * A call that nobody waits for can be owed: it is made with the next one, or after so many looks in vain.
 */
#define _GNU_SOURCE
#include "relax.h"
#include "ring.h"

#include <unistd.h>

/* -- calls and kicks ------------------------------------------------------------------------------------------------- */

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

int gw_ask_for_kicks(struct gw_vring *ring, int beyond) {
    if (ring->event_idx)
        set_avail_event(ring, (uint16_t)(ring->last_avail + beyond));
    else
        set_used_flags(ring, 0);
    atomic_thread_fence(memory_order_seq_cst);
    int count = gw_available(ring);
    return count < 0 ? count : count > beyond;
}

static int arm(struct gw_vring *ring, void *arguments) { return gw_ask_for_kicks(ring, *(int *)arguments); }

int gw_vring_arm(struct gw_vring *ring, uint32_t beyond) {
    /* First: a kick from here on must wake us. */
    (void)gw_vring_drain_kick(ring);
    gw_vring_elapse(ring, GW_OWED_LOOKS);
    int most = (int)gw_least(beyond, ring->num);
    return gw_run(ring, arm, &most);
}

/* -- used entries ---------------------------------------------------------------------------------------------------- */

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
void gw_settle(struct gw_vring *ring, uint32_t looks) {
    if (ring->owed == 0)
        return;
    ring->owed -= (uint32_t)gw_least(looks, ring->owed);
    if (ring->owed == 0 && wanted(ring, ring->owed_for))
        gw_vring_signal(ring);
}

static int settle(struct gw_vring *ring, void *arguments) {
    gw_settle(ring, *(const uint32_t *)arguments);
    return 0;
}

void gw_vring_elapse(struct gw_vring *ring, uint32_t looks) {
    if (ring->owed > looks)
        ring->owed -= looks;
    else if (ring->owed > 0)
        (void)gw_run(ring, settle, &looks);
}
