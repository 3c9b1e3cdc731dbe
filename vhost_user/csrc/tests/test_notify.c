/* SPDX-License-Identifier: MPL-2.0 */
/* Who is told of what, and when: kicks, calls, and calls that can wait. */
#include "guest.h"

static void test_notifications(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 65534);
    CHECK_INT(calls(&guest), 1); /* the one of the start */
    uint8_t *avail_event = at(&guest, USED + 4 + 8 * 8);
    uint8_t *used_event = at(&guest, AVAIL + 4 + 2 * 8);
    CHECK_INT(gw_load16(avail_event, memory_order_relaxed), 65534);
    desc(&guest, 0, BUFFERS, 1, 0, 0);
    for (uint16_t event = 65532; event != 4; event++) {
        gw_vring_stop(guest.ring);
        start(&guest, INDIRECT_AND_EVENT, 65534);
        calls(&guest);
        gw_store16(used_event, event, memory_order_relaxed);
        offer(&guest, 0);
        offer(&guest, 0);
        offer(&guest, 0);
        CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 3);
        CHECK_INT(calls(&guest), event == 65534 || event == 65535 || event == 0);
    }
    CHECK_INT(gw_vring_suppress(guest.ring), 0);
    CHECK_INT(gw_load16(avail_event, memory_order_relaxed), 0);
    uint64_t one = 1;
    CHECK(write(guest.kick, &one, 8) == 8);
    CHECK_INT(gw_vring_arm(guest.ring, 0), 0);
    CHECK_INT(gw_vring_drain_kick(guest.ring), 0);
    CHECK_INT(gw_vring_counters(guest.ring)->kicks, 1);
    CHECK_INT(gw_load16(avail_event, memory_order_relaxed), 1);
    CHECK_INT(gw_vring_linger(guest.ring, 3), 0);
    offer(&guest, 0);
    CHECK_INT(gw_vring_linger(guest.ring, 3), 1);
    CHECK_INT(gw_vring_linger(guest.ring, 0), 0);
    CHECK_INT(gw_vring_arm(guest.ring, 1), 0);
    CHECK_INT(gw_vring_arm(guest.ring, 0), 1);
    CHECK_INT(gw_vring_arm(guest.ring, 1000), 0);
    CHECK_INT(gw_load16(avail_event, memory_order_relaxed), 9);
    gw_vring_set_features(guest.ring, 0);
    uint8_t *used_flags = at(&guest, USED), *avail_flags = at(&guest, AVAIL);
    CHECK_INT(gw_vring_suppress(guest.ring), 0);
    CHECK_INT(gw_load16(used_flags, memory_order_relaxed), 1);
    CHECK_INT(gw_vring_arm(guest.ring, 0), 1);
    CHECK_INT(gw_load16(used_flags, memory_order_relaxed), 0);
    gw_store16(avail_flags, 1, memory_order_relaxed);
    CHECK_INT(gw_vring_discard(guest.ring, 1), 1);
    CHECK_INT(calls(&guest), 0);
    gw_store16(avail_flags, 0, memory_order_relaxed);
    offer(&guest, 0);
    CHECK_INT(gw_vring_discard(guest.ring, 5), 1);
    CHECK_INT(calls(&guest), 1);
    CHECK_INT(gw_vring_discard(guest.ring, 5), 0);
    close_guest(&guest);
}

static int short_ones(const uint8_t *chain, uint32_t length) {
    (void)chain;
    return length == 1;
}

static int pop_patiently(struct guest *guest) {
    struct gw_burst burst = {.patient = short_ones};
    int count = gw_vring_pop(guest->ring, MANY, MANY, MANY, &burst);
    gw_slab_free(burst.slab);
    return count;
}

static void test_owed_calls(uint64_t features) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, features, 65530);
    calls(&guest);
    uint8_t *used_event = at(&guest, AVAIL + 4 + 2 * 8);
    gw_store16(used_event, 65530, memory_order_relaxed);
    desc(&guest, 0, BUFFERS, 1, 0, 0);
    desc(&guest, 1, BUFFERS, 2, 0, 0);
    desc(&guest, 2, BUFFERS, 40, D_WRITE, 0);
    /* so many looks in vain later */
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    CHECK_INT(used_idx(&guest), 65531);
    for (int look = 1; look < GW_OWED_LOOKS; look++)
        CHECK_INT(pop_patiently(&guest), 0);
    CHECK_INT(calls(&guest), 0);
    CHECK_INT(pop_patiently(&guest), 0);
    CHECK_INT(calls(&guest), 1);
    CHECK_INT(pop_patiently(&guest), 0);
    CHECK_INT(calls(&guest), 0);
    /* with the next burst in which one is not patient, whether or not that one is wanted a call for */
    gw_store16(used_event, 65531, memory_order_relaxed);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1); /* owed already */
    CHECK_INT(calls(&guest), 0);
    offer(&guest, 0);
    offer(&guest, 1);
    CHECK_INT(pop_patiently(&guest), 2);
    CHECK_INT(calls(&guest), 1);
    /* before we sleep */
    gw_store16(used_event, 65535, memory_order_relaxed);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    CHECK_INT(gw_vring_arm(guest.ring, 0), 0);
    CHECK_INT(calls(&guest), 1);
    /* of a frame to the guest; when the ring stops */
    gw_store16(used_event, 0, memory_order_relaxed);
    offer(&guest, 2);
    CHECK_INT(push_one(&guest, GW_PUSH_ONE | GW_PUSH_PATIENTLY, 0, 0, "x", 1), 1);
    CHECK_INT(calls(&guest), 0);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS - 1);
    CHECK_INT(calls(&guest), 0);
    gw_vring_stop(guest.ring);
    CHECK_INT(calls(&guest), 1);
    /* nobody to call */
    start(&guest, features, 1);
    calls(&guest);
    gw_store16(used_event, 1, memory_order_relaxed);
    gw_vring_set_call(guest.ring, -1);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS + 1);
    gw_vring_set_call(guest.ring, guest.call);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&guest), 0);
    close_guest(&guest);
}

/* The guest's word that it has found everything by itself: it asks to be told of what comes next, or of nothing. */
static void found_by_itself(struct guest *guest, int found) {
    gw_store16(at(guest, AVAIL + 4 + 2 * 8), (uint16_t)(found ? used_idx(guest) : used_idx(guest) - 1), memory_order_relaxed);
    gw_store16(at(guest, AVAIL), (uint16_t)found, memory_order_relaxed);
}

static void test_owed_calls_nobody_needs_any_more(uint64_t features) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, features, 65530);
    calls(&guest);
    desc(&guest, 0, BUFFERS, 1, 0, 0);
    desc(&guest, 1, BUFFERS, 2, 0, 0);
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), 65530, memory_order_relaxed);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    found_by_itself(&guest, 1);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&guest), 0);
    /* nor is it made up for later */
    found_by_itself(&guest, 0);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&guest), 0);
    /* one of two found: the other is still to be told of, with the next burst even if that is wanted no call for */
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), used_idx(&guest), memory_order_relaxed);
    gw_store16(at(&guest, AVAIL), 0, memory_order_relaxed);
    offer(&guest, 0);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 2);
    found_by_itself(&guest, 0);
    offer(&guest, 1);
    CHECK_INT(pop_patiently(&guest), 1);
    CHECK_INT(calls(&guest), 1);
    /* found all: the next burst is judged by itself */
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), used_idx(&guest), memory_order_relaxed);
    offer(&guest, 0);
    CHECK_INT(pop_patiently(&guest), 1);
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), (uint16_t)(used_idx(&guest) + 1), memory_order_relaxed);
    gw_store16(at(&guest, AVAIL), 1, memory_order_relaxed);
    offer(&guest, 1);
    CHECK_INT(pop_patiently(&guest), 1);
    CHECK_INT(calls(&guest), 0);
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&guest), 0);
    close_guest(&guest);
}

static void test_a_call_owed_for_more_chains_than_indices(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    calls(&guest);
    desc(&guest, 0, BUFFERS, 1, 0, 0);
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), 0, memory_order_relaxed);
    for (int chain = 0; chain < 65536 + 3; chain++) {
        offer(&guest, 0);
        CHECK_INT(pop_patiently(&guest), 1);
    }
    CHECK_INT(used_idx(&guest), 3);
    gw_store16(at(&guest, AVAIL + 4 + 2 * 8), 65535, memory_order_relaxed); /* anything but the chains seen last */
    gw_vring_elapse(guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&guest), 1);
    close_guest(&guest);
}

int main(void) {
    test_notifications();
    test_owed_calls(INDIRECT_AND_EVENT);
    test_owed_calls(0);
    test_owed_calls_nobody_needs_any_more(INDIRECT_AND_EVENT);
    test_owed_calls_nobody_needs_any_more(0);
    test_a_call_owed_for_more_chains_than_indices();
    puts("ok");
    return 0;
}
