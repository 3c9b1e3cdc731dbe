/* SPDX-License-Identifier: MPL-2.0 */
/* The rings against any bytes a guest could have in its memory: no read or write outside it, no answer that contradicts
 * the ring's state. The input is a few bytes of set-up, a list of calls, and the guest's memory from the ring on.
 *
 * With -DSTANDALONE a program of its own that feeds itself rings that are almost right (argument: rounds). Build with the
 * rings' files, see c_programs.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ring.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Region A holds the ring and is as large as the input says it is; B follows it immediately; C lies behind a hole. Small,
 * so that single bytes of an address make the difference. */
enum { B_SIZE = 48, HOLE_SIZE = 64, C_SIZE = 80, MAX_OPS = 8, UVA = 0x10000 };

struct setup {
    uint8_t size_exponent, features, base_low, base_high, log, ops;
};

static struct gw_region region(uint64_t gpa, const uint8_t *content, size_t size) {
    void *host = NULL; /* of its own, so that ASan sees the first byte beyond */
    CHECK(posix_memalign(&host, 16, size) == 0);
    memset(host, 0, size);
    if (content != NULL)
        memcpy(host, content, size);
    return (struct gw_region){gpa, size, gpa + UVA, host};
}

/* Some chains go apart, behind headers of a length they chose themselves. */
static uint32_t choose(struct gw_apart *apart, const uint8_t *chain, uint32_t got, uint32_t length) {
    CHECK(got == (length < GW_APART_HEAD ? length : GW_APART_HEAD));
    if (got < 2 || chain[0] % 4 == 0)
        return 0;
    if (chain[0] % 4 == 1 && apart->chains > 0)
        return GW_APART_LEAVE;
    return 1 + chain[1] % got;
}

static void call(struct gw_vring *ring, uint8_t op, uint8_t argument) {
    static const uint8_t frame[600];
    uint32_t num = ring->num;
    uint16_t base = ring->last_avail, used = ring->used_idx;
    int result, most = (int)num;
    if (op % 8 < 2) {
        uint32_t small[16];
        struct gw_burst burst = {.small = (uint8_t *)small, .small_size = op & 64 ? sizeof small : 0};
        static uint8_t ground[(1 << 19) + (1 << 16)];
        struct gw_apart apart = {.header = choose, .at = ground};
        if (argument & 1)
            burst.apart = &apart;
        result = gw_vring_pop(ring, op & 8 ? 2 : 256, op & 16 ? 40 : 1 << 19, op & 32 ? 100 : 1 << 16, &burst);
        if (result > 0) {
            const uint32_t *record = burst.slab == NULL ? small : (const uint32_t *)(void *)burst.slab;
            uint64_t offset = 0;
            for (int i = 0; i < result; i++) {
                CHECK(record[2 * i] == offset);
                offset += record[2 * i + 1];
            }
            CHECK(burst.bytes == 8 * (uint64_t)result + offset);
            free(burst.slab);
        } else
            CHECK(burst.slab == NULL);
    } else if (op % 8 < 5) {
        uint32_t sizes[3] = {argument, argument * 2u, 44};
        uint32_t words[6] = {1, 1, 1, sizes[0], sizes[1] | (op & 8 ? GW_PART_EXTERNAL : 0), sizes[2]};
        const void *external[1] = {frame};
        uint64_t blob = sizes[0] + sizes[2] + (op & 8 ? 0 : sizes[1]);
        static const uint8_t zeros[1200];
        int mode = op % 8 - 2;
        result = gw_vring_push(ring, mode, mode == GW_PUSH_SPLIT ? 24 : 10, mode == GW_PUSH_SPLIT ? 44 : 0, words, 3, 3,
                               zeros, blob, external, op & 8 ? 1 : 0);
        most = 3;
    } else if (op % 8 == 5)
        result = gw_vring_discard(ring, argument);
    else if (op % 8 == 6) {
        result = gw_vring_arm(ring, argument);
        most = 1;
    } else
        result = argument & 1 ? gw_vring_room(ring) : gw_vring_suppress(ring);
    CHECK(result <= most);
    CHECK(result >= 0 || (result < GW_BROKEN && result >= GW_BROKEN_LENGTH) || result == GW_BROKEN_SMALL);
    uint16_t taken = (uint16_t)(ring->last_avail - base);
    CHECK(taken <= num);
    CHECK(taken == (uint16_t)(ring->used_idx - used));
    CHECK(result >= 0 || taken == 0);
    CHECK(ring->slab == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct setup setup;
    if (size < sizeof setup + 2 * MAX_OPS)
        return 0;
    memcpy(&setup, data, sizeof setup);
    const uint8_t *ops = data + sizeof setup;
    data += sizeof setup + 2 * MAX_OPS;
    size -= sizeof setup + 2 * MAX_OPS;
    uint32_t num = 1u << setup.size_exponent % 5;
    /* desc, avail and used one behind the other, then whatever else the input has */
    uint64_t avail = 16 * num, used = avail + 6 + 2 * num;
    used += -used & 3;
    uint64_t end = used + 6 + 8 * num;
    if (size < end)
        return 0;
    struct gw_memory memory = {.count = 3};
    memory.region[0] = region(0, data, size);
    memory.region[1] = region(size, NULL, B_SIZE);
    memory.region[2] = region(size + B_SIZE + HOLE_SIZE, NULL, C_SIZE);
    uint8_t bits[2];
    struct gw_log log = {bits, sizeof bits, 0};
    struct gw_vring *ring = gw_vring_new(16);
    CHECK(ring != NULL);
    uint64_t features = (uint64_t)(setup.features & 7) << F_LOG_ALL; /* bit 27 means nothing */
    features |= (uint64_t)(setup.features >> 3 & 1) << F_EVENT_IDX;
    gw_vring_set_features(ring, features);
    if (setup.log & 1)
        gw_vring_set_log(ring, &log);
    CHECK(gw_vring_place(ring, &memory, num, UVA, UVA + avail, UVA + used, setup.log >> 1 & 1,
                         setup.log & 4 ? 0x3ff8 : UINT64_MAX - 7) == 0);
    (void)gw_vring_start(ring, setup.base_low | (uint32_t)setup.base_high << 8);
    for (uint32_t i = 0; i < setup.ops % (MAX_OPS + 1u); i++)
        call(ring, ops[2 * i], ops[2 * i + 1]);
    gw_vring_free(ring);
    for (uint32_t i = 0; i < memory.count; i++)
        free(memory.region[i].host);
    return 0;
}

#ifdef STANDALONE
#include "draw.h"

/* Descriptors that mostly make sense; what follows the ring serves as indirect tables and buffers. */
static size_t make(uint8_t *input) {
    uint32_t exponent = draw(5), num = 1u << exponent;
    uint32_t base = draw(4) ? draw(65536) : 65535 - draw(4);
    uint8_t *at = input;
    uint8_t setup[] = {(uint8_t)exponent, (uint8_t)(draw(8) ? 12 | draw(2) : draw(16)), (uint8_t)base, (uint8_t)(base >> 8),
                       (uint8_t)draw(8), (uint8_t)(1 + draw(MAX_OPS))};
    memcpy(at, setup, sizeof setup);
    at += sizeof setup;
    uint32_t direction = draw(2); /* most calls and buffers go one way */
    for (int i = 0; i < MAX_OPS; i++) {
        *at++ = (uint8_t)((draw(4) ? (direction ? 2 + draw(3) : 0) : draw(8)) | draw(16) << 3);
        *at++ = (uint8_t)draw(draw(2) ? 60 : 256);
    }
    uint8_t *memory = at;
    uint64_t avail = 16 * num, used = avail + 6 + 2 * num;
    used += -used & 3;
    uint64_t end = used + 6 + 8 * num, size = end + 400;
    memset(memory, 0, size);
    uint32_t tables = (uint32_t)end + draw(16);
    for (uint32_t i = 0; i < num + 8; i++) {
        uint8_t *desc = i < num ? memory + 16 * i : memory + tables + 16 * (i - num);
        uint32_t limit = i < num ? num : 4;
        uint64_t gpa = draw(20) ? draw((uint32_t)size + B_SIZE) : draw(2) ? size + draw(250) : UINT64_MAX - draw(20);
        uint32_t length = draw(20) ? draw(70) : draw(2) ? 0xffffffff - draw(3) : draw(1000);
        uint32_t flags = (draw(3) ? 0 : 1) | (draw(30) ? direction : !direction) << 1;
        if (i < num && draw(3) == 0) {
            flags = 4 | (draw(15) ? 0 : 1) | draw(2) << 1;
            gpa = tables + 16 * draw(4);
            length = 16 * (draw(10) ? 1 + draw(4) : draw(20));
        }
        put(desc, gpa, 8);
        put(desc + 8, length, 4);
        put(desc + 12, draw(40) ? flags : draw(16), 2);
        put(desc + 14, draw(30) ? draw(limit) : draw(70000), 2);
    }
    put(memory + avail, draw(2), 2);
    put(memory + avail + 2, base + (draw(20) ? draw(num + 1) : draw(65536)), 2);
    for (uint32_t i = 0; i < num; i++)
        put(memory + avail + 4 + 2 * i, draw(50) ? draw(num) : draw(65536), 2);
    put(memory + avail + 4 + 2 * num, base + draw(8), 2);
    put(memory + used + 2, draw(2) ? base : draw(65536), 2);
    return (size_t)(memory - input) + size;
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 100000;
    static uint8_t input[4096];
    for (long i = 0; i < rounds; i++)
        LLVMFuzzerTestOneInput(input, make(input));
    printf("%ld rounds\n", rounds);
    return 0;
}
#endif
