/* SPDX-License-Identifier: MPL-2.0 */
/* A guest for the standalone tests: memory in separately allocated regions (so that ASan sees every byte beyond them), one
 * ring in the first, and assertions that say where they are. */
#ifndef GW_TEST_GUEST_H
#define GW_TEST_GUEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../ring.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_INT(actual, wanted)                                                                                      \
    do {                                                                                                               \
        long long a = (long long)(actual), w = (long long)(wanted);                                                    \
        if (a != w) {                                                                                                  \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #actual, a, w);                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };

/* Guest-physical layout; the hole is between B and C. uva = gpa + UVA. */
enum {
    A_GPA = 0,
    A_SIZE = 0x10000,
    B_GPA = 0x10000,
    B_SIZE = 0x1003,
    HOLE = B_GPA + B_SIZE,
    C_GPA = 0x20000,
    C_SIZE = 0x1000,
    AVAIL = 0x4000,
    USED = 0x5000,
    BUFFERS = 0x8000,
};
#define UVA 0x7f0000000000ull
#define MANY (1u << 20) /* as much as there is */

struct guest {
    struct gw_memory memory;
    struct gw_vring *ring;
    uint32_t num;
    uint16_t index; /* what the driver made available */
    int kick, call;
};

static inline uint8_t *at(struct guest *guest, uint64_t gpa) {
    uint32_t hint = 0;
    const struct gw_region *region = gw_find(&guest->memory, gpa, &hint);
    CHECK(region != NULL);
    return region->host + (gpa - region->gpa);
}

static inline void add_region(struct guest *guest, uint64_t gpa, uint64_t size) {
    void *host = NULL;
    CHECK(posix_memalign(&host, 16, size) == 0);
    memset(host, 0, size);
    guest->memory.region[guest->memory.count++] = (struct gw_region){gpa, size, gpa + UVA, host};
}

static inline void start(struct guest *guest, uint64_t features, uint16_t base) {
    gw_vring_set_features(guest->ring, features);
    CHECK_INT(gw_vring_place(guest->ring, &guest->memory, guest->num, UVA, UVA + AVAIL, UVA + USED, 0, 0), 0);
    guest->index = base;
    gw_store16(at(guest, AVAIL + RING_IDX), base, memory_order_relaxed);
    gw_store16(at(guest, USED + RING_IDX), base, memory_order_relaxed);
    CHECK_INT(gw_vring_start(guest->ring, base), 0);
}

#define INDIRECT_AND_EVENT ((1ull << F_INDIRECT_DESC) | (1ull << F_EVENT_IDX))

static inline void open_guest(struct guest *guest, uint32_t num) {
    *guest = (struct guest){.num = num};
    add_region(guest, A_GPA, A_SIZE);
    add_region(guest, B_GPA, B_SIZE);
    add_region(guest, C_GPA, C_SIZE);
    guest->ring = gw_vring_new(1024);
    CHECK(guest->ring != NULL);
    guest->kick = eventfd(0, EFD_NONBLOCK);
    guest->call = eventfd(0, EFD_NONBLOCK);
    gw_vring_set_kick(guest->ring, guest->kick);
    gw_vring_set_call(guest->ring, guest->call);
}

static inline void close_guest(struct guest *guest) {
    gw_vring_free(guest->ring);
    for (uint32_t i = 0; i < guest->memory.count; i++)
        free(guest->memory.region[i].host);
    close(guest->kick);
    close(guest->call);
}

static inline void put_desc(struct guest *guest, uint64_t table, uint32_t index, uint64_t gpa, uint32_t length,
                            uint16_t flags, uint16_t next) {
    uint64_t high = length | (uint64_t)flags << 32 | (uint64_t)next << 48;
    for (uint32_t i = 0; i < 8; i++) { /* byte by byte: a table may cross regions */
        *at(guest, table + 16 * index + i) = (uint8_t)(gpa >> (8 * i));
        *at(guest, table + 16 * index + 8 + i) = (uint8_t)(high >> (8 * i));
    }
}

static inline void desc(struct guest *guest, uint32_t index, uint64_t gpa, uint32_t length, uint16_t flags,
                        uint16_t next) {
    put_desc(guest, 0, index, gpa, length, flags, next);
}

static inline void offer(struct guest *guest, uint16_t head) {
    gw_store16(at(guest, AVAIL + 4 + 2 * (guest->index & (guest->num - 1))), head, memory_order_relaxed);
    guest->index++;
    gw_store16(at(guest, AVAIL + RING_IDX), guest->index, memory_order_release);
}

static inline uint16_t used_idx(struct guest *guest) {
    return gw_load16(at(guest, USED + RING_IDX), memory_order_acquire);
}

static inline uint32_t used_word(struct guest *guest, uint16_t index, int word) {
    uint32_t value;
    memcpy(&value, at(guest, USED + 4 + 8 * (index & (guest->num - 1)) + 4 * word), 4);
    return value;
}

static inline int calls(struct guest *guest) {
    uint64_t count;
    return read(guest->call, &count, 8) == 8 ? (int)count : 0;
}

/* Chains of one buffer each for frames to the guest, side by side in C. */
static inline void writable(struct guest *guest, uint32_t first, uint32_t count, uint32_t size) {
    for (uint32_t i = 0; i < count; i++) {
        desc(guest, first + i, C_GPA + (first + i) * size, size, D_WRITE, 0);
        offer(guest, (uint16_t)(first + i));
    }
}

/* pop, check the burst's own consistency, free it; the count or a gw_result. */
static inline int pop_all(struct guest *guest, uint32_t budget, uint64_t max_bytes, uint64_t max_chain) {
    uint64_t small[4];
    struct gw_burst burst = {.small = (uint8_t *)small, .small_size = sizeof small};
    int count = gw_vring_pop(guest->ring, budget, max_bytes, max_chain, &burst);
    if (count <= 0) {
        CHECK(burst.slab == NULL && burst.bytes == 0);
        return count;
    }
    CHECK((burst.slab == NULL) == (burst.bytes <= sizeof small));
    const uint8_t *slab = burst.slab == NULL ? burst.small : burst.slab;
    const uint32_t *record = (const uint32_t *)(const void *)slab;
    uint64_t offset = 0;
    for (int i = 0; i < count; i++) {
        CHECK(record[2 * i] == offset);
        offset += record[2 * i + 1];
    }
    CHECK(burst.bytes == 8 * (uint64_t)count + offset);
    volatile uint8_t sum = 0; /* every byte handed out exists */
    for (uint64_t i = 0; i < burst.bytes; i++)
        sum = (uint8_t)(sum + slab[i]);
    gw_slab_free(burst.slab);
    return count;
}

/* One frame of one part; 1, 0 or a gw_result. */
static inline int push_one(struct guest *guest, int mode, uint32_t where, uint32_t header, const void *bytes,
                           uint32_t length) {
    if (header == 0)
        return gw_vring_push_one(guest->ring, mode, where, bytes, length);
    uint32_t words[2] = {1, length};
    return gw_vring_push(guest->ring, mode, where, header, words, 1, 1, bytes, length, NULL, 0);
}

#endif
