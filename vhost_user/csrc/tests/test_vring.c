/* SPDX-License-Identifier: MPL-2.0 */
/* Every path of the rings without Python: built with ASan and UBSan, and for branch coverage. Allocation is made to fail
 * by wrapping malloc and calloc at link time. */
#include <errno.h>
#include <sys/socket.h>

#include "../checksum.h"
#include "guest.h"

static int allocations_left = -1; /* until one fails; -1: none does */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);

static int failing(void) {
    if (allocations_left > 0)
        allocations_left--;
    return allocations_left == 0;
}

void *__wrap_malloc(size_t size) { return failing() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return failing() ? NULL : __real_calloc(count, size); }

#define MANY (1u << 20)

static void test_allocation_failures(void) {
    for (int left = 1; left <= 3; left++) {
        allocations_left = left;
        CHECK(gw_vring_new(8) == NULL);
    }
    allocations_left = -1;
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    desc(&guest, 0, BUFFERS, 50, 0, 0);
    offer(&guest, 0);
    allocations_left = 1;
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), GW_NO_MEMORY);
    allocations_left = -1;
    CHECK_INT(gw_vring_counters(guest.ring)->no_memory, 1);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 1); /* nothing was lost */
    close_guest(&guest);
}

static void test_nothing_without_a_place(void) {
    struct guest guest;
    open_guest(&guest, 8);
    CHECK_INT(gw_vring_room(guest.ring), 0);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 0);
    CHECK_INT(gw_vring_start(guest.ring, 5), 0); /* memory may come later */
    CHECK_INT(gw_vring_base(guest.ring), 5);
    CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA, UVA + AVAIL, UVA + USED, 0, 0), GW_BROKEN_AVAIL_INDEX);
    gw_vring_stop(guest.ring);
    CHECK_INT(gw_vring_arm(guest.ring, 0), 0);
    CHECK_INT(gw_vring_suppress(guest.ring), 0);
    CHECK_INT(gw_vring_linger(guest.ring, MANY), 0);
    gw_vring_set_kick(guest.ring, -1);
    CHECK_INT(gw_vring_drain_kick(guest.ring), 0);
    gw_vring_set_call(guest.ring, -1);
    gw_vring_signal(guest.ring);
    close_guest(&guest);
}

static void test_places(void) {
    struct guest guest;
    open_guest(&guest, 8);
    static const struct {
        uint64_t desc, avail, used;
        int result;
    } cases[] = {
        {0, AVAIL, USED, 0},
        {A_SIZE - 128, AVAIL, USED, 0},
        {A_SIZE - 112, AVAIL, USED, GW_BROKEN_PLACE},
        {0, A_SIZE - 22, USED, 0},
        {0, A_SIZE - 20, USED, GW_BROKEN_PLACE},
        {0, AVAIL, A_SIZE - 72, 0},
        {0, AVAIL, A_SIZE - 68, GW_BROKEN_PLACE},
        {HOLE, AVAIL, USED, GW_BROKEN_PLACE},
        {8, AVAIL, USED, GW_BROKEN_ALIGNMENT},
        {0, AVAIL + 1, USED, GW_BROKEN_ALIGNMENT},
        {0, AVAIL, USED + 2, GW_BROKEN_ALIGNMENT},
        {C_GPA, B_GPA, USED, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA + cases[i].desc, UVA + cases[i].avail,
                                 UVA + cases[i].used, 0, 0),
                  cases[i].result);
    close_guest(&guest);
}

/* What a ring with these descriptors answers to pop and to push. */
static void broken_both_ways(struct guest *guest, int readable, int writable) {
    struct gw_burst burst = {0};
    uint16_t taken = (uint16_t)gw_vring_base(guest->ring);
    CHECK_INT(gw_vring_pop(guest->ring, MANY, MANY, MANY, &burst), readable);
    CHECK_INT(push_one(guest, GW_PUSH_ONE, 0, 0, "x", 1), writable);
    CHECK_INT(gw_vring_base(guest->ring), taken);
    CHECK_INT(used_idx(guest), taken);
}

static void test_broken_chains(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 65535);
    offer(&guest, 0);
    const uint64_t top = UINT64_MAX;
    const uint32_t table = 0xc000;
    struct {
        uint64_t gpa;
        uint32_t length;
        uint16_t flags, next;
        int readable, writable;
    } cases[] = {
        {HOLE, 1, 0, 0, GW_BROKEN_ADDRESS, GW_BROKEN_READABLE},
        {HOLE, 1, D_WRITE, 0, GW_BROKEN_WRITABLE, GW_BROKEN_ADDRESS},
        {top, 2, 0, 0, GW_BROKEN_ADDRESS, GW_BROKEN_READABLE},
        {top, 1, 0, 0, GW_BROKEN_ADDRESS, GW_BROKEN_READABLE},
        {HOLE - 1, 2, 0, 0, GW_BROKEN_ADDRESS, GW_BROKEN_READABLE},
        {BUFFERS, 1, D_NEXT, 8, GW_BROKEN_NEXT, GW_BROKEN_READABLE},
        {BUFFERS, 1, D_NEXT, 0, GW_BROKEN_LOOP, GW_BROKEN_READABLE},
        {BUFFERS, 1, D_NEXT | D_WRITE, 1, GW_BROKEN_WRITABLE, GW_BROKEN_ORDER},
        {table, 16, D_INDIRECT | D_NEXT, 1, GW_BROKEN_INDIRECT_NEXT, GW_BROKEN_INDIRECT_NEXT},
        {table, 0, D_INDIRECT, 0, GW_BROKEN_INDIRECT_LENGTH, GW_BROKEN_INDIRECT_LENGTH},
        {table, 15, D_INDIRECT, 0, GW_BROKEN_INDIRECT_LENGTH, GW_BROKEN_INDIRECT_LENGTH},
        {table, 144, D_INDIRECT, 0, GW_BROKEN_INDIRECT_LENGTH, GW_BROKEN_INDIRECT_LENGTH},
        {top - 8, 16, D_INDIRECT, 0, GW_BROKEN_ADDRESS, GW_BROKEN_ADDRESS},
        {HOLE, 16, D_INDIRECT, 0, GW_BROKEN_ADDRESS, GW_BROKEN_ADDRESS},
        {HOLE - 5, 16, D_INDIRECT, 0, GW_BROKEN_ADDRESS, GW_BROKEN_ADDRESS},
        {table, 16, D_INDIRECT, 0, GW_BROKEN_INDIRECT_NESTED, GW_BROKEN_INDIRECT_NESTED},
        {0, A_SIZE, D_NEXT, 2, GW_BROKEN_LENGTH, GW_BROKEN_READABLE},
    };
    desc(&guest, 1, BUFFERS, 1, 0, 0);
    desc(&guest, 2, 0, UINT32_MAX - A_SIZE + 1, 0, 0);
    put_desc(&guest, table, 0, table, 16, D_INDIRECT, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        desc(&guest, 0, cases[i].gpa, cases[i].length, cases[i].flags, cases[i].next);
        broken_both_ways(&guest, cases[i].readable, cases[i].writable);
    }
    gw_vring_set_features(guest.ring, 0);
    desc(&guest, 0, table, 16, D_INDIRECT, 0);
    broken_both_ways(&guest, GW_BROKEN_INDIRECT_REFUSED, GW_BROKEN_INDIRECT_REFUSED);
    CHECK(strstr(gw_vring_strerror(GW_BROKEN_INDIRECT_REFUSED), "negotiated") != NULL);
    CHECK_INT(gw_vring_error_value(guest.ring), 0);
    gw_store16(at(&guest, AVAIL + 4 + 2 * 7), 8, memory_order_relaxed); /* 65535 % 8 */
    broken_both_ways(&guest, GW_BROKEN_HEAD, GW_BROKEN_HEAD);
    CHECK_INT(gw_vring_discard(guest.ring, 1), GW_BROKEN_HEAD);
    CHECK_INT(gw_vring_error_value(guest.ring), 8);
    gw_store16(at(&guest, AVAIL + RING_IDX), 9, memory_order_relaxed);
    broken_both_ways(&guest, GW_BROKEN_AVAIL_INDEX, GW_BROKEN_AVAIL_INDEX);
    CHECK_INT(gw_vring_discard(guest.ring, 1), GW_BROKEN_AVAIL_INDEX);
    CHECK_INT(gw_vring_arm(guest.ring, 0), GW_BROKEN_AVAIL_INDEX);
    CHECK_INT(gw_vring_room(guest.ring), GW_BROKEN_AVAIL_INDEX);
    CHECK_INT(gw_vring_linger(guest.ring, 1), GW_BROKEN_AVAIL_INDEX);
    close_guest(&guest);
}

static void test_words_for_every_result(void) {
    for (int result = GW_BROKEN_AVAIL_INDEX; result >= GW_BROKEN_ALIGNMENT; result--)
        CHECK(strcmp(gw_vring_strerror(result), "unknown") != 0);
    CHECK(strcmp(gw_vring_strerror(0), "unknown") == 0);
}

static void test_pop(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 65534);
    /* direct, then indirect across a region border; an empty descriptor with a bad address; data across regions */
    uint64_t table = B_GPA - 16 - 5;
    desc(&guest, 0, BUFFERS, 3, D_NEXT, 1);
    desc(&guest, 1, table, 48, D_INDIRECT | D_WRITE, 0);
    put_desc(&guest, table, 0, HOLE, 0, D_NEXT, 1);
    put_desc(&guest, table, 1, BUFFERS + 3, 3, D_NEXT, 2);
    put_desc(&guest, table, 2, B_GPA + 0x100, 1, 0, 0);
    memcpy(at(&guest, BUFFERS), "abcdef", 6);
    *at(&guest, B_GPA + 0x100) = 'g';
    desc(&guest, 2, B_GPA + 0x1000, 3, 0, 0);
    memcpy(at(&guest, B_GPA + 0x1000), "xyz", 3);
    desc(&guest, 3, C_GPA, C_SIZE, 0, 0);
    offer(&guest, 0);
    offer(&guest, 2);
    offer(&guest, 3);
    offer(&guest, 2);
    struct gw_burst burst = {0};
    CHECK_INT(gw_vring_pop(guest.ring, 2, MANY, MANY, &burst), 2);
    CHECK(burst.bytes == 16 + 10 && memcmp(burst.slab + 16, "abcdefgxyz", 10) == 0);
    gw_slab_free(burst.slab);
    CHECK_INT(used_idx(&guest), 0);
    CHECK_INT(pop_all(&guest, 0, MANY, MANY), 0);
    CHECK_INT(pop_all(&guest, MANY, 1, MANY), 1);
    CHECK_INT(pop_all(&guest, MANY, MANY, 2), 0); /* 3 bytes: dropped */
    CHECK_INT(gw_vring_counters(guest.ring)->dropped_long, 1);
    CHECK_INT(used_idx(&guest), 2);
    CHECK_INT(used_word(&guest, 1, 0), 2);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 0);
    /* a broken chain behind a good one is met in the next burst */
    offer(&guest, 2);
    offer(&guest, 9);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 1);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), GW_BROKEN_HEAD);
    close_guest(&guest);
}

static void test_pieces_and_work_are_bounded(void) {
    struct guest guest;
    open_guest(&guest, 1024);
    start(&guest, INDIRECT_AND_EVENT, 0);
    for (uint32_t i = 0; i < 1024; i++)
        desc(&guest, i, BUFFERS, i % 2, i < 1023 ? D_NEXT : 0, (uint16_t)(i + 1));
    for (uint32_t i = 0; i < 1024; i++)
        offer(&guest, 0);
    /* 512 pieces a chain in a scratch of 2*1024 + 64 + 4096, of which one longest chain stays free */
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 9);
    for (uint32_t i = 0; i < 1024; i++)
        desc(&guest, i, 0, 0, i < 1023 ? D_NEXT : 0, (uint16_t)(i + 1));
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), GW_WORK_MAX / 1024);
    /* a frame that would need too many crumbs is dropped */
    for (uint32_t i = 0; i < 1024; i++)
        desc(&guest, i, BUFFERS, i < 1011 ? 0 : 1, (uint16_t)(D_WRITE | (i < 1023 ? D_NEXT : 0)), (uint16_t)(i + 1));
    static uint8_t frame[1000];
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, sizeof frame), 1);
    CHECK_INT(gw_vring_counters(guest.ring)->dropped_no_fit, 1);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, 60), 1);
    CHECK_INT(used_word(&guest, 9 + GW_WORK_MAX / 1024, 1), 13);
    close_guest(&guest);


    /* a chain in more pieces than 2*num + 64: two descriptors over 61 regions of 16 bytes each */
    open_guest(&guest, 2);
    static uint8_t crumbs[16 * GW_REGIONS_MAX];
    uint32_t regions = guest.memory.count;
    for (uint32_t i = regions; i < GW_REGIONS_MAX; i++)
        guest.memory.region[i] = (struct gw_region){0x100000 + 16 * i, 16, UVA + 0x100000 + 16 * i, crumbs + 16 * i};
    guest.memory.count = GW_REGIONS_MAX;
    start(&guest, INDIRECT_AND_EVENT, 0);
    desc(&guest, 0, 0x100000 + 16 * regions, 16 * (GW_REGIONS_MAX - regions), 0, 1);
    desc(&guest, 1, 0x100000 + 16 * regions, 16 * (GW_REGIONS_MAX - regions), 0, 0);
    offer(&guest, 0);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), 1);
    desc(&guest, 0, 0x100000 + 16 * regions, 16 * (GW_REGIONS_MAX - regions), D_NEXT, 1);
    offer(&guest, 0);
    CHECK_INT(pop_all(&guest, MANY, MANY, MANY), GW_BROKEN_PIECES);
    guest.memory.count = regions;
    close_guest(&guest);
}

static void writable(struct guest *guest, uint32_t first, uint32_t count, uint32_t size) {
    for (uint32_t i = 0; i < count; i++) {
        desc(guest, first + i, C_GPA + (first + i) * size, size, D_WRITE, 0);
        offer(guest, (uint16_t)(first + i));
    }
}

static void test_push_parts(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    writable(&guest, 0, 3, 16);
    const void *external[] = {"EXT", ""};
    /* three frames: "ab" "EXT" "" | "" | nothing at all, then one too many */
    uint32_t words[] = {3, 2, 0, 1, 2, 3 | GW_PART_EXTERNAL, 0, 0 | GW_PART_EXTERNAL, 0, 1};
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, words, 4, 6, (const uint8_t *)"abz", 3, external, 2), 3);
    CHECK(memcmp(at(&guest, C_GPA), "abEXT", 6) == 0);
    CHECK_INT(used_word(&guest, 0, 1), 5);
    CHECK_INT(used_word(&guest, 2, 1), 0);
    CHECK_INT(used_idx(&guest), 3);
    CHECK_INT(gw_vring_counters(guest.ring)->shortages, 1);
    /* lies about the parts */
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, words, 4, 5, (const uint8_t *)"ab", 3, external, 2), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, words, 4, 6, (const uint8_t *)"ab", 2, external, 2), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, words, 4, 6, (const uint8_t *)"abz", 3, external, 1), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_MERGE, 0x10000, 0, words, 4, 6, (const uint8_t *)"abz", 3, external, 2), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_SPLIT, 8, GW_SPLIT_HEADER_MAX + 1, words, 4, 6, (const uint8_t *)"abz", 3, external, 2), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_SPLIT, 8, 11, words, 4, 6, (const uint8_t *)"abz", 3, external, 2), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, words, 0, 0, NULL, 0, NULL, 0), 0);
    /* one that does not fit, one that does, then a broken chain */
    writable(&guest, 3, 1, 16);
    offer(&guest, 9);
    uint32_t lengths[] = {1, 1, 1, 17, 2, 1};
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_ONE, 0, 0, lengths, 3, 3, (const uint8_t *)"12345678901234567ok!", 20, NULL, 0), 2);
    CHECK(memcmp(at(&guest, C_GPA + 48), "ok", 3) == 0);
    CHECK_INT(push_one(&guest, GW_PUSH_ONE, 0, 0, "x", 1), GW_BROKEN_HEAD);
    close_guest(&guest);
}

/* A volley is what gw_vring_push makes of the same frames, one by one. */
static void test_push_volley(void) {
    enum { HEADER = 16, AT = 10, NUMBER = 12, SIZE = 40, LAST = 23, COUNT = 6 };
    uint8_t headers[2 * HEADER], payload[(COUNT - 1) * SIZE + LAST];
    for (uint32_t i = 0; i < sizeof headers; i++)
        headers[i] = (uint8_t)(0x80 + i);
    for (uint32_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)i;
    const uint32_t first = 0xffffffe0; /* the number wraps */
    for (int mode = GW_PUSH_ONE; mode <= GW_PUSH_MERGE; mode++) {
        uint32_t size = mode == GW_PUSH_ONE ? 64 : 24, chains = mode == GW_PUSH_ONE ? COUNT : 3 * COUNT - 1;
        struct guest one, all;
        open_guest(&one, 32);
        open_guest(&all, 32);
        start(&one, INDIRECT_AND_EVENT, 65530);
        start(&all, INDIRECT_AND_EVENT, 65530);
        writable(&one, 0, chains, size);
        writable(&all, 0, chains, size);
        for (uint32_t i = 0; i < COUNT; i++) {
            uint8_t frame[HEADER + SIZE];
            uint32_t length = i + 1 < COUNT ? SIZE : LAST, number = first + i * SIZE;
            memcpy(frame, headers + (i + 1 < COUNT ? 0 : HEADER), HEADER);
            for (uint32_t b = 0; b < 4; b++)
                frame[NUMBER + b] = (uint8_t)(number >> (24 - 8 * b));
            memcpy(frame + HEADER, payload + i * SIZE, length);
            CHECK_INT(push_one(&one, mode, AT, 0, frame, HEADER + length), 1);
        }
        const void *parts[] = {payload, payload + 50, payload + 50, payload + 120};
        uint32_t lengths[] = {50, 0, 70, sizeof payload - 120};
        for (uint32_t i = 0; i < 4; i++)
            lengths[i] |= GW_PART_EXTERNAL;
        CHECK_INT(gw_vring_volley(all.ring, mode, AT, headers, HEADER, NUMBER, first, SIZE, LAST, COUNT, lengths, parts, 4), COUNT);
        CHECK_INT(used_idx(&all), used_idx(&one));
        CHECK(memcmp(at(&all, USED), at(&one, USED), 4 + 8 * 32) == 0);
        CHECK(memcmp(at(&all, C_GPA), at(&one, C_GPA), chains * size) == 0);
        CHECK(gw_vring_counters(all.ring)->bytes == gw_vring_counters(one.ring)->bytes);
        CHECK(gw_vring_counters(all.ring)->chains == gw_vring_counters(one.ring)->chains);
        CHECK(gw_vring_counters(all.ring)->bursts == 2); /* the first GW_VOLLEY_SHOWN, and the rest */
        close_guest(&one);
        close_guest(&all);
    }
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    const void *part[] = {payload};
    uint32_t length[] = {(2 * SIZE + LAST) | GW_PART_EXTERNAL};
#define VOLLEY(mode, at, header, number_at, last, count, lengths) \
    gw_vring_volley(guest.ring, mode, at, headers, header, number_at, 0, SIZE, last, count, lengths, part, 1)
    /* lies */
    uint32_t inside[] = {2 * SIZE + LAST};
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, inside), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST + 1, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 0, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 0x80000000, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_SPLIT, 0, HEADER, NUMBER, LAST, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_MERGE, HEADER - 1, HEADER, NUMBER, LAST, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_MERGE, 0x10000, HEADER, NUMBER, LAST, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, HEADER - 3, LAST, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, 0x10000, LAST, 3, length), GW_BAD_ARGUMENT);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, GW_VOLLEY_HEADER_MAX + 1, NUMBER, LAST, 3, length), GW_BAD_ARGUMENT);
    /* no room at all, room for two, one that never fits stays the caller's, and so does one behind a broken chain */
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), 0);
    CHECK_INT(gw_vring_counters(guest.ring)->shortages, 1);
    writable(&guest, 0, 2, 64);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), 2);
    writable(&guest, 2, 1, 64);
    desc(&guest, 3, C_GPA, 20, D_WRITE, 0);
    offer(&guest, 3);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), 1);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), 0);
    CHECK_INT(gw_vring_counters(guest.ring)->dropped_no_fit, 0);
    desc(&guest, 3, C_GPA, 64, D_WRITE, 0);
    offer(&guest, 99);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), 1);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), GW_BROKEN_HEAD);
    guest.index = (uint16_t)(guest.index + 100);
    gw_store16(at(&guest, AVAIL + RING_IDX), guest.index, memory_order_release);
    CHECK_INT(VOLLEY(GW_PUSH_ONE, 0, HEADER, NUMBER, LAST, 3, length), GW_BROKEN_AVAIL_INDEX);
    close_guest(&guest);
}

static void test_push_merge(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 65533);
    writable(&guest, 0, 4, 12);
    uint8_t frame[40];
    for (uint32_t i = 0; i < sizeof frame; i++)
        frame[i] = (uint8_t)(i + 1);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, sizeof frame), 1);
    uint8_t *got = at(&guest, C_GPA);
    CHECK(memcmp(got, frame, 10) == 0 && got[10] == 4 && got[11] == 0 && memcmp(got + 12, frame + 12, 28) == 0);
    CHECK_INT(used_word(&guest, 65533, 1), 12);
    CHECK_INT(used_word(&guest, 0, 1), 4);
    CHECK_INT(used_idx(&guest), 1);
    writable(&guest, 4, 1, 12);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, sizeof frame), 0);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, 11), 1); /* no header: dropped */
    CHECK_INT(used_idx(&guest), 1);
    writable(&guest, 5, 3, 12);
    writable(&guest, 0, 4, 12);
    uint8_t big[8 * 12 + 1] = {0};
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, big, sizeof big), 1); /* more than the whole ring: dropped */
    CHECK_INT(gw_vring_counters(guest.ring)->dropped_no_fit, 2);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, big, sizeof big - 1), 1);
    CHECK_INT(used_idx(&guest), 9);
    /* a header in crumbs, the count across two of them */
    for (uint32_t i = 0; i < 4; i++)
        desc(&guest, i, C_GPA + 0x100 * i, i == 3 ? 100 : i == 1 ? 7 : 4, (uint16_t)(D_WRITE | (i < 3 ? D_NEXT : 0)), (uint16_t)(i + 1));
    offer(&guest, 0);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, sizeof frame), 1);
    CHECK_INT(*at(&guest, C_GPA + 0x106), 1);
    CHECK_INT(*at(&guest, C_GPA + 0x200), 0);
    CHECK_INT(*at(&guest, C_GPA + 0x201), frame[12]);
    writable(&guest, 0, 1, 11);
    CHECK_INT(push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, sizeof frame), GW_BROKEN_SMALL);
    CHECK_INT(gw_vring_error_value(guest.ring), 11);
    close_guest(&guest);
}

static void test_push_split(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    writable(&guest, 0, 3, 20);
    uint8_t packet[40];
    for (uint32_t i = 0; i < sizeof packet; i++)
        packet[i] = (uint8_t)(i + 1);
    /* header of 10 bytes with le32 at 4; in parts "123" "" "4567890 payload..." */
    uint32_t words[] = {3, 3, 0, 37};
    CHECK_INT(gw_vring_push(guest.ring, GW_PUSH_SPLIT, 4, 10, words, 1, 3, packet, 40, NULL, 0), 1);
    for (uint32_t i = 0; i < 3; i++) {
        uint8_t *got = at(&guest, C_GPA + 20 * i);
        CHECK(memcmp(got, packet, 4) == 0 && got[4] == 10 && got[5] == 0 && got[7] == 0 && got[8] == 9);
        CHECK(memcmp(got + 10, packet + 10 + 10 * i, 10) == 0);
        CHECK_INT(used_word(&guest, (uint16_t)i, 1), 20);
    }
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 9), 1); /* dropped */
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 11), 0);
    CHECK_INT(gw_vring_partial(guest.ring), 0);
    writable(&guest, 3, 1, 10);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 11), GW_BROKEN_SMALL);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 10), 1);
    writable(&guest, 4, 1, 9);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 10), GW_BROKEN_SMALL);
    close_guest(&guest);
    /* What there is is used; the marks at 6 are those of the last piece. */
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    writable(&guest, 0, 2, 20);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 0 | 6 << 16, 10, packet, 40), 0);
    CHECK_INT(gw_vring_partial(guest.ring), 20);
    CHECK(at(&guest, C_GPA)[6] == 0 && at(&guest, C_GPA + 20)[9] == 0 && at(&guest, C_GPA + 20)[5] == packet[5]);
    writable(&guest, 2, 1, 20);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 0 | 6 << 16, 10, packet, 20), 1);
    CHECK_INT(gw_vring_partial(guest.ring), 0);
    CHECK(memcmp(at(&guest, C_GPA + 46), packet + 6, 4) == 0);
    /* What came before a chain that breaks the ring is good. */
    writable(&guest, 3, 1, 20);
    writable(&guest, 4, 1, 9);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 40), 0);
    CHECK_INT(gw_vring_partial(guest.ring), 10);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4, 10, packet, 30), GW_BROKEN_SMALL);
    CHECK_INT(push_one(&guest, GW_PUSH_SPLIT, 4 | 7 << 16, 10, packet, 30), GW_BAD_ARGUMENT);
    close_guest(&guest);
}

/* Straight from a socket: each chain begins with the header, its length patched, and the rest stays available. */
static void test_receive(void) {
    struct guest guest;
    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    int pair[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    const uint8_t header[12] = {1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12};
    int64_t got;
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 1000, pair[0], 100, &got), 0); /* no chain */
    CHECK_INT(got, -ENOBUFS);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 9, 1000, pair[0], 100, &got), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_receive(guest.ring, header, 65, 4, 1000, pair[0], 100, &got), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 0, pair[0], 100, &got), GW_BAD_ARGUMENT);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, UINT32_MAX, 1000, pair[0], 100, &got), GW_BAD_ARGUMENT);
    /* Three chains: 8 + 20 bytes in two pieces, the header across them; 12 + 50; 12 + 100, of which `most` takes 60. */
    desc(&guest, 0, BUFFERS, 8, D_WRITE | D_NEXT, 1);
    desc(&guest, 1, BUFFERS + 100, 24, D_WRITE, 0);
    desc(&guest, 2, BUFFERS + 200, 62, D_WRITE, 0);
    desc(&guest, 3, BUFFERS + 300, 112, D_WRITE, 0);
    offer(&guest, 0);
    offer(&guest, 2);
    offer(&guest, 3);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), 0); /* nothing there */
    CHECK_INT(got, -EAGAIN);
    CHECK_INT(gw_vring_room(guest.ring), 3);
    uint8_t text[256];
    for (int i = 0; i < 256; i++)
        text[i] = (uint8_t)i;
    CHECK_INT(write(pair[1], text, 30), 30);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), 2);
    CHECK_INT(got, 30);
    CHECK(memcmp(at(&guest, BUFFERS), header, 4) == 0 && at(&guest, BUFFERS + 4)[0] == 20);
    CHECK(memcmp(at(&guest, BUFFERS + 100), header + 8, 4) == 0);
    CHECK(memcmp(at(&guest, BUFFERS + 104), text, 20) == 0);
    CHECK_INT(at(&guest, BUFFERS + 204)[0], 10);
    CHECK(memcmp(at(&guest, BUFFERS + 212), text + 20, 10) == 0);
    CHECK_INT(gw_vring_room(guest.ring), 1);
    CHECK_INT(write(pair[1], text, 100), 100);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], 0, &got), 0); /* nothing wanted */
    CHECK_INT(got, -ENOBUFS);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), 1);
    CHECK_INT(got, 60);
    CHECK_INT(at(&guest, BUFFERS + 304)[0], 60);
    CHECK(memcmp(at(&guest, BUFFERS + 312), text, 60) == 0);
    /* A chain of two, the second broken: the first is used, then the ring is. */
    desc(&guest, 4, BUFFERS + 500, 20, D_WRITE, 0);
    desc(&guest, 5, BUFFERS + 600, 12, D_WRITE, 0);
    offer(&guest, 4);
    offer(&guest, 5);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), 1);
    CHECK_INT(got, 8);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), GW_BROKEN_SMALL);
    close(pair[1]);
    close(pair[0]);
    close_guest(&guest);

    open_guest(&guest, 8);
    start(&guest, INDIRECT_AND_EVENT, 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    close(pair[1]);
    desc(&guest, 0, BUFFERS, 100, D_WRITE, 0);
    offer(&guest, 0);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), 0);
    CHECK_INT(got, 0); /* the end */
    CHECK_INT(gw_vring_room(guest.ring), 1);
    close(pair[0]);
    gw_store16(at(&guest, AVAIL + RING_IDX), 100, memory_order_release); /* a lie */
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, 60, pair[0], MANY, &got), GW_BROKEN_AVAIL_INDEX);
    close_guest(&guest);

    /* One chain in more pieces than one call takes: what fits is asked for, nothing beyond. */
    open_guest(&guest, 1024);
    start(&guest, INDIRECT_AND_EVENT, 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    for (uint16_t i = 0; i < 300; i++)
        desc(&guest, i, BUFFERS + 16u * i, 16, (uint16_t)(D_WRITE | (i < 299 ? D_NEXT : 0)), (uint16_t)(i + 1));
    offer(&guest, 0);
    static uint8_t plenty[8000];
    CHECK_INT(write(pair[1], plenty, sizeof plenty), sizeof plenty);
    offer(&guest, 0);
    CHECK_INT(gw_vring_receive(guest.ring, header, 12, 4, MANY, pair[0], MANY, &got), 1);
    CHECK_INT(got, 256 * 16 - 12);
    CHECK_INT(at(&guest, BUFFERS + 4)[0] | at(&guest, BUFFERS + 5)[0] << 8, 256 * 16 - 12);
    close(pair[0]);
    close(pair[1]);
    close_guest(&guest);
}

/* Wrong on purpose, and wrong in the way that was asked for. */
static void test_faults(void) {
    struct guest guest;
    open_guest(&guest, 8);
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_ID, 1, 9), 0); /* not in its place yet */
    start(&guest, INDIRECT_AND_EVENT, 0);
    for (uint16_t i = 0; i < 5; i++) {
        desc(&guest, i, BUFFERS + 100u * i, 100, D_WRITE, 0);
        offer(&guest, i);
    }
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_ID, 1, 4711), 1);
    CHECK_INT(gw_load16(at(&guest, USED + 2), memory_order_relaxed), 1);
    CHECK(memcmp(at(&guest, USED + 4), &(uint32_t){4711}, 4) == 0);
    CHECK_INT(gw_vring_room(guest.ring), 5);
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_ID, 100, 4711), 8);
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_SHORT, 2, 3), 2);
    CHECK_INT(gw_load16(at(&guest, USED + 2), memory_order_relaxed), 11);
    CHECK(memcmp(at(&guest, USED + 4 + 8 * 2), &(uint32_t){1}, 4) == 0);
    CHECK(memcmp(at(&guest, USED + 8 + 8 * 2), &(uint32_t){3}, 4) == 0);
    CHECK_INT(gw_vring_room(guest.ring), 3);
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_LOSE, 100, 0), 3);
    CHECK_INT(gw_load16(at(&guest, USED + 2), memory_order_relaxed), 11);
    CHECK_INT(gw_vring_room(guest.ring), 0);
    offer(&guest, 99); /* the guest's own fault */
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_SHORT, 1, 0), GW_BROKEN_HEAD);
    gw_store16(at(&guest, AVAIL + RING_IDX), 100, memory_order_release);
    CHECK_INT(gw_vring_fault(guest.ring, GW_FAULT_LOSE, 1, 0), GW_BROKEN_AVAIL_INDEX);
    close_guest(&guest);
}

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

static void test_dirty_log(void) {
    struct guest guest;
    open_guest(&guest, 8);
    uint8_t bits[8] = {0};
    struct gw_log log = {bits, sizeof bits, 0};
    gw_vring_set_log(guest.ring, &log);
    gw_vring_set_features(guest.ring, INDIRECT_AND_EVENT | 1ull << F_LOG_ALL);
    /* the used ring is logged at page 5; where it wraps, both of its ends are */
    CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA, UVA + AVAIL, UVA + USED, 1, 0x5000), 0);
    CHECK_INT(gw_vring_start(guest.ring, 0), 0);
    CHECK_INT(bits[0], 1 << 5);
    desc(&guest, 0, BUFFERS + 0xff0, 0x20, D_WRITE, 0);
    offer(&guest, 0);
    CHECK_INT(push_one(&guest, GW_PUSH_ONE, 0, 0, "0123456789abcdef0", 17), 1);
    CHECK_INT(bits[1], 1 << 0 | 1 << 1);
    /* what a socket put there too, over two pieces and a page's border */
    memset(bits, 0, sizeof bits);
    int pair[2];
    int64_t got;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK_INT(write(pair[1], "0123456789abcdef0123456789", 26), 26);
    desc(&guest, 1, BUFFERS, 8, D_WRITE | D_NEXT, 2);
    desc(&guest, 2, BUFFERS + 0xff0, 0x20, D_WRITE, 0);
    offer(&guest, 1);
    CHECK_INT(gw_vring_receive(guest.ring, (const uint8_t *)"header..", 8, 4, 100, pair[0], 100, &got), 1);
    CHECK_INT(got, 26);
    CHECK_INT(bits[1], 1 << 0 | 1 << 1);
    gw_vring_set_log(guest.ring, NULL);
    offer(&guest, 0);
    CHECK_INT(push_one(&guest, GW_PUSH_ONE, 0, 0, "x", 1), 1);
    CHECK_INT(write(pair[1], "x", 1), 1);
    offer(&guest, 1);
    CHECK_INT(gw_vring_receive(guest.ring, (const uint8_t *)"header..", 8, 4, 100, pair[0], 100, &got), 1);
    close(pair[0]);
    close(pair[1]);
    /* bounds: CVE-2020-10722 */
    memset(bits, 0, sizeof bits);
    gw_log_mark(&log, 63 << 12, 0x100000);
    CHECK_INT(bits[7], 0x80);
    gw_log_mark(&log, 64 << 12, 1);
    gw_log_mark(&log, UINT64_MAX, 1);
    gw_log_mark(&log, UINT64_MAX, 2);
    gw_log_mark(&log, 0, 0);
    for (int i = 0; i < 7; i++)
        CHECK_INT(bits[i], 0);
    /* an address that overflows disables the used ring's marks */
    CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA, UVA + AVAIL, UVA + USED, 1, UINT64_MAX - 8), 0);
    gw_vring_set_log(guest.ring, &log);
    CHECK_INT(gw_vring_suppress(guest.ring), 0);
    CHECK_INT(bits[0], 0);
    close_guest(&guest);
}

static void test_mapping(void) {
    CHECK(gw_map(-1, 4096, 0) == NULL && errno == EBADF);
    CHECK(gw_map(-1, 4096, UINT64_MAX) == NULL && errno == EOVERFLOW);
    FILE *file = tmpfile();
    CHECK(file != NULL && ftruncate(fileno(file), 8192) == 0);
    uint8_t *start = gw_map(fileno(file), 4096, 4096);
    CHECK(start != NULL);
    start[0] = 'x';
    char byte = 0;
    CHECK(pread(fileno(file), &byte, 1, 4096) == 1 && byte == 'x');
    gw_unmap(start, 4096);
    fclose(file);
}

static void test_checksum(void) {
    static const uint8_t bytes[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}; /* RFC 1071 section 3 */
    CHECK_INT(gw_sum(bytes, 8, 0), 0xddf2);
    CHECK_INT(gw_sum(bytes, 0, 0x12345), 0x2346);
    CHECK_INT(gw_sum(bytes, 3, 0), 0xf201);
    const void *parts[] = {bytes, bytes + 1, bytes + 1, bytes + 4};
    const uint32_t lengths[] = {1, 0, 3, 4};
    CHECK_INT(gw_sum_parts(parts, lengths, 4, 0), 0xddf2);
    const struct gw_sum_job jobs[] = {{0, 8, 0}, {8, 0, 7}, {8, 1, 0}, {9, 0, 0}};
    uint32_t sums[4];
    gw_sum_jobs(bytes, 8, jobs, 4, sums);
    CHECK(sums[0] == 0xddf2 && sums[1] == 7 && sums[2] == 0x10000 && sums[3] == 0x10000);
}

int main(void) {
    test_allocation_failures();
    test_nothing_without_a_place();
    test_places();
    test_broken_chains();
    test_words_for_every_result();
    test_pop();
    test_pieces_and_work_are_bounded();
    test_push_parts();
    test_push_volley();
    test_push_merge();
    test_push_split();
    test_receive();
    test_faults();
    test_notifications();
    test_owed_calls(INDIRECT_AND_EVENT);
    test_owed_calls(0);
    test_owed_calls_nobody_needs_any_more(INDIRECT_AND_EVENT);
    test_owed_calls_nobody_needs_any_more(0);
    test_a_call_owed_for_more_chains_than_indices();
    test_dirty_log();
    test_mapping();
    test_checksum();
    puts("ok");
    return 0;
}
