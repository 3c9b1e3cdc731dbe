/* SPDX-License-Identifier: MPL-2.0 */
/* The driver's bulk without Python: a device written by hand beside it, in the same thread. Built with ASan and UBSan, and
 * for branch coverage. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../vbulk.h"

enum {
    NUM = 128,
    SIZE = 2048, /* of a buffer */
    PAYLOAD = 100,
    AVAIL = 16 * NUM,
    USED = AVAIL + 6 + 2 * NUM + 2,
    TABLES = USED + 6 + 8 * NUM + 2,
    DATA = TABLES + 16 * VDRV_PIECES * NUM,
    TOTAL = DATA + NUM * SIZE,
    ETHER = 12,
    IP = 26,
    TCP = 46,
};

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
    uint32_t free[NUM];
    uint8_t *memory;
    uint16_t seen; /* available entries the device has looked at */
    uint16_t used;
    int kick;
};

static void open_side(struct side *s, int writable) {
    memset(s, 0, sizeof *s);
    s->memory = aligned_alloc(16, TOTAL);
    CHECK(s->memory != NULL);
    memset(s->memory, 0, TOTAL);
    s->ring.desc = s->memory;
    s->ring.avail = s->memory + AVAIL;
    s->ring.used = s->memory + USED;
    s->ring.tables = s->memory + TABLES;
    s->ring.slots = s->slots;
    s->ring.num = NUM;
    s->ring.writable = (uint8_t)writable;
    s->pool.memory = s->memory + DATA;
    s->pool.size = SIZE;
    s->pool.count = NUM;
    s->pool.free = s->free;
    s->kick = eventfd(0, EFD_NONBLOCK);
    CHECK(s->kick >= 0);
    vdrv_init(&s->ring);
    vdrv_pool_init(&s->pool);
}

static uint64_t kicks(struct side *s) {
    uint64_t count = 0;
    return read(s->kick, &count, sizeof count) == sizeof count ? count : 0;
}

static void close_side(struct side *s) {
    close(s->kick);
    free(s->memory);
}

/* The device's next buffer: its head, and where it lies; its length in the descriptor. */
static uint8_t *next(struct side *s, uint16_t *head, uint32_t *length) {
    CHECK(s->seen != vdrv_load16(s->ring.avail + 2));
    memcpy(head, s->ring.avail + 4 + 2 * (s->seen++ % NUM), 2);
    uint64_t address;
    memcpy(&address, s->ring.desc + 16 * *head, 8);
    memcpy(length, s->ring.desc + 16 * *head + 8, 4);
    return s->pool.memory + address;
}

static void done(struct side *s, uint16_t head, uint32_t length) {
    memcpy(s->ring.used + 4 + 8 * (s->used % NUM), (uint32_t[2]){head, length}, 8);
    vdrv_store16(s->ring.used + 2, ++s->used);
}

static void put(uint8_t *p, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static uint32_t get(const uint8_t *p, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++)
        value = value << 8 | p[i];
    return value;
}

struct world {
    struct side tx, rx;
    struct vdrv_bulk bulk;
    uint8_t data[PAYLOAD];
    uint8_t out[4 * SIZE];
};

/* Headers of a segment; `ours` or the peer's. */
static void headers(uint8_t *p, int ours, uint32_t payload) {
    static const uint8_t us[6] = {10, 0, 0, 2, 1, 2}, peer[6] = {10, 0, 0, 1, 3, 4}; /* address, port */
    const uint8_t *from = ours ? us : peer, *to = ours ? peer : us;
    memset(p, 0, VDRV_BULK_HEADERS);
    put(p + ETHER + 12, 0x0800, 2);
    p[IP] = 0x45;
    put(p + IP + 2, 40 + payload, 2);
    put(p + IP + 6, 0x4000, 2);
    p[IP + 9] = 6;
    memcpy(p + IP + 12, from, 4);
    memcpy(p + IP + 16, to, 4);
    memcpy(p + TCP, from + 4, 2);
    memcpy(p + TCP + 2, to + 4, 2);
    p[TCP + 12] = 0x50;
    p[TCP + 13] = 0x10;
    put(p + TCP + 14, 10, 2);
}

static void open_world(struct world *w) {
    memset(w, 0, sizeof *w);
    open_side(&w->tx, 0);
    open_side(&w->rx, 1);
    w->bulk = (struct vdrv_bulk){.tx = &w->tx.ring, .rx = &w->rx.ring, .tx_pool = &w->tx.pool, .rx_pool = &w->rx.pool,
                                 .tx_kick = w->tx.kick, .rx_kick = w->rx.kick, .merge = 10, .scale = 7, .patience = 3,
                                 .out = w->out, .size = sizeof w->out, .snd_una = 0xffffff00, .snd_nxt = 0xffffff00,
                                 .rcv_nxt = 0xffffffff, .window = 1000};
    headers(w->bulk.ack.header, 1, 0);
    headers(w->bulk.data.header, 1, PAYLOAD);
    w->bulk.ack.sum = w->bulk.data.sum = -1;
    memset(w->data, 0xda, PAYLOAD);
    w->bulk.data.data = w->data;
    w->bulk.data.length = PAYLOAD;
    CHECK(vdrv_post(&w->rx.ring, &w->rx.pool) == NUM);
    vdrv_publish(&w->rx.ring);
}

static void close_world(struct world *w) {
    close_side(&w->tx);
    close_side(&w->rx);
}

/* What the guest sent: sequence number and acknowledgment; its buffer goes back. */
static uint32_t take(struct world *w, uint32_t seq, uint32_t ack) {
    uint16_t head;
    uint32_t length;
    const uint8_t *p = next(&w->tx, &head, &length);
    CHECK(get(p + TCP + 4, 4) == seq && get(p + TCP + 8, 4) == ack);
    CHECK(length == VDRV_BULK_HEADERS || !memcmp(p + VDRV_BULK_HEADERS, w->data, PAYLOAD));
    done(&w->tx, head, 0);
    return length;
}

/* A segment of the peer's, changed at `at` (0: nowhere) to `value`, with the frame's length `longer`. */
static void give(struct world *w, uint32_t seq, uint32_t ack, uint32_t payload, int at, uint8_t value, int longer) {
    uint16_t head;
    uint32_t length;
    uint8_t *p = next(&w->rx, &head, &length);
    CHECK(length == SIZE);
    headers(p, 0, payload);
    put(p + 10, 0x0100, 2); /* num_buffers, little-endian */
    put(p + TCP + 4, seq, 4);
    put(p + TCP + 8, ack, 4);
    if (at > 0)
        p[at] = value;
    done(&w->rx, head, (uint32_t)((int)(VDRV_BULK_HEADERS + payload) + longer));
}

static void test_flood_up_to_the_window(void) {
    struct world w;
    open_world(&w);
    uint64_t begin = w.bulk.snd_nxt;
    CHECK(vdrv_flood(&w.bulk, begin + 99) == VDRV_BULK_MOVED); /* less than one */
    CHECK(w.bulk.snd_nxt == begin);
    CHECK(vdrv_flood(&w.bulk, begin + 350) == VDRV_BULK_MOVED);
    CHECK(w.bulk.snd_nxt == begin + 300 && kicks(&w.tx) == 1 && w.bulk.kicks == 1);
    CHECK(vdrv_flood(&w.bulk, begin + 5000) == VDRV_BULK_IDLE); /* 1000 bytes of window; a burst of 7 */
    CHECK(w.bulk.snd_nxt == begin + 1000 && kicks(&w.tx) == 1);
    for (uint32_t i = 0; i < 10; i++)
        CHECK(take(&w, (uint32_t)begin + 100 * i, 0xffffffff) == VDRV_BULK_HEADERS + PAYLOAD);
    give(&w, 0xffffffff, (uint32_t)begin + 1000, 0, 0, 0, 0); /* past the wrap, and a new window: 10 << 7 */
    CHECK(vdrv_flood(&w.bulk, begin + 1900) == VDRV_BULK_MOVED);
    CHECK(w.bulk.snd_una == begin + 1000 && w.bulk.window == 1280 && w.bulk.snd_nxt == begin + 1900);
    CHECK(kicks(&w.rx) == 1);
    close_world(&w);
}

static void test_flood_up_to_the_ring(void) {
    struct world w;
    open_world(&w);
    uint64_t begin = w.bulk.snd_nxt;
    w.bulk.window = 1 << 20;
    CHECK(vdrv_flood(&w.bulk, begin + 1000 * PAYLOAD) == VDRV_BULK_IDLE);
    CHECK(w.bulk.snd_nxt == begin + NUM * PAYLOAD);
    /* What came is acknowledged as soon as there is a buffer. */
    give(&w, 0xffffffff, (uint32_t)begin, 8, 0, 0, 0);
    CHECK(vdrv_flood(&w.bulk, begin + 1000 * PAYLOAD) == VDRV_BULK_IDLE);
    CHECK(w.bulk.owed && w.bulk.rcv_nxt == 0x100000007 && w.bulk.window == 1280);
    w.bulk.window = 1 << 20;
    take(&w, (uint32_t)begin, 0xffffffff);
    take(&w, (uint32_t)begin + PAYLOAD, 0xffffffff);
    CHECK(vdrv_flood(&w.bulk, begin + (NUM + 1) * PAYLOAD) == VDRV_BULK_MOVED);
    CHECK(!w.bulk.owed);
    for (uint32_t i = 2; i < NUM; i++)
        take(&w, (uint32_t)begin + i * PAYLOAD, 0xffffffff);
    CHECK(take(&w, (uint32_t)begin + NUM * PAYLOAD, 7) == VDRV_BULK_HEADERS + PAYLOAD);
    CHECK(take(&w, (uint32_t)begin + (NUM + 1) * PAYLOAD, 7) == VDRV_BULK_HEADERS);
    close_world(&w);
}

static void test_drain(void) {
    struct world w;
    open_world(&w);
    uint32_t begin = (uint32_t)w.bulk.snd_nxt;
    CHECK(vdrv_drain(&w.bulk, w.bulk.rcv_nxt) == VDRV_BULK_MOVED);
    CHECK(vdrv_drain(&w.bulk, w.bulk.rcv_nxt + 1) == VDRV_BULK_IDLE);
    give(&w, 0xffffffff, begin, 50, TCP + 13, 0x18, 0);
    give(&w, 49, begin, 500, 0, 0, 20); /* with 20 bytes behind the packet */
    CHECK(vdrv_drain(&w.bulk, w.bulk.rcv_nxt + 550) == VDRV_BULK_MOVED);
    CHECK(w.bulk.rcv_nxt == 0xffffffffull + 550 && w.rx.pool.nfree == 0);
    CHECK(take(&w, begin, 549) == VDRV_BULK_HEADERS);
    uint32_t seq = 549;
    for (int round = 0; round < 3; round++) { /* round and round, 65 a poll at most */
        for (int i = 0; i < 100; i++, seq += 1000)
            give(&w, seq, begin, 1000, 0, 0, 0);
        w.bulk.enough = 100;
        w.bulk.looks = 10;
        CHECK(vdrv_drain(&w.bulk, w.bulk.rcv_nxt + 100000) == VDRV_BULK_MOVED);
        CHECK(take(&w, begin, seq - 36000) == VDRV_BULK_HEADERS);
        CHECK(take(&w, begin, seq) == VDRV_BULK_HEADERS);
    }
    close_world(&w);
}

static void test_what_is_not_plain(void) {
    static const struct {
        int32_t seq, ack; /* off by so much */
        int at, value, longer;
    } cases[] = {
        {0, 0, ETHER + 13, 6, 0},    {0, 0, IP, 0x46, 0},        {0, 0, IP + 6, 0x20, 0},   {0, 0, IP + 9, 17, 0},
        {0, 0, IP + 12, 11, 0},      {0, 0, IP + 19, 3, 0},      {0, 0, TCP, 9, 0},         {0, 0, TCP + 3, 9, 0},
        {0, 0, TCP + 12, 0x60, 0},   {0, 0, TCP + 13, 0x11, 0},  {0, 0, TCP + 13, 0x04, 0}, {0, 0, IP + 3, 39, 0},
        {0, 0, IP + 2, 1, 0},        {0, 0, 0, 0, -51},          {1, 0, 0, 0, 0},           {-1, 0, 0, 0, 0},
        {0, 1, 0, 0, 0},             {0, -1, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        open_world(&w);
        uint32_t begin = (uint32_t)w.bulk.snd_nxt;
        w.bulk.window = 0; /* nothing is sent */
        give(&w, 0xffffffffu + (uint32_t)cases[i].seq, begin + (uint32_t)cases[i].ack, 50, cases[i].at,
             (uint8_t)cases[i].value, cases[i].longer);
        give(&w, 0xffffffff, begin, 50, 0, 0, 0);
        CHECK((i % 2 ? vdrv_drain(&w.bulk, 1ull << 40) : vdrv_flood(&w.bulk, 1ull << 40)) == VDRV_BULK_OTHER);
        CHECK(w.bulk.rcv_nxt == 0xffffffff && w.bulk.snd_una == begin && w.bulk.window == 0 && !w.bulk.owed);
        CHECK(w.bulk.frame.offset == 0 && w.bulk.frame.length == (uint32_t)(VDRV_BULK_HEADERS + 50 + cases[i].longer));
        CHECK(vdrv_drain(&w.bulk, 0xffffffffull + 50) == VDRV_BULK_MOVED); /* the one behind it */
        CHECK(w.bulk.rcv_nxt == 0xffffffffull + 50 && w.rx.pool.nfree == 0);
        close_world(&w);
    }
}

static void test_sums(void) {
    struct world w;
    open_world(&w);
    /* What is summed is the number alone: the sum with its complement is all ones. */
    w.bulk.data.sum = 0x1234;
    w.bulk.snd_una = w.bulk.snd_nxt = 0xfffefdfc;
    CHECK(vdrv_flood(&w.bulk, w.bulk.snd_nxt + PAYLOAD) == VDRV_BULK_MOVED);
    uint16_t head;
    uint32_t length;
    const uint8_t *p = next(&w.tx, &head, &length);
    uint32_t sum = 0x1234 + get(p + TCP + 16, 2);
    for (int i = 4; i < 12; i += 2)
        sum += get(p + TCP + i, 2);
    CHECK((sum & 0xffff) + (sum >> 16) == 0xffff);
    close_world(&w);
}

static void test_a_broken_device(void) {
    struct world w;
    open_world(&w);
    give(&w, 0xffffffff, (uint32_t)w.bulk.snd_nxt, 50, 0, 0, 10 * SIZE); /* more than the buffer holds */
    CHECK(vdrv_drain(&w.bulk, 1ull << 40) == VDRV_BULK_STUCK && w.rx.ring.fault == VDRV_USED_LENGTH);
    CHECK(vdrv_drain(&w.bulk, 1ull << 40) == VDRV_BULK_IDLE);
    CHECK(vdrv_flood(&w.bulk, 1ull << 40) == VDRV_BULK_IDLE);
    close_world(&w);
    open_world(&w);
    give(&w, 0xffffffff, (uint32_t)w.bulk.snd_nxt, 50, 0, 0, 0);
    w.bulk.size = 100; /* no room for it */
    CHECK(vdrv_flood(&w.bulk, 1ull << 40) == VDRV_BULK_STUCK && !w.rx.ring.fault);
    close_world(&w);
}

int main(void) {
    test_flood_up_to_the_window();
    test_flood_up_to_the_ring();
    test_drain();
    test_what_is_not_plain();
    test_sums();
    test_a_broken_device();
    puts("ok");
    return 0;
}
