/* SPDX-License-Identifier: MPL-2.0 */
/* What goes to the guest: frames in parts, volleys, merged and split buffers, and what comes straight from a socket. */
#include <errno.h>
#include <sys/socket.h>

#include "guest.h"

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

int main(void) {
    test_push_parts();
    test_push_volley();
    test_push_merge();
    test_push_split();
    test_receive();
    puts("ok");
    return 0;
}
