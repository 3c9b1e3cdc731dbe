/* SPDX-License-Identifier: MPL-2.0 */
/* Every path of the rings without Python: built with ASan and UBSan, and for branch coverage. Here: where a ring is, what
 * its chains may be, what comes from the guest; test_push.c has what goes to it, test_notify.c who is told when.
 * Allocation is made to fail by wrapping malloc and calloc at link time. */
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
    test_faults();
    test_dirty_log();
    test_mapping();
    test_checksum();
    puts("ok");
    return 0;
}
