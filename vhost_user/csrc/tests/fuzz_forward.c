/* SPDX-License-Identifier: MPL-2.0 */
/* Rings and sockets, against any bytes a guest could have in its memory: what `forward` sends is what `pop` would have
 * handed out, no byte outside guest memory is touched either way, and the ring's state fits the answer. The input is a few
 * bytes of set-up, a list of calls, and the guest's memory from the ring on.
 *
 * With -DSTANDALONE a program of its own that feeds itself packets that are almost right (argument: rounds). Build with the
 * rings' files, see c_programs.py. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ring.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Region A holds the ring and is as large as the input says it is; B follows it immediately; C lies behind a hole. */
enum { B_SIZE = 80, HOLE_SIZE = 64, C_SIZE = 80, MAX_OPS = 8, UVA = 0x10000, HEADER = 44, MOST = 300, ROOM = 1 << 16 };

struct setup {
    uint8_t size_exponent, features, base_low, base_high, log, ops;
};

static int pair[2];          /* we are pair[0]; the program is pair[1] */
static uint8_t got[2 * ROOM]; /* more than the ring and the socket together ever hold */

static void fill_memory(struct gw_memory *memory, const uint8_t *content, size_t size) {
    const uint64_t gpas[] = {0, size, size + B_SIZE + HOLE_SIZE}, sizes[] = {size, B_SIZE, C_SIZE};
    *memory = (struct gw_memory){.count = 3};
    for (int i = 0; i < 3; i++) {
        void *host = NULL; /* of its own, so that ASan sees the first byte beyond */
        CHECK(posix_memalign(&host, 16, sizes[i]) == 0);
        memset(host, 0, sizes[i]);
        if (i == 0)
            memcpy(host, content, size);
        memory->region[i] = (struct gw_region){gpas[i], sizes[i], gpas[i] + UVA, host};
    }
}

static void empty_memory(struct gw_memory *memory) {
    for (uint32_t i = 0; i < memory->count; i++)
        free(memory->region[i].host);
}

/* What `pop` makes of the same memory at the same place: records as it says them, or NULL. */
static uint8_t *popped(const struct gw_vring *ring, uint64_t features, uint64_t max_chain, int *records) {
    struct gw_memory copy = {.count = ring->memory->count};
    for (uint32_t i = 0; i < copy.count; i++) {
        const struct gw_region *region = &ring->memory->region[i];
        copy.region[i] = *region;
        CHECK((copy.region[i].host = aligned_alloc(16, (region->size + 15) & ~(size_t)15)) != NULL);
        memcpy(copy.region[i].host, region->host, region->size);
    }
    uint64_t desc = (uint64_t)(ring->desc - ring->memory->region[0].host) + UVA;
    uint64_t avail = (uint64_t)(ring->avail - ring->memory->region[0].host) + UVA;
    uint64_t used = (uint64_t)(ring->used - ring->memory->region[0].host) + UVA;
    struct gw_vring *twin = gw_vring_new(16);
    CHECK(twin != NULL);
    gw_vring_set_features(twin, features);
    CHECK(gw_vring_place(twin, &copy, ring->num, desc, avail, used, 0, 0) == 0);
    twin->last_avail = ring->last_avail;
    struct gw_burst burst = {.small_size = 0};
    *records = gw_vring_pop(twin, 256, 1 << 29, max_chain, &burst);
    gw_vring_free(twin);
    empty_memory(&copy);
    return burst.slab;
}

static size_t drain(int fd) {
    size_t size = 0;
    ssize_t more;
    while ((more = recv(fd, got + size, sizeof got - size, MSG_DONTWAIT)) > 0)
        size += (size_t)more;
    return size;
}

/* Used entries of the packets before may have been written over this one, if the guest wants it so. */
static bool overwritten(const struct gw_vring *ring, const struct gw_chain *chain) {
    for (const struct gw_piece *piece = ring->pieces + chain->first; piece < ring->pieces + chain->end; piece++)
        if (piece->host < ring->used + 6 + 8 * ring->num && ring->used < piece->host + piece->length)
            return true;
    return false;
}

static int forward(struct gw_vring *ring, uint64_t features, uint8_t op, uint8_t argument) {
    uint8_t header[HEADER], *rest = malloc(MOST);
    CHECK(rest != NULL);
    struct gw_forward asked = {.header = header, .most = MOST, .socket = pair[0], .rest = rest};
    asked.limit = op & 8 ? argument * 4u : 1u << 20;
    asked.enough = op & 16 ? argument : 1u << 20;
    int result = gw_vring_peek(ring, header);
    if (result <= 0) {
        free(rest);
        return result;
    }
    drain(pair[1]);
    if (op & 32) { /* a program that reads little: part of it fits, or nothing */
        size_t fill = argument & 1 ? ROOM : argument * 32u;
        static const uint8_t zeros[256];
        while (fill > 0 && send(pair[0], zeros, gw_least(fill, sizeof zeros), MSG_DONTWAIT) > 0)
            fill -= gw_least(fill, sizeof zeros);
        if (argument & 1) /* a packet or two less than full */
            (void)recv(pair[1], got, 256 * (1 + argument / 32), MSG_DONTWAIT);
    }
    int before = 0, records;
    uint8_t *oracle = popped(ring, features, HEADER + MOST, &records);
    CHECK(ioctl(pair[1], FIONREAD, &before) == 0);
    result = gw_vring_forward(ring, &asked);
    CHECK(result >= 0 && result <= 256); /* peek found the first chain good */
    CHECK(asked.sent >= 0 || asked.sent == -EAGAIN);
    CHECK(asked.sent > 0 || (result == 0 && asked.rest_size == 0));
    CHECK(result <= (records > 0 ? records : 0));
    if (result > 0) {
        size_t size = drain(pair[1]);
        CHECK(size == (size_t)before + (size_t)asked.sent && (uint64_t)asked.sent + asked.rest_size <= asked.limit);
        const uint32_t *record = (const uint32_t *)(void *)oracle;
        const uint8_t *payload = oracle + 8 * (size_t)records, *at = got + before;
        for (int i = 0; i < result; i++) {
            const uint8_t *packet = payload + record[2 * i];
            uint32_t length;
            memcpy(&length, packet + 24, 4);
            CHECK(length > 0 && length <= MOST && length <= record[2 * i + 1] - HEADER);
            CHECK(memcmp(packet, header, 24) == 0 && memcmp(packet + 28, header + 28, 4) == 0);
            uint32_t part = length - (i == result - 1 ? asked.rest_size : 0);
            CHECK(memcmp(packet + HEADER, at, part) == 0);
            if (part < length && !overwritten(ring, &ring->chains[i]))
                CHECK(memcmp(packet + HEADER + part, rest, asked.rest_size) == 0);
            at += part;
        }
        CHECK(at == got + size);
    }
    free(oracle);
    free(rest);
    return result;
}

static int receive(struct gw_vring *ring, uint8_t op, uint8_t argument) {
    static const uint8_t header[HEADER], bytes[600];
    drain(pair[0]);
    ssize_t sent = op & 8 ? send(pair[1], bytes, argument * 2u, MSG_DONTWAIT) : 0;
    int64_t count;
    int result = gw_vring_receive(ring, header, HEADER, 24, op & 16 ? 10 : MOST, pair[0], op & 32 ? 100 : 1 << 20, &count);
    if (result > 0)
        CHECK(count > 0 && count <= sent);
    else
        CHECK(count < 0);
    return result;
}

static void call(struct gw_vring *ring, uint64_t features, uint8_t op, uint8_t argument) {
    uint16_t base = ring->last_avail, used = ring->used_idx;
    int result = op % 8 < 5 ? forward(ring, features, op, argument)
                            : op % 8 < 7 ? receive(ring, op, argument) : gw_vring_discard(ring, argument % 4);
    CHECK(result >= 0 || (result < GW_BROKEN && result >= GW_BROKEN_SMALL));
    uint16_t taken = (uint16_t)(ring->last_avail - base);
    CHECK(taken <= ring->num && taken == (uint16_t)(ring->used_idx - used));
    CHECK(taken == (result > 0 ? result : 0));
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
    int small = 1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    struct gw_memory memory;
    fill_memory(&memory, data, size);
    uint8_t bits[2];
    struct gw_log log = {bits, sizeof bits, 0};
    struct gw_vring *ring = gw_vring_new(16);
    CHECK(ring != NULL);
    uint64_t features = (uint64_t)(setup.features & 7) << F_LOG_ALL; /* bit 27 means nothing */
    features |= (uint64_t)(setup.features >> 3 & 1) << F_EVENT_IDX;
    gw_vring_set_features(ring, features);
    if (setup.log & 1)
        gw_vring_set_log(ring, &log);
    CHECK(gw_vring_place(ring, &memory, num, UVA, UVA + avail, UVA + used, setup.log >> 1 & 1, 0x3ff8) == 0);
    (void)gw_vring_start(ring, setup.base_low | (uint32_t)setup.base_high << 8);
    for (uint32_t i = 0; i < setup.ops % (MAX_OPS + 1u); i++)
        call(ring, features, ops[2 * i], ops[2 * i + 1]);
    gw_vring_free(ring);
    empty_memory(&memory);
    close(pair[0]);
    close(pair[1]);
    return 0;
}

#ifdef STANDALONE
#include "draw.h"

/* Packets of two streams, mostly as they should be, behind the ring; descriptors that cut them into pieces, or lie. */
static size_t make(uint8_t *input) {
    enum { PACKETS = 4, SLOT = HEADER + MOST + 20, TABLE = 4 * 16 };
    uint32_t exponent = 2 + draw(3), num = 1u << exponent;
    uint32_t base = draw(4) ? draw(65536) : 65535 - draw(4);
    uint8_t *at = input;
    uint8_t setup[] = {(uint8_t)exponent, (uint8_t)(draw(8) ? 12 | draw(2) : draw(16)), (uint8_t)base, (uint8_t)(base >> 8),
                       (uint8_t)draw(4), (uint8_t)(1 + draw(MAX_OPS))};
    memcpy(at, setup, sizeof setup);
    at += sizeof setup;
    uint32_t into = draw(6) == 0; /* buffers for the guest: of use to `receive` */
    for (int i = 0; i < MAX_OPS; i++) {
        *at++ = (uint8_t)((draw(8) ? (into ? 5 : 0) : draw(8)) | draw(32) << 3);
        *at++ = (uint8_t)draw(256);
    }
    uint8_t *memory = at;
    uint64_t avail = 16 * num, used = avail + 6 + 2 * num;
    used += -used & 3;
    uint32_t packets = (uint32_t)(used + 6 + 8 * num), tables = packets + PACKETS * SLOT;
    uint64_t size = tables + PACKETS * TABLE;
    memset(memory, 0, size);
    for (uint32_t i = 0; i < PACKETS * SLOT; i++)
        memory[packets + i] = (uint8_t)draw(256);
    uint32_t shift = draw(3) ? 0 : draw(40); /* the last one may reach into the next region */
    for (uint32_t i = 0; i < PACKETS; i++) {
        uint8_t *packet = memory + packets + SLOT * i;
        uint32_t length = draw(20) ? 1 + draw(MOST) : draw(2) ? draw(MOST + 3) : draw(2) ? 0 : 0xffffffffu - draw(50);
        memset(packet, 0, HEADER);
        packet[0] = 3, packet[8] = 2, packet[16] = draw(8) ? 7 : 8, packet[28] = 1, packet[30] = draw(20) ? 5 : 4;
        put(packet + 24, length, 4);
        /* Its table: header and payload wherever they are cut. */
        uint32_t gpa = packets + SLOT * i, whole = HEADER + (length <= MOST ? length : MOST) + (draw(9) ? 0 : draw(30));
        uint32_t left = draw(30) ? whole : draw(whole + 1);
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t part = j == 3 ? left : draw(3) ? draw(left + 1) : draw(60) < left ? draw(left + 1) : 0;
            uint8_t *desc = memory + tables + TABLE * i + 16 * j;
            put(desc, draw(80) ? gpa : draw(2) ? size + draw(250) : UINT64_MAX - draw(20), 8);
            put(desc + 8, draw(200) ? part : 0xffffffff - draw(3), 4);
            put(desc + 12, (j < 3) | into << 1, 2);
            put(desc + 14, j + 1, 2);
            gpa += part + (j == 2 ? shift : 0);
            left -= part;
        }
    }
    for (uint32_t i = 0; i < num; i++) {
        uint8_t *desc = memory + 16 * i;
        uint32_t which = draw(PACKETS);
        bool indirect = draw(2);
        uint32_t length = 0;
        memcpy(&length, memory + packets + SLOT * which + 24, 4);
        put(desc, indirect ? tables + TABLE * which : packets + SLOT * which, 8);
        put(desc + 8, indirect ? TABLE : HEADER + (length <= MOST ? length : 10), 4);
        put(desc + 12, (indirect ? 4u : 0) | (!indirect && draw(5) == 0) | into << 1, 2);
        put(desc + 14, draw(num), 2);
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
