/* SPDX-License-Identifier: MPL-2.0 */
/* Two threads on one ring: a guest that changes everything while we look, and a guest and a device that sleep and wake each
 * other (arguments: rounds of the first, hand-offs of the second). */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "guest.h"

/* -- rules 3 and 11: descriptors, avail ring and indirect tables change under a running burst ------------------------- */

static atomic_bool stop;

static uint64_t draw(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#define SCRIBBLED 16
#define TABLE 0xc000

/* Values a check could be made on before a change: each of them good alone, in the wrong combination not. */
static uint64_t some_descriptor(uint64_t *state, int half) {
    static const uint64_t addresses[] = {BUFFERS, A_SIZE - 64, B_GPA + 0x1000, HOLE, C_GPA, TABLE, TABLE + 7, UINT64_MAX};
    static const uint32_t lengths[] = {0, 1, 16, 48, 64, 256, 4096, UINT32_MAX};
    uint64_t r = draw(state);
    if (half == 0)
        return addresses[r % 8];
    uint64_t flags = r >> 8 & 7 & (r >> 16); /* fewer bits set than not */
    return lengths[r % 8] | flags << 32 | (r >> 32 & 15) << 48;
}

static void *scribble(void *opaque) {
    struct guest *guest = opaque;
    uint64_t state = 88172645463325252;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t r = draw(&state);
        uint64_t table = r & 1 ? 0 : TABLE;
        uint8_t *where = at(guest, table + 16 * (r >> 8 & (SCRIBBLED - 1)) + (r >> 4 & 1 ? 8 : 0));
        atomic_store_explicit((_Atomic uint64_t *)(void *)where, some_descriptor(&state, r >> 4 & 1),
                              memory_order_relaxed);
        if (r % 5 == 0) /* mostly good heads */
            gw_store16(at(guest, AVAIL + 4 + 2 * (r >> 16 & (SCRIBBLED - 1))), (uint16_t)(r >> 24 & 31),
                       memory_order_relaxed);
        if (r % 7 == 0)
            gw_store16(at(guest, AVAIL + 4 + 2 * SCRIBBLED), (uint16_t)(r >> 40), memory_order_relaxed);
    }
    return NULL;
}

/* Chains that change while they are sent: what the socket got is what we are told, and within what was asked. */
static int send_on(struct guest *guest, const int *pair) {
    uint8_t header[44], rest[2000];
    static uint8_t got[1 << 17];
    struct gw_forward asked = {.header = header, .limit = 1 << 14, .enough = 1 << 12, .most = sizeof rest,
                               .socket = pair[0], .rest = rest};
    int result = gw_vring_peek(guest->ring, header);
    if (result == 1)
        result = gw_vring_forward(guest->ring, &asked);
    else
        asked.sent = 0;
    if (result <= 0)
        CHECK(asked.sent <= 0);
    else {
        CHECK(asked.sent > 0 && (uint64_t)asked.sent + asked.rest_size <= asked.limit);
        CHECK_INT(recv(pair[1], got, sizeof got, MSG_DONTWAIT), asked.sent);
    }
    return result;
}

static void changing_guest(long rounds) {
    struct guest guest;
    open_guest(&guest, SCRIBBLED);
    uint8_t bits[8];
    struct gw_log log = {bits, sizeof bits, 0};
    gw_vring_set_log(guest.ring, &log);
    start(&guest, INDIRECT_AND_EVENT | 1ull << F_LOG_ALL, 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, scribble, &guest) == 0);
    int pair[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    static uint8_t frame[3000];
    long taken = 0, broken = 0;
    uint64_t state = 7;
    for (long i = 0; i < rounds; i++) {
        uint16_t base = (uint16_t)gw_vring_base(guest.ring);
        gw_store16(at(&guest, AVAIL + RING_IDX), (uint16_t)(base + 1 + draw(&state) % SCRIBBLED), memory_order_release);
        int result;
        switch (draw(&state) % 8) {
        case 0:
            result = push_one(&guest, GW_PUSH_MERGE, 10, 0, frame, (uint32_t)(draw(&state) % sizeof frame));
            break;
        case 1:
            result = push_one(&guest, GW_PUSH_SPLIT, 24, 44, frame, (uint32_t)(draw(&state) % sizeof frame));
            break;
        case 2:
            result = push_one(&guest, GW_PUSH_ONE, 0, 0, frame, (uint32_t)(draw(&state) % 100));
            break;
        case 3:
            result = gw_vring_discard(guest.ring, 2);
            break;
        case 4:
        case 5: /* a header that is all zeros but for its length: others write descriptors, not this */
            memset(at(&guest, BUFFERS), 0, 44);
            at(&guest, BUFFERS)[24] = (uint8_t)draw(&state);
            result = send_on(&guest, pair);
            break;
        default:
            result = pop_all(&guest, 8, 1 << 16, 1 << 14);
        }
        CHECK(result >= 0 || (result < GW_BROKEN && result >= GW_BROKEN_ALIGNMENT));
        broken += result < 0;
        uint16_t now = (uint16_t)gw_vring_base(guest.ring);
        CHECK((uint16_t)(now - base) <= SCRIBBLED);
        taken += (uint16_t)(now - base);
        if (result < 0) /* the ring would be stopped here; go on behind the broken chain */
            CHECK(gw_vring_start(guest.ring, (uint16_t)(base + 1)) <= 0);
    }
    atomic_store(&stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(taken > 0 && broken > 0);
    /* Whether anything could be sent on meanwhile was luck; the same ring, now that nobody scribbles, sends what is good. */
    uint16_t base = (uint16_t)gw_vring_base(guest.ring);
    gw_store16(at(&guest, AVAIL + RING_IDX), base, memory_order_release);
    CHECK(gw_vring_start(guest.ring, base) == 0);
    guest.index = base;
    memset(at(&guest, BUFFERS), 0, 44);
    at(&guest, BUFFERS)[24] = 20;
    desc(&guest, 0, BUFFERS, 44 + 20, 0, 0);
    offer(&guest, 0);
    CHECK_INT(send_on(&guest, pair), 1);
    close(pair[0]);
    close(pair[1]);
    close_guest(&guest);
}

/* -- lost kicks and lost calls ---------------------------------------------------------------------------------------- */

struct pair {
    struct guest guest;
    uint64_t features;
    long total;
};

/* Looking for a while first makes a hand-off a microsecond instead of fifty, and so puts many more of them next to each
 * other, where the races are. */
static void sleep_on(int fd) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    for (int look = 0; look < 200; look++)
        if (poll(&wait, 1, 0) == 1)
            return;
    /* Far longer than any wake-up takes: only a lost one waits so long. */
    CHECK(poll(&wait, 1, 20000) == 1);
}

/* The driver: makes chains available in bursts of 1 to 4, kicks only when asked to, and sleeps until called when the ring is
 * full, or (every other time) until it is empty, so that both sides keep falling asleep (virtio 1.3 section 2.7.13). */
static void *drive(void *opaque) {
    struct pair *pair = opaque;
    struct guest *guest = &pair->guest;
    bool event_idx = pair->features >> F_EVENT_IDX & 1;
    uint8_t *used_event = at(guest, AVAIL + 4 + 2 * guest->num), *avail_event = at(guest, USED + 4 + 8 * guest->num);
    uint16_t used = 0, made = 0;
    uint64_t state = 42, count;
    for (long sent = 0; sent < pair->total || used != made;) {
        used = used_idx(guest);
        uint16_t room = (uint16_t)(guest->num - (uint16_t)(made - used));
        if (room > 0 && sent < pair->total && (used == made || draw(&state) & 1)) {
            for (volatile uint64_t delay = draw(&state) & 63; delay > 0; delay--) /* at another moment every time */
                continue;
            uint16_t old = made, burst = (uint16_t)gw_least(1 + draw(&state) % 4, room);
            for (uint16_t i = 0; i < burst && sent < pair->total; i++, sent++)
                gw_store16(at(guest, AVAIL + 4 + 2 * (made++ & (guest->num - 1))), 0, memory_order_relaxed);
            gw_store16(at(guest, AVAIL + RING_IDX), made, memory_order_release);
            atomic_thread_fence(memory_order_seq_cst);
            bool kick = event_idx ? (uint16_t)(made - gw_load16(avail_event, memory_order_relaxed) - 1) < (uint16_t)(made - old)
                                  : !(gw_load16(at(guest, USED), memory_order_relaxed) & 1);
            if (kick)
                gw_event_signal(guest->kick);
            continue;
        }
        if (used == made)
            continue;
        /* ask for a call, look once more, sleep */
        if (event_idx)
            gw_store16(used_event, used, memory_order_relaxed);
        else
            gw_store16(at(guest, AVAIL), 0, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        if (used_idx(guest) == used)
            sleep_on(guest->call);
        ssize_t emptied = read(guest->call, &count, 8); /* or was empty: the look was in time */
        (void)emptied;
        if (!event_idx)
            gw_store16(at(guest, AVAIL), 1, memory_order_relaxed);
    }
    return NULL;
}

static void sleepy_pair(uint64_t features, bool suppressing, long total) {
    struct pair pair = {.features = features, .total = total};
    struct guest *guest = &pair.guest;
    open_guest(guest, 8);
    start(guest, features, 0);
    desc(guest, 0, BUFFERS, 1, 0, 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, drive, &pair) == 0);
    long taken = 0;
    while (taken < total) {
        if (suppressing)
            CHECK(gw_vring_suppress(guest->ring) == 0);
        int count;
        while ((count = pop_all(guest, 3, 1000, 1000)) > 0)
            taken += count;
        CHECK_INT(count, 0);
        if (taken < total && gw_vring_arm(guest->ring, 0) == 0)
            sleep_on(guest->kick);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_INT(taken, total);
    close_guest(guest);
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 20000, total = argc > 2 ? atol(argv[2]) : 20000;
    changing_guest(rounds);
    sleepy_pair(1ull << F_EVENT_IDX, true, total);
    sleepy_pair(1ull << F_EVENT_IDX, false, total);
    sleepy_pair(0, true, total);
    sleepy_pair(0, false, total);
    puts("ok");
    return 0;
}
