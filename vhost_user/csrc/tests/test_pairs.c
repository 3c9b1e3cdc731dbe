/* SPDX-License-Identifier: MPL-2.0 */
/* Several queue pairs: who gets which flow, threads that share the work, and guests that change everything meanwhile
 * (arguments: rounds of the pool, rounds beside a scribbling guest). */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "lan.h"

#include "../take.h"

/* -- steering ------------------------------------------------------------------------------------------------------- */

/* 64 bytes of a frame between two hosts, in one direction or the other. */
static void make_flow(uint8_t *frame, int version, bool tag, uint8_t proto, bool reply, uint16_t port, bool fragment) {
    memset(frame, 0, 64);
    frame[reply ? 5 : 11] = 1;
    frame[reply ? 11 : 5] = 2;
    uint32_t at = 12;
    if (tag) {
        frame[at] = 0x81;
        at += 4;
    }
    memcpy(frame + at, version == 4 ? "\x08\x00" : version == 6 ? "\x86\xdd" : "\x88\xb5", 2);
    uint8_t *ip = frame + at + 2, *l4 = ip + (version == 4 ? 20 : 40);
    if (version == 4) {
        ip[0] = 0x45;
        ip[6] = fragment ? 0x20 : 0x40;
        ip[9] = proto;
        ip[reply ? 19 : 15] = 1;
        ip[reply ? 15 : 19] = 2;
    } else if (version == 6) {
        ip[6] = proto;
        ip[reply ? 39 : 23] = 1;
        ip[reply ? 23 : 39] = 2;
    } else
        return;
    l4[reply ? 2 : 0] = (uint8_t)(port >> 8);
    l4[reply ? 3 : 1] = (uint8_t)port;
    l4[reply ? 1 : 3] = 80;
}

static void test_a_flow_is_the_same_both_ways(void) {
    uint8_t there[64], back[64];
    for (int version = 4; version <= 8; version += 2)
        for (int tag = 0; tag < 2; tag++)
            for (uint8_t proto = 0; proto < 20; proto++) {
                make_flow(there, version, tag, proto, false, 0x1234, false);
                make_flow(back, version, tag, proto, true, 0x1234, false);
                CHECK(gw_flow(there, 64) == gw_flow(back, 64));
                CHECK(gw_flow(there, 64) == gw_flow(there, 2000));
                make_flow(back, version, tag, proto, true, 0x1235, false);
                bool ports = version != 8 && (proto == 6 || proto == 17);
                CHECK((gw_flow(there, 64) != gw_flow(back, 64)) == ports);
            }
    /* fragments stay together, with ports or without */
    make_flow(there, 4, false, 17, false, 1, true);
    make_flow(back, 4, false, 17, false, 2, true);
    CHECK(gw_flow(there, 64) == gw_flow(back, 64));
    for (uint32_t length = 0; length < 64; length++) { /* and what is too short is read no further than it goes */
        uint8_t *shorter = malloc(length ? length : 1);
        CHECK(shorter != NULL);
        make_flow(there, length & 1 ? 4 : 6, length & 2, 6, false, 9, false);
        memcpy(shorter, there, length);
        (void)gw_flow(shorter, length);
        free(shorter);
    }
}

static void test_a_flow_goes_where_it_came_from(void) {
    struct gw_steer steer = {.slots = 3};
    gw_steer_clear(&steer);
    memset(steer.slot, STEER_NOWHERE, sizeof steer.slot);
    steer.slot[0] = 0;
    steer.slot[2] = 1;
    steer.slot[5] = 2;
    uint32_t spread[3] = {0};
    for (uint32_t i = 0; i < 3000; i++)
        spread[gw_steer_pick(&steer, i * 2654435761u)]++;
    for (int i = 0; i < 3; i++)
        CHECK(spread[i] > 800);
    uint32_t flow = 0x12345678, by_hash = gw_steer_pick(&steer, flow);
    gw_steer_learn(&steer, flow, 5);
    CHECK_INT(gw_steer_pick(&steer, flow), 2);
    gw_steer_learn(&steer, flow, 2);
    CHECK_INT(gw_steer_pick(&steer, flow), 1);
    gw_steer_learn(&steer, flow, 3); /* a pair that is not there */
    CHECK_INT(gw_steer_pick(&steer, flow), by_hash);
    uint8_t heads[2 * STEER_HEAD], slots[2];
    make_flow(heads, 4, false, 6, true, 7, false);
    make_flow(heads + STEER_HEAD, 6, false, 6, true, 7, false);
    gw_steer_learn(&steer, gw_flow(heads, 64), 5);
    gw_steer_learn(&steer, gw_flow(heads + STEER_HEAD, 64), 0);
    gw_steer_burst(&steer, heads, 2, slots);
    CHECK(slots[0] == 2 && slots[1] == 0);
}

/* -- the pool ------------------------------------------------------------------------------------------------------- */

static void count_up(void *argument) { ++*(uint64_t *)argument; }

static void test_every_job_is_done_once(long rounds) {
    for (uint32_t threads = 0; threads < 4; threads++) {
        struct gw_pool *pool = gw_pool_new(threads);
        CHECK((pool == NULL) == (threads == 0));
        uint64_t done[5] = {0};
        struct gw_job jobs[5];
        for (int i = 0; i < 5; i++)
            jobs[i] = (struct gw_job){count_up, &done[i]};
        for (long round = 0; round < rounds; round++) {
            uint32_t count = 1 + (uint32_t)round % 5;
            gw_pool_run(pool, jobs, count, round % 3 == 0);
            /* now and then long enough for helpers to fall asleep */
            if (round % 1024 == 0)
                (void)nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        }
        for (int i = 0; i < 5; i++) {
            uint64_t wanted = 0;
            for (long round = 0; round < rounds; round++)
                wanted += round % 5 >= i;
            CHECK_INT(done[i], wanted);
        }
        gw_pool_free(pool);
    }
    gw_pool_run(NULL, NULL, 0, 1);
}

static _Atomic int started;

/* Goes on when as many jobs as threads have begun: none of them alone ever would. */
static void meet(void *argument) {
    struct timespec began, now;
    (void)clock_gettime(CLOCK_MONOTONIC, &began);
    atomic_fetch_add(&started, 1);
    while (atomic_load(&started) < *(int *)argument) {
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        CHECK(now.tv_sec - began.tv_sec < 60);
    }
}

static void test_jobs_run_at_the_same_time(void) {
    int threads = 3;
    struct gw_pool *pool = gw_pool_new((uint32_t)threads - 1);
    struct gw_job jobs[3] = {{meet, &threads}, {meet, &threads}, {meet, &threads}};
    for (int round = 0; round < 20; round++) {
        atomic_store(&started, 0);
        gw_pool_run(pool, jobs, 3, 1);
        CHECK_INT(atomic_load(&started), 3);
    }
    gw_pool_free(pool);
}

/* -- two pairs to two pairs ----------------------------------------------------------------------------------------- */

struct pairs {
    struct lan *lan[2]; /* a pair each: its sender's and its receiver's ring */
    struct gw_outlet outlets[2];
    struct gw_outlet *pointers[2];
    struct gw_bridge jobs[2];
    struct gw_steer learned;
};

static void open_pairs(struct pairs *pairs) {
    memset(pairs, 0, sizeof *pairs);
    gw_steer_clear(&pairs->learned);
    for (uint32_t i = 0; i < 2; i++) {
        pairs->lan[i] = open_lan();
        pairs->outlets[i] = (struct gw_outlet){.ring = pairs->lan[i]->to.ring, .usable = 1};
        pairs->pointers[i] = &pairs->outlets[i];
        struct gw_port *port = &pairs->lan[0]->port;
        port->outlets = pairs->outlets;
        port->count = 2;
        pairs->lan[0]->steer.slots = 2;
        pairs->lan[0]->steer.slot[1] = 1;
        pairs->jobs[i] = pairs->lan[i]->job;
        pairs->jobs[i].routes = &pairs->lan[0]->routes;
        pairs->jobs[i].ports = pairs->lan[0]->ports;
        pairs->jobs[i].outlets = pairs->pointers;
        pairs->jobs[i].outlet_count = 2;
        pairs->jobs[i].steer = &pairs->learned;
        pairs->jobs[i].pair = i;
    }
}

static void close_pairs(struct pairs *pairs) {
    close_lan(pairs->lan[0]);
    close_lan(pairs->lan[1]);
}

/* Frames of many flows from both rings at once: none is lost, none twice, each where its flow belongs, in order. */
static void test_both_rings_at_once(long rounds) {
    struct pairs pairs;
    open_pairs(&pairs);
    struct gw_pool *pool = gw_pool_new(1);
    uint32_t next[2][8] = {{0}}, got[2] = {0}, sent = 0, arrived = 0;
    uint16_t seen[2] = {65533, 65533};
    for (uint16_t slot = 0; slot < 8; slot++) {
        desc(&pairs.lan[0]->to, slot, BUFFERS + 4096 * slot, 4096, D_WRITE, 0);
        desc(&pairs.lan[1]->to, slot, BUFFERS + 4096 * slot, 4096, D_WRITE, 0);
        offer(&pairs.lan[0]->to, slot);
        offer(&pairs.lan[1]->to, slot);
    }
    uint32_t number[2][8] = {{0}};
    for (long round = 0; round < rounds; round++) {
        for (uint32_t pair = 0; pair < 2; pair++) {
            struct guest *from = &pairs.lan[pair]->from;
            while ((uint16_t)(from->index - used_idx(from)) < 8) {
                uint16_t slot = from->index & 7;
                uint8_t *frame = put_frame(pairs.lan[pair], slot, 100);
                uint32_t flow = sent % 8;
                make_flow(frame + HEADER, 4, false, 6, false, (uint16_t)(1000 * pair + flow), false);
                put_desc(from, 0, slot, BUFFERS + 4096 * slot, HEADER + 100, 0, 0);
                memcpy(frame + HEADER, KEY, sizeof KEY);
                frame[HEADER + 16] = 0; /* total length 86 */
                frame[HEADER + 17] = 86;
                memset(frame + HEADER + 20, 0x40, 1);
                frame[0] = 1; /* nobody sums these */
                frame[6] = 34;
                frame[8] = 16;
                frame[HEADER + 70] = (uint8_t)pair;
                frame[HEADER + 71] = (uint8_t)flow;
                memcpy(frame + HEADER + 72, &number[pair][flow], 4);
                number[pair][flow]++;
                sent++;
                offer(from, slot);
            }
        }
        /* now and then by the caller alone, who has no pool */
        int answer = gw_bridge(round % 8 == 7 ? NULL : pool, pairs.jobs, 2, round % 2 == 0, 256, 500);
        CHECK(!(answer & BRIDGE_BROKE));
        for (uint32_t pair = 0; pair < 2; pair++) {
            struct guest *to = &pairs.lan[pair]->to;
            for (; seen[pair] != used_idx(to); seen[pair]++) {
                uint32_t slot = used_word(to, seen[pair], 0);
                uint8_t *frame = at(to, BUFFERS + 4096 * slot) + HEADER;
                CHECK_INT(used_word(to, seen[pair], 1), HEADER + 100);
                CHECK_INT(gw_steer_pick(&pairs.lan[0]->steer, gw_flow(frame, 100)), pair);
                CHECK_INT(pairs.learned.pair[gw_flow(frame, 100) % STEER_FLOWS], frame[70]);
                uint32_t is;
                memcpy(&is, frame + 72, 4);
                CHECK_INT(is, next[frame[70]][frame[71]]);
                next[frame[70]][frame[71]]++;
                got[pair]++;
                arrived++;
                offer(to, (uint16_t)slot);
            }
        }
    }
    uint32_t left = 0;
    for (uint32_t pair = 0; pair < 2; pair++)
        left += (uint16_t)(pairs.lan[pair]->from.index - used_idx(&pairs.lan[pair]->from));
    CHECK_INT(arrived + left, sent);
    CHECK(got[0] > 0 && got[1] > 0);
    gw_pool_free(pool);
    close_pairs(&pairs);
}

/* -- bursts from two rings ------------------------------------------------------------------------------------------ */

static void test_taking_from_two_rings(void) {
    struct pairs pairs;
    open_pairs(&pairs);
    struct gw_pool *pool = gw_pool_new(1);
    uint8_t small[2][8192] __attribute__((aligned(8)));
    struct vnet_record records[2][16];
    struct chunk chunks[2][16];
    struct gw_take takes[2];
    uint8_t reply[64];
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t *frame = send_frame(pairs.lan[i], 0, 100);
        make_flow(frame + HEADER, 6, false, 99, false, 0, false);
        frame[HEADER + 23] = (uint8_t)(10 + i);
        takes[i] = (struct gw_take){.ring = pairs.lan[i]->from.ring, .steer = &pairs.learned, .pair = i, .budget = 16,
                                    .max_bytes = 1 << 18, .max_chain = 65536,
                                    .burst = {.small = small[i], .small_size = sizeof small[i]},
                                    .inbox = pairs.lan[i]->inbox};
        takes[i].inbox.records = records[i];
        takes[i].inbox.chunks = chunks[i];
    }
    desc(&pairs.lan[1]->from, 1, BUFFERS, 5, 0, 0); /* too short for a header */
    offer(&pairs.lan[1]->from, 1);
    gw_take(pool, takes, 2, 1);
    CHECK_INT(takes[0].chains, 1);
    CHECK_INT(takes[1].chains, 2);
    CHECK_INT(takes[0].frames, 1);
    CHECK_INT(takes[1].frames, 1);
    CHECK_INT(pairs.lan[1]->drops[VNET_DROP_HEADER], 1);
    for (uint32_t i = 0; i < 2; i++) {
        make_flow(reply, 6, false, 99, true, 0, false);
        reply[14 + 39] = (uint8_t)(0); /* source of the answer: who was sent to */
        memcpy(reply + 22, at(&pairs.lan[i]->from, BUFFERS) + HEADER + 38, 16);
        memcpy(reply + 38, at(&pairs.lan[i]->from, BUFFERS) + HEADER + 22, 16);
        CHECK_INT(pairs.learned.pair[gw_flow(reply, 64) % STEER_FLOWS], i);
    }
    takes[0].budget = 0;
    offer(&pairs.lan[0]->from, 0);
    gw_take(pool, takes, 2, 0);
    CHECK_INT(takes[0].chains, 0);
    CHECK_INT(takes[1].chains, 0);
    /* a card with one pair learns nothing */
    struct gw_steer before = pairs.learned;
    takes[0].budget = 16;
    takes[0].steer = NULL;
    CHECK_INT(gw_take_one(&takes[0]), 1);
    CHECK_INT(takes[0].frames, 1);
    CHECK_INT(memcmp(&before, &pairs.learned, sizeof before), 0);
    CHECK_INT(gw_take_one(&takes[0]), 0);
    /* what is left of records tells of no frame if there was none */
    CHECK(records[0][0].end > 0);
    desc(&pairs.lan[0]->from, 1, BUFFERS, 5, 0, 0);
    offer(&pairs.lan[0]->from, 1);
    CHECK_INT(gw_take_one(&takes[0]), 1);
    CHECK_INT(takes[0].frames, 0);
    CHECK_INT(records[0][0].end, 0);
    gw_pool_free(pool);
    close_pairs(&pairs);
}

/* -- guests that write while we read ---------------------------------------------------------------------------------- */

static atomic_bool stop;

static uint64_t draw(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Descriptors, rings, headers and payload of both guests, without rest. */
static void *scribble(void *opaque) {
    struct pairs *pairs = opaque;
    static const uint64_t addresses[] = {BUFFERS, BUFFERS + 4096, A_SIZE - 64, B_GPA + 0x1000, HOLE, C_GPA};
    static const uint32_t lengths[] = {0, 11, 26, 100, 3000, 4096, UINT32_MAX};
    uint64_t state = 88172645463325252;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t r = draw(&state);
        struct lan *lan = pairs->lan[r >> 60 & 1];
        struct guest *guest = r >> 61 & 1 ? &lan->to : &lan->from;
        uint64_t flags = r >> 40 & (r >> 44) & 5, write = guest == &lan->to ? 2 : 0;
        _Atomic uint64_t *where = (_Atomic uint64_t *)(void *)at(guest, 16 * (r & 15));
        if (r >> 8 & 1)
            atomic_store_explicit(where, addresses[r % 11 % 6], memory_order_relaxed);
        else
            atomic_store_explicit(where + 1, lengths[r % 13 % 7] | (flags | write) << 32 | (r >> 32 & 15) << 48,
                                  memory_order_relaxed);
        if (r % 5 == 0)
            gw_store16(at(guest, AVAIL + 4 + 2 * (r >> 16 & 15)), (uint16_t)(r >> 24 & 15), memory_order_relaxed);
        if (r % 3 == 0)
            *(_Atomic uint8_t *)at(guest, BUFFERS + (r >> 24 & 0x1fff)) = (uint8_t)(r >> 48);
    }
    return NULL;
}

static void test_guests_that_change_everything(long rounds) {
    struct pairs pairs;
    open_pairs(&pairs);
    struct gw_pool *pool = gw_pool_new(1);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, scribble, &pairs) == 0);
    uint64_t state = 7, moved = 0, broken = 0;
    for (long i = 0; i < rounds; i++) {
        uint16_t base[4];
        struct gw_vring *rings[4];
        for (uint32_t pair = 0; pair < 2; pair++) {
            put_frame(pairs.lan[pair], 0, 100);
            put_frame(pairs.lan[pair], 1, 3000)[0] = 1;
            rings[2 * pair] = pairs.lan[pair]->from.ring;
            rings[2 * pair + 1] = pairs.lan[pair]->to.ring;
        }
        for (int r = 0; r < 4; r++) {
            base[r] = (uint16_t)gw_vring_base(rings[r]);
            struct guest *guest = r & 1 ? &pairs.lan[r / 2]->to : &pairs.lan[r / 2]->from;
            gw_store16(at(guest, AVAIL + RING_IDX), (uint16_t)(base[r] + 1 + draw(&state) % 16), memory_order_release);
        }
        int answer = gw_bridge(pool, pairs.jobs, 2, i % 64 == 0, 256, 500);
        moved += answer & BRIDGE_MOVED;
        broken += (answer & BRIDGE_BROKE) != 0;
        for (int r = 0; r < 4; r++) {
            uint16_t taken = (uint16_t)(gw_vring_base(rings[r]) - base[r]);
            CHECK(taken <= 16);
            CHECK(taken == (uint16_t)(rings[r]->used_idx - used_idx(r & 1 ? &pairs.lan[r / 2]->to : &pairs.lan[r / 2]->from)) +
                               taken); /* what is told is what is true */
            int result = r & 1 ? pairs.outlets[r / 2].result : pairs.jobs[r / 2].result;
            CHECK(result <= 0 && (result == 0 || (result < GW_BROKEN && result >= GW_BROKEN_ALIGNMENT)));
            if (result < 0) /* the ring would be stopped here; go on behind the broken chain */
                CHECK(gw_vring_start(rings[r], (uint16_t)(base[r] + 1)) <= 0);
        }
    }
    atomic_store(&stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(moved > 0 && broken > 0);
    gw_pool_free(pool);
    close_pairs(&pairs);
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 5000, scribbles = argc > 2 ? atol(argv[2]) : 5000;
    test_a_flow_is_the_same_both_ways();
    test_a_flow_goes_where_it_came_from();
    test_every_job_is_done_once(rounds);
    test_jobs_run_at_the_same_time();
    test_both_rings_at_once(rounds);
    test_taking_from_two_rings();
    if (scribbles > 0) /* a race by intention: not for a race detector */
        test_guests_that_change_everything(scribbles);
    puts("ok");
    return 0;
}
