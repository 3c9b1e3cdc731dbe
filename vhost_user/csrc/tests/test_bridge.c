/* SPDX-License-Identifier: MPL-2.0 */
/* Frames from guest to guest: what arrives, what stays, who is hurt by whose lies. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>

#include "lan.h"

static void test_an_ordinary_frame(void) {
    struct lan *lan = open_lan();
    uint16_t before = used_idx(&lan->to);
    uint8_t *sent = send_frame(lan, 0, 100);
    post(lan, 3, 4096);
    (void)calls(&lan->to);
    (void)calls(&lan->from);
    gw_store16(at(&lan->to, AVAIL + 4 + 2 * 16), before, memory_order_relaxed); /* both want to be called */
    gw_store16(at(&lan->from, AVAIL + 4 + 2 * 16), 65530, memory_order_relaxed);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(lan->job.stop, GW_STOP_EMPTY);
    CHECK_INT(lan->job.taken, 1);
    CHECK_INT(lan->job.frames, 1);
    CHECK_INT(lan->job.hits, 1);
    CHECK_INT(lan->job.hit[0], 7);
    CHECK_INT(lan->job.count[7], 1);
    CHECK_INT(used_idx(&lan->from), (uint16_t)(65530 + 1));
    CHECK_INT(used_idx(&lan->to), (uint16_t)(before + 1));
    CHECK_INT(used_word(&lan->to, before, 0), 3);
    CHECK_INT(used_word(&lan->to, before, 1), HEADER + 100);
    CHECK(memcmp(buffer(lan, 3) + HEADER, sent + HEADER, 100) == 0);
    CHECK(memcmp(buffer(lan, 3), "\0\0\0\0\0\0\0\0\0\0\1\0", HEADER) == 0);
    CHECK_INT(calls(&lan->to), 1);
    CHECK_INT(calls(&lan->from), 1);
    CHECK_INT(gw_vring_counters(lan->from.ring)->bytes, HEADER + 100);
    CHECK_INT(gw_vring_counters(lan->to.ring)->bytes, HEADER + 100);
    CHECK_INT(forward(lan), 0); /* and what was counted before is not counted again */
    CHECK_INT(lan->job.count[7], 0);
    close_lan(lan);
}

static void test_a_short_frame_is_padded(void) {
    struct lan *lan = open_lan();
    send_frame(lan, 0, 14);
    post(lan, 0, 4096);
    memset(buffer(lan, 0), 0xff, 100);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(used_word(&lan->to, 65533, 1), HEADER + 60);
    for (int i = HEADER + 14; i < HEADER + 60; i++)
        CHECK_INT(buffer(lan, 0)[i], 0);
    close_lan(lan);
}

static void test_pieces_on_both_sides(void) {
    struct lan *lan = open_lan();
    uint8_t *sent = put_frame(lan, 0, 300);
    for (uint16_t i = 0; i < 8; i++) /* 1 byte, 2, 4, ..., the rest */
        desc(&lan->from, i, BUFFERS + (1u << i) - 1, i < 7 ? 1u << i : HEADER + 300 - 127, i < 7 ? D_NEXT : 0, i + 1);
    offer(&lan->from, 0);
    for (uint16_t i = 0; i < 4; i++)
        post(lan, i, 100);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    uint8_t got[400];
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_INT(used_word(&lan->to, (uint16_t)(65533 + i), 1), i < 3 ? 100 : 12);
        memcpy(got + 100 * i, buffer(lan, i), 100);
    }
    CHECK_INT(got[10], 4); /* num_buffers */
    CHECK(memcmp(got + HEADER, sent + HEADER, 300) == 0);
    close_lan(lan);
}

/* The receiver's memory went away before the call; the sender's is guarded. */
static void test_a_receiver_that_is_gone(void) {
    struct lan *lan = open_lan();
    lan->from.memory.unsealed = 1;
    CHECK_INT(gw_vring_place(lan->from.ring, &lan->from.memory, 16, UVA, UVA + AVAIL, UVA + USED, 0, 0), 0);
    gw_vring_unplace(lan->to.ring);
    lan->outlet.usable = 0;
    send_frame(lan, 0, 100);
    stays(lan, GW_STOP_UNUSUAL);
    int fd = memfd_create("gone", 0);
    CHECK(fd >= 0 && ftruncate(fd, 0x1000) == 0);
    uint8_t *page = gw_map(fd, 0x1000, 0);
    CHECK(page != NULL && ftruncate(fd, 0) == 0);
    lan->from.memory.region[lan->from.memory.count++] = (struct gw_region){0x40000, 0x1000, 0x40000 + UVA, page};
    desc(&lan->from, 0, 0x40000, 100, 0, 0);
    CHECK_INT(forward(lan), BRIDGE_LEFT | BRIDGE_BROKE);
    CHECK_INT(lan->job.result, GW_BROKEN_TRUNCATED);
    gw_unmap(page, 0x1000);
    lan->from.memory.count--;
    close(fd);
    close_lan(lan);
}

static void test_what_is_not_ordinary_stays(void) {
    struct lan *lan = open_lan();
    uint8_t *sent = send_frame(lan, 0, 100);
    post(lan, 0, 4096);
    sent[HEADER + 11] = 9; /* nobody said where these go */
    stays(lan, GW_STOP_ROUTE);
    sent[HEADER + 11] = KEY[11];
    CHECK_INT(gw_route_put(&lan->routes, KEY, 7, 1, 499), 0); /* too long ago */
    stays(lan, GW_STOP_ROUTE);
    CHECK_INT(gw_route_put(&lan->routes, KEY, 7, 1, 500), 0);
    lan->port.closed = 1;
    stays(lan, GW_STOP_UNUSUAL);
    lan->port.closed = 0;
    lan->port.count = 0;
    stays(lan, GW_STOP_UNUSUAL);
    lan->port.count = 1;
    lan->outlet.usable = 0;
    stays(lan, GW_STOP_UNUSUAL);
    lan->outlet.usable = 1;
    lan->port.mtu = 85;
    stays(lan, GW_STOP_UNUSUAL);
    lan->port.mtu = 86;
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    offer(&lan->from, 0);
    stays(lan, GW_STOP_ROOM);
    CHECK_INT(gw_vring_counters(lan->to.ring)->shortages, 1);
    post(lan, 1, 50); /* room for half of it */
    stays(lan, GW_STOP_ROOM);
    post(lan, 2, 50);
    post(lan, 3, 50);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    lan->job.usable = 0;
    offer(&lan->from, 0);
    CHECK_INT(forward(lan), 0);
    CHECK_INT(lan->job.taken, 0);
    close_lan(lan);
}

static void test_bad_frames_are_counted_and_gone(void) {
    struct lan *lan = open_lan();
    desc(&lan->from, 0, BUFFERS, HEADER - 1, 0, 0);
    offer(&lan->from, 0);
    put_frame(lan, 1, 13);
    desc(&lan->from, 1, BUFFERS + 4096, HEADER + 13, 0, 0);
    offer(&lan->from, 1);
    send_frame(lan, 2, MTU + 15);
    lan->job.max_chain = 2000;
    send_frame(lan, 3, 2000);
    send_frame(lan, 4, 100);
    post(lan, 0, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(lan->job.taken, 5);
    CHECK_INT(lan->job.frames, 1);
    CHECK_INT(lan->drops[VNET_DROP_HEADER], 1);
    CHECK_INT(lan->drops[VNET_DROP_SHORT], 1);
    CHECK_INT(lan->drops[VNET_DROP_LONG], 1);
    CHECK_INT(gw_vring_counters(lan->from.ring)->dropped_long, 1);
    close_lan(lan);
}

static void test_a_frame_no_ring_can_hold_is_dropped_there(void) {
    struct lan *lan = open_lan();
    lan->port.merge = 0;
    send_frame(lan, 0, 100);
    post(lan, 0, 111);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(gw_vring_counters(lan->to.ring)->dropped_no_fit, 1);
    lan->port.merge = 1;
    send_frame(lan, 0, 300);
    for (uint16_t i = 0; i < 15; i++)
        post(lan, 0, 13);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(gw_vring_counters(lan->to.ring)->dropped_no_fit, 2);
    CHECK_INT(used_idx(&lan->to), 65533);
    close_lan(lan);
}

static void test_bounds_of_a_call(void) {
    struct lan *lan = open_lan();
    for (uint16_t i = 0; i < 3; i++)
        send_frame(lan, i, 100);
    for (uint16_t i = 0; i < 3; i++)
        post(lan, i, 4096);
    CHECK_INT(gw_bridge(NULL, &lan->job, 1, 0, 1, 500), BRIDGE_MOVED);
    CHECK_INT(lan->job.stop, GW_STOP_BUDGET);
    CHECK_INT(lan->job.taken, 1);
    lan->job.max_bytes = 100;
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(lan->job.stop, GW_STOP_BUDGET);
    CHECK_INT(lan->job.taken, 1);
    CHECK_INT(gw_bridge(NULL, &lan->job, 0, 0, 1, 500), BRIDGE_LEFT);
    CHECK_INT(gw_bridge(NULL, &lan->job, STEER_PAIRS + 1, 0, 1, 500), BRIDGE_LEFT);
    lan->job.outlet_count = BRIDGE_OUTLETS + 1;
    CHECK_INT(forward(lan), BRIDGE_LEFT);
    close_lan(lan);
}

/* The receiver's lies cost it its ring, and the sender nothing: rules 1 to 9 are chain.c's, and tested there. */
static void test_a_receiver_that_lies(void) {
    struct lan *lan = open_lan();
    send_frame(lan, 0, 100);
    gw_store16(at(&lan->to, AVAIL + RING_IDX), (uint16_t)(lan->to.index + 17), memory_order_relaxed);
    stays(lan, GW_STOP_OUTLET);
    CHECK_INT(lan->outlet.result, GW_BROKEN_AVAIL_INDEX);
    close_lan(lan);
    static const struct { uint64_t gpa; uint32_t length; uint16_t flags; int result; } lies[] = {
        {BUFFERS, 100, 0, GW_BROKEN_READABLE},
        {HOLE, 100, D_WRITE, GW_BROKEN_ADDRESS},
        {C_GPA + C_SIZE - 50, 100, D_WRITE, GW_BROKEN_ADDRESS},
        {BUFFERS, 100, D_WRITE | D_NEXT, GW_BROKEN_LOOP},
        {BUFFERS, 11, D_WRITE, GW_BROKEN_SMALL},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        lan = open_lan();
        send_frame(lan, 0, 100);
        send_frame(lan, 1, 100);
        post(lan, 0, 4096);
        desc(&lan->to, 5, lies[i].gpa, lies[i].length, lies[i].flags, 5);
        offer(&lan->to, 5);
        CHECK_INT(forward(lan), BRIDGE_MOVED | BRIDGE_LEFT | BRIDGE_BROKE); /* what came before is good */
        CHECK_INT(lan->outlet.result, lies[i].result);
        CHECK_INT(lan->job.taken, 1);
        CHECK_INT(used_idx(&lan->to), 65534);
        CHECK_INT(used_idx(&lan->from), 65531);
        close_lan(lan);
    }
}

static void test_a_sender_that_lies(void) {
    struct lan *lan = open_lan();
    post(lan, 0, 4096);
    post(lan, 1, 4096);
    send_frame(lan, 0, 100);
    desc(&lan->from, 1, HOLE, 100, 0, 0);
    offer(&lan->from, 1);
    CHECK_INT(forward(lan), BRIDGE_MOVED | BRIDGE_LEFT);
    CHECK_INT(lan->job.taken, 1);
    CHECK_INT(forward(lan), BRIDGE_LEFT | BRIDGE_BROKE);
    CHECK_INT(lan->job.result, GW_BROKEN_ADDRESS);
    CHECK_INT(lan->outlet.result, 0);
    gw_store16(at(&lan->from, AVAIL + RING_IDX), (uint16_t)(lan->from.index + 100), memory_order_relaxed);
    CHECK_INT(forward(lan), BRIDGE_LEFT | BRIDGE_BROKE);
    CHECK_INT(lan->job.result, GW_BROKEN_AVAIL_INDEX);
    gw_vring_unplace(lan->from.ring);
    CHECK_INT(forward(lan), 0);
    close_lan(lan);
}

/* A card with several pairs learns where its guest's flows come from; one with a single pair may send to several. */
static void test_pairs_of_either_side_alone(void) {
    struct lan *lan = open_lan();
    struct gw_steer learned = {.slots = 1};
    gw_steer_clear(&learned);
    lan->job.steer = &learned;
    lan->job.pair = 3;
    uint8_t *sent = send_frame(lan, 0, 100);
    post(lan, 0, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(learned.pair[gw_flow(sent + HEADER, 100) % STEER_FLOWS], 3);
    struct gw_outlet two[2] = {{.usable = 0}, lan->outlet};
    lan->port.outlets = two;
    lan->port.count = lan->steer.slots = 2;
    lan->steer.slot[5] = 1;
    gw_steer_learn(&lan->steer, gw_flow(sent + HEADER, 100), 5);
    lan->outlets[0] = &two[1];
    lan->job.steer = NULL;
    send_frame(lan, 0, 100);
    post(lan, 1, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(used_idx(&lan->to), (uint16_t)(65533 + 2));
    close_lan(lan);
}

static void test_what_is_written_is_logged(void) {
    struct lan *lan = open_lan();
    uint8_t bits[8] = {0};
    struct gw_log log = {bits, sizeof bits, 0};
    gw_vring_set_log(lan->to.ring, &log);
    gw_vring_set_features(lan->to.ring, INDIRECT_AND_EVENT | 1ull << F_LOG_ALL);
    send_frame(lan, 0, 1000);
    post(lan, 2, 600);
    post(lan, 3, 600);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(bits[1], 1 << 2 | 1 << 3); /* pages 0xa000 and 0xb000 */
    CHECK_INT(bits[0], 0);
    gw_vring_set_log(lan->to.ring, NULL); /* asked for, and nowhere to */
    send_frame(lan, 0, 100);
    post(lan, 2, 600);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    close_lan(lan);
}

/* Guest memory in a file that is truncated under us: `from` or `to` is blamed. */
static void test_memory_that_goes_away(int whose, bool large) {
    struct lan *lan = open_lan();
    struct guest *guest = whose ? &lan->to : &lan->from;
    for (int both = 0; both < 2; both++)
        (both ? &lan->to : &lan->from)->memory.unsealed = 1;
    send_frame(lan, 0, 100);
    post(lan, 0, 4096);
    int fd = memfd_create("gone", 0);
    CHECK(fd >= 0 && ftruncate(fd, 0x3000) == 0);
    uint8_t *page = gw_map(fd, 0x3000, 0);
    CHECK(page != NULL);
    guest->memory.region[guest->memory.count++] = (struct gw_region){0x40000, 0x3000, 0x40000 + UVA, page};
    /* so that the rings know */
    for (int both = 0; both < 2; both++) {
        struct guest *each = both ? &lan->to : &lan->from;
        CHECK_INT(gw_vring_place(each->ring, &each->memory, each->num, UVA, UVA + AVAIL, UVA + USED, 0, 0), 0);
    }
    uint32_t size = large ? 5000 : 200;
    if (whose == 0)
        memcpy(page, put_frame(lan, 1, 200), HEADER + 200);
    else
        put_frame(lan, 1, size);
    desc(&lan->from, 1, whose ? BUFFERS + 4096 : 0x40000, HEADER + size, 0, 0);
    offer(&lan->from, 1);
    desc(&lan->to, 1, whose ? 0x40000 : BUFFERS + 4096, 0x3000, D_WRITE, 0);
    offer(&lan->to, 1);
    if (large) { /* its headers are there, its payload is not */
        lan->inbox.mtu = lan->port.mtu = 9000;
        uint8_t *frame = whose ? at(&lan->from, BUFFERS + 4096) : page;
        frame[0] = 1;
        put16(frame + 6, 34);
        put16(frame + 8, 16);
    }
    CHECK(ftruncate(fd, large && !whose ? 0x1000 : 0) == 0);
    int answer = forward(lan);
    CHECK_INT(answer, BRIDGE_MOVED | BRIDGE_LEFT | BRIDGE_BROKE);
    CHECK_INT(whose ? lan->outlet.result : lan->job.result, GW_BROKEN_TRUNCATED);
    CHECK_INT(whose ? lan->job.result : lan->outlet.result, 0);
    /* The frame before it arrived; who is not to blame has it published. */
    CHECK_INT(lan->job.frames, 1);
    CHECK_INT(used_idx(&lan->to), whose ? 65533 : 65534);
    CHECK_INT(used_idx(&lan->from), whose ? 65531 : 65530);
    CHECK_INT(lan->outlet.lock, 0);
    gw_unmap(page, 0x3000);
    guest->memory.count--;
    close(fd);
    close_lan(lan);
}

/* Key number i: spread well, so that clusters of slots have several homes. */
static void make_key(uint8_t *key, uint32_t i) {
    uint64_t a = (i + 1) * 0x9e3779b97f4a7c15, b = a ^ a >> 29;
    memcpy(key, &b, 8);
    memcpy(key + 8, &i, 4);
}

static void test_routes(void) {
    static struct gw_routes routes;
    uint8_t key[BRIDGE_KEY] = {0};
    for (uint32_t i = 0; i < BRIDGE_ROUTES; i++) {
        make_key(key, i);
        CHECK_INT(gw_route_put(&routes, key, i, i + 1, i), 0);
    }
    make_key(key, BRIDGE_ROUTES);
    CHECK_INT(gw_route_put(&routes, key, 0, 1, 0), -1);
    gw_route_remove(&routes, key); /* was not there */
    CHECK_INT(routes.count, BRIDGE_ROUTES);
    for (uint32_t gone = 0; gone < BRIDGE_ROUTES; gone += 2) { /* however they collided, the others are still found */
        make_key(key, gone);
        gw_route_remove(&routes, key);
        for (uint32_t i = 0; i < BRIDGE_ROUTES; i++) {
            make_key(key, i);
            uint32_t count = routes.count;
            CHECK_INT(gw_route_put(&routes, key, i, i + 1, i), 0);
            bool was_there = i % 2 == 1 || i > gone;
            CHECK_INT(routes.count, count + !was_there);
            if (!was_there)
                gw_route_remove(&routes, key);
        }
    }
    CHECK_INT(routes.count, BRIDGE_ROUTES / 2);
}

int main(void) {
    test_an_ordinary_frame();
    test_a_short_frame_is_padded();
    test_pieces_on_both_sides();
    test_a_receiver_that_is_gone();
    test_what_is_not_ordinary_stays();
    test_bad_frames_are_counted_and_gone();
    test_a_frame_no_ring_can_hold_is_dropped_there();
    test_bounds_of_a_call();
    test_a_receiver_that_lies();
    test_a_sender_that_lies();
    test_pairs_of_either_side_alone();
    test_what_is_written_is_logged();
    for (int whose = 0; whose < 2; whose++)
        for (int large = 0; large < 2; large++)
            test_memory_that_goes_away(whose, large);
    test_routes();
    puts("ok");
    return 0;
}
