/* SPDX-License-Identifier: MPL-2.0 */
/* The driver's ring code against a device that writes anything into the used ring and the buffers: it must stop with a
 * fault, never read or write beyond its memory, never lose or double a buffer.
 *
 * With -DSTANDALONE a program of its own (argument: rounds). Build with vdriver.c and vbulk.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vbulk.h"

enum { NUM = 8, BUFFERS = 8, SIZE = 256 };

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct side {
    struct vdrv_ring ring;
    struct vdrv_pool pool;
    struct vdrv_slot slots[NUM];
    uint32_t free[BUFFERS];
    uint8_t *memory; /* desc, avail, used, tables, buffers: exactly as large as they claim */
};

enum {
    AVAIL = 16 * NUM,
    USED = AVAIL + 6 + 2 * NUM + 2,
    TABLES = USED + 6 + 8 * NUM + 2,
    DATA = TABLES + 16 * VDRV_PIECES * NUM,
    TOTAL = DATA + BUFFERS * SIZE,
};

static void make(struct side *s, uint8_t shape) {
    memset(s, 0, sizeof *s);
    s->memory = aligned_alloc(16, (TOTAL + 15) / 16 * 16);
    CHECK(s->memory != NULL);
    memset(s->memory, 0, TOTAL);
    s->ring.desc = s->memory;
    s->ring.avail = s->memory + AVAIL;
    s->ring.used = s->memory + USED;
    s->ring.tables = s->memory + TABLES;
    s->ring.slots = s->slots;
    s->ring.num = NUM;
    s->ring.writable = shape & 1;
    s->ring.indirect = shape >> 1 & 1;
    s->ring.event_idx = shape >> 2 & 1;
    s->ring.npieces = shape >> 3 & 3;
    for (int i = 0; i < 3; i++)
        s->ring.piece[i] = 12 + (uint32_t)i;
    s->pool.memory = s->memory + DATA;
    s->pool.size = SIZE;
    s->pool.count = BUFFERS;
    s->pool.free = s->free;
    vdrv_init(&s->ring);
    vdrv_pool_init(&s->pool);
}

/* Every buffer is free or in flight, once. */
static void check_books(const struct side *s) {
    uint32_t seen = 0, descriptors = s->ring.nfree;
    for (uint32_t i = 0; i < s->pool.nfree; i++) {
        CHECK(s->free[i] < BUFFERS && !(seen >> s->free[i] & 1));
        seen |= 1u << s->free[i];
    }
    for (uint32_t i = 0; i < NUM; i++)
        if (s->slots[i].count > 0) {
            CHECK(!(seen >> s->slots[i].buffer & 1));
            seen |= 1u << s->slots[i].buffer;
            descriptors += s->slots[i].count;
        }
    CHECK(seen == (1u << BUFFERS) - 1 && descriptors == NUM);
}

/* Input: shape, then operations of one byte, some with arguments. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct side s;
    if (size < 1)
        return 0;
    make(&s, data[0]);
    uint8_t out[4 * SIZE];
    struct vdrv_received records[4];
    static const uint8_t payload[SIZE] = {1, 2, 3};
    struct vdrv_message messages[3] = {{payload, payload, 12, 50}, {payload, NULL, 20, 0}, {payload, payload, 1, SIZE - 1}};
    for (size_t i = 1; i + 3 < size; i += 4) {
        const uint8_t *op = data + i;
        switch (op[0] % 9) {
        case 0:
            if (s.ring.writable)
                vdrv_post(&s.ring, &s.pool);
            else
                vdrv_send(&s.ring, &s.pool, messages, 1 + op[1] % 3);
            break;
        case 1:
            vdrv_publish(&s.ring);
            break;
        case 2: /* the device uses something, perhaps not what is in flight */
            memcpy(s.ring.used + 4 + 8 * (op[1] % NUM), (uint8_t[8]){op[2] % (NUM + 1), 0, 0, 0, op[3]}, 8);
            break;
        case 3: /* ... and says so */
            vdrv_store16(s.ring.used + 2, (uint16_t)(s.ring.last_used + op[1] % (NUM + 2)));
            break;
        case 4: /* anything anywhere in what it may write */
            s.memory[USED + (op[1] | op[2] << 8) % (TOTAL - USED)] = op[3];
            break;
        case 5:
            if (s.ring.writable)
                vdrv_receive(&s.ring, &s.pool, out, sizeof out - op[3], records, 1 + op[1] % 4, op[2] & 1 ? 10 : -1);
            else
                vdrv_reclaim(&s.ring, &s.pool);
            break;
        case 6:
            vdrv_arm(&s.ring, 1 + op[1] % NUM);
            break;
        case 7: { /* a connection whose numbers are whatever, on this ring: buffers are neither lost nor doubled */
            struct vdrv_bulk bulk = {.tx = &s.ring, .rx = &s.ring, .tx_pool = &s.pool, .rx_pool = &s.pool, .tx_kick = -1,
                                     .rx_kick = -1, .merge = op[2] & 1 ? 10 : -1, .window = 200, .snd_nxt = op[3],
                                     .patience = 1, .out = out, .size = sizeof out - op[3]};
            bulk.data.data = payload;
            bulk.data.length = SIZE - VDRV_BULK_HEADERS;
            bulk.ack.sum = op[1];
            if (s.ring.writable)
                vdrv_drain(&bulk, 1000);
            else
                vdrv_flood(&bulk, 1000);
            break;
        }
        default:
            vdrv_suppress(&s.ring);
        }
        check_books(&s);
    }
    free(s.memory);
    return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 1000;
    uint64_t state = 0x2545f4914f6cdd1d;
    uint8_t input[1 + 4 * 200];
    for (long i = 0; i < rounds; i++) {
        for (size_t k = 0; k < sizeof input; k++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            input[k] = (uint8_t)(state >> 32);
        }
        LLVMFuzzerTestOneInput(input, sizeof input);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
#endif
