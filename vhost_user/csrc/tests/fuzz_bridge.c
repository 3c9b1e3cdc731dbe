/* SPDX-License-Identifier: MPL-2.0 */
/* Forwarding between two guests with any bytes in their memory: no access outside it, no answer that contradicts the rings,
 * nobody stopped for what the other one wrote. The input is a few bytes of set-up and both guests' memory from the ring on.
 *
 * With -DSTANDALONE a program of its own that feeds itself guests that are almost right (argument: rounds). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bridge.h"
#include "../ring.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { UVA = 0x100000, ROUNDS = 3, HOLE_SIZE = 64, SMALL_REGION = 96, LONGEST = 1200 };

struct setup {
    uint8_t sizes, features, port, accept, mtu, bounds, base[2];
};

struct side {
    uint32_t num;
    uint64_t avail, used, size;
    struct gw_memory memory;
    struct gw_vring *ring;
    uint8_t bits[2];
    struct gw_log log;
};

static struct gw_region region(uint64_t gpa, const uint8_t *content, size_t size) {
    void *host = NULL; /* of its own, so that ASan sees the first byte beyond */
    CHECK(posix_memalign(&host, 16, size) == 0);
    memset(host, 0, size);
    if (content != NULL)
        memcpy(host, content, size);
    return (struct gw_region){gpa, size, gpa + UVA, host};
}

/* A guest whose memory is these bytes and a small region behind a hole; false if they are too few. */
static int open_side(struct side *side, const uint8_t *data, size_t size, uint32_t exponent, uint64_t features,
                     uint32_t base) {
    *side = (struct side){.num = 1u << exponent, .size = size};
    side->avail = 16 * side->num;
    side->used = (side->avail + 6 + 2 * side->num + 3) & ~3ull;
    if (size < side->used + 6 + 8 * side->num)
        return 0;
    side->memory.count = 2;
    side->memory.region[0] = region(0, data, size);
    side->memory.region[1] = region(size + HOLE_SIZE, NULL, SMALL_REGION);
    side->ring = gw_vring_new(16);
    CHECK(side->ring != NULL);
    side->log = (struct gw_log){side->bits, sizeof side->bits, 0};
    gw_vring_set_features(side->ring, features);
    gw_vring_set_log(side->ring, &side->log);
    CHECK(gw_vring_place(side->ring, &side->memory, side->num, UVA, UVA + side->avail, UVA + side->used, 0, 0) == 0);
    (void)gw_vring_start(side->ring, base);
    return 1;
}

static void close_side(struct side *side) {
    if (side->ring != NULL)
        gw_vring_free(side->ring);
    for (uint32_t i = 0; i < side->memory.count; i++)
        free(side->memory.region[i].host);
}

static void forward(const struct setup *setup, struct side *from, struct side *to) {
    static struct gw_routes routes;
    static uint8_t scratch[LONGEST + 64];
    static const uint8_t key[BRIDGE_KEY] = {2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4};
    CHECK(gw_route_put(&routes, key, 3, 1, 10) == 0);
    uint64_t drops[VNET_DROPS] = {0};
    struct gw_steer steer = {.slots = 1};
    gw_steer_clear(&steer);
    struct gw_outlet outlet = {.ring = to->ring, .usable = 1}, *outlets[] = {&outlet};
    struct gw_port port = {.outlets = &outlet, .steer = &steer, .count = 1, .guest_csum = setup->port & 1,
                           .merge = setup->port >> 1 & 1, .gso = setup->port >> 2, .mtu = setup->mtu * 6u};
    struct gw_port *ports[] = {&port};
    struct vnet_inbox inbox = {.accept = setup->accept, .mtu = setup->mtu * 8u, .drops = drops};
    struct gw_bridge job = {.source = from->ring, .routes = &routes, .ports = ports, .outlets = outlets,
                             .outlet_count = 1, .steer = &steer, .inbox = &inbox, .usable = 1,
                             .max_bytes = setup->bounds * 16u, .max_chain = LONGEST, .scratch = scratch};
    for (int round = 0; round < ROUNDS; round++) {
        uint16_t base = from->ring->last_avail, there = to->ring->last_avail;
        int answer = gw_bridge(NULL, &job, 1, 0, 1 + setup->bounds % 16u, 5);
        uint16_t taken = (uint16_t)(from->ring->last_avail - base), put = (uint16_t)(to->ring->last_avail - there);
        CHECK(taken == job.taken && taken <= from->num && put <= to->num);
        CHECK((uint16_t)(from->ring->used_idx - from->ring->last_avail) == (uint16_t)(from->ring->used_idx - base - taken));
        CHECK(job.frames <= job.taken && (job.frames > 0) == ((answer & BRIDGE_MOVED) != 0));
        CHECK(job.frames == (job.hits ? job.count[3] : 0));
        CHECK(put == 0 || job.frames > 0);
        CHECK(job.result == 0 || (job.result < GW_BROKEN && taken == 0));
        CHECK(outlet.result == 0 || outlet.result < GW_BROKEN);
        CHECK((outlet.result < 0) == (job.stop == GW_STOP_OUTLET) && outlet.lock == 0 && outlet.taken == 0);
        CHECK((job.stop > GW_STOP_BUDGET) == ((answer & BRIDGE_LEFT) != 0));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct setup setup;
    if (size < sizeof setup + 2)
        return 0;
    memcpy(&setup, data, sizeof setup);
    data += sizeof setup;
    size -= sizeof setup;
    size_t half = size / 2;
    struct side from = {0}, to = {0};
    uint64_t features = (uint64_t)(setup.features & 15) << F_LOG_ALL;
    if (open_side(&from, data, half, setup.sizes % 5, features, setup.base[0] * 257u) &&
        open_side(&to, data + half, half, setup.sizes / 5 % 5, features, setup.base[1] * 257u))
        forward(&setup, &from, &to);
    close_side(&from);
    close_side(&to);
    return 0;
}

#ifdef STANDALONE
#include "draw.h"

/* A guest that is mostly right; `writable` is the direction of its buffers, which lie behind its ring. */
static void make_side(uint8_t *memory, uint32_t size, uint32_t num, uint32_t base, uint32_t writable) {
    uint32_t avail = 16 * num, used = (avail + 6 + 2 * num + 3) & ~3u, first = used + 6 + 8 * num;
    memset(memory, 0, size);
    for (uint32_t i = 0; i < num; i++) {
        uint64_t gpa = first + draw(3) * 400;
        if (draw(25) == 0)
            gpa = draw(2) ? size - draw(20) : size + HOLE_SIZE + draw(SMALL_REGION);
        uint32_t length = draw(10) ? 12 + draw(400) : draw(20);
        put(memory + 16 * i, gpa, 8);
        put(memory + 16 * i + 8, length, 4);
        put(memory + 16 * i + 12, (draw(4) == 0) | (draw(60) ? writable : !writable) << 1, 2);
        put(memory + 16 * i + 14, draw(num), 2);
        put(memory + avail + 4 + 2 * i, draw(80) ? i : draw(70000), 2);
    }
    put(memory + avail + 2, base + (draw(30) ? draw(num + 1) : draw(65536)), 2);
    put(memory + used + 2, base, 2);
    for (uint32_t i = 0; i < 3 && !writable; i++) {
        uint8_t *header = memory + first + 400 * i, *frame = header + 12;
        header[0] = (uint8_t)draw(3);
        header[1] = (uint8_t[]){0, 0, 1, 4, 5, 0x81}[draw(6)];
        put(header + 4, draw(2) ? 100 : draw(300), 2);
        put(header + 6, draw(4) ? 34 : draw(100), 2);
        put(header + 8, draw(2) ? 16 : 6, 2);
        memset(frame, 2, 6);
        memset(frame + 6, draw(20) ? 4 : 5, 6);
        static const uint8_t ip[] = {8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64};
        memcpy(frame + 12, ip, sizeof ip);
        frame[17] = (uint8_t)draw(256);
        frame[23] = draw(2) ? 6 : 17;
        frame[46] = 0x50;
    }
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 100000;
    enum { SIDE = 2048 };
    static uint8_t input[sizeof(struct setup) + 2 * SIDE];
    for (long i = 0; i < rounds; i++) {
        uint32_t from = draw(5), to = draw(5), bases[2] = {draw(256), draw(256)};
        struct setup setup = {(uint8_t)(from + 5 * to), (uint8_t)draw(16), (uint8_t)draw(256), (uint8_t)draw(64),
                              (uint8_t)(draw(4) ? 180 : draw(256)), (uint8_t)draw(256), {(uint8_t)bases[0], (uint8_t)bases[1]}};
        memcpy(input, &setup, sizeof setup);
        make_side(input + sizeof setup, SIDE, 1u << from, bases[0] * 257, 0);
        make_side(input + sizeof setup + SIDE, SIDE, 1u << to, bases[1] * 257, 1);
        LLVMFuzzerTestOneInput(input, sizeof input);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
#endif
