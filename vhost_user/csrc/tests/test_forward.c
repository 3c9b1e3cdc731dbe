/* SPDX-License-Identifier: MPL-2.0 */
/* forward.c: vsock payload from guest memory straight into a socket. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { HEADER = 44, BUFFER_GPA = 0x6100 };

/* A packet in the chain of descriptors `first`...: `cut` bytes in the first of them, the rest in the second. */
static void packet(struct guest *guest, uint16_t first, uint8_t port, uint32_t length, uint32_t said, uint32_t cut) {
    uint64_t gpa = BUFFER_GPA + 0x800ull * first;
    uint8_t *p = at(guest, gpa);
    memset(p, 0, HEADER);
    p[0] = 3, p[8] = 2, p[16] = port, p[28] = 1, p[30] = 5;
    memcpy(p + 24, &said, 4);
    p[36] = (uint8_t)(first + 1), p[40] = (uint8_t)(first + 2);
    for (uint32_t i = 0; i < length; i++)
        p[HEADER + i] = (uint8_t)(first + i);
    uint32_t size = HEADER + length;
    desc(guest, first, gpa, cut < size ? cut : size, cut < size ? D_NEXT : 0, (uint16_t)(first + 1));
    if (cut < size)
        desc(guest, first + 1u, gpa + cut, size - cut, 0, 0);
    offer(guest, first);
}

/* More packets than one system call takes: each of one piece, then each of two. All lie in the same place. */
static void test_many(void) {
    struct guest guest;
    open_guest(&guest, 512);
    start(&guest, INDIRECT_AND_EVENT, 0);
    int pair[2], large = 1 << 20;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK_INT(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &large, sizeof large), 0);
    uint8_t header[HEADER], rest[100], got[4000];
    struct gw_forward asked = {.header = header, .limit = 9000, .enough = 9000, .most = 100, .socket = pair[0], .rest = rest};
    packet(&guest, 0, 7, 10, 10, 300);
    for (uint16_t i = 1; i < 300; i++) {
        desc(&guest, i, BUFFER_GPA, HEADER + 10, 0, 0);
        offer(&guest, i);
    }
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 256);
    CHECK_INT(asked.sent, 2560);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 44);
    CHECK_INT(read(pair[1], got, sizeof got), 3000);
    for (uint16_t i = 0; i < 200; i++) {
        desc(&guest, 2u * i, BUFFER_GPA, HEADER + 4, D_NEXT, 2u * i + 1u);
        desc(&guest, 2u * i + 1u, BUFFER_GPA + HEADER + 4, 6, 0, 0);
        offer(&guest, 2u * i);
    }
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 128);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 72);
    CHECK_INT(read(pair[1], got, sizeof got), 2000);
    /* The same addresses, another operation: SHUTDOWN is no data. */
    at(&guest, BUFFER_GPA)[30] = 4;
    offer(&guest, 0);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    close(pair[0]);
    close(pair[1]);
    close_guest(&guest);
}

/* Memory whose file was truncated. Payload that is gone is EFAULT, and the packet stays; what is read by us is a broken
 * ring; no byte that lies in front of it is sent twice or lost without a word. */
static void test_truncated(void) {
    enum { PAGE = 4096, FILE_GPA = 0x100000, PACKET = 200000 };
    struct guest guest;
    open_guest(&guest, 16);
    int fd = memfd_create("guest", 0), pair[2];
    CHECK(fd >= 0 && ftruncate(fd, PACKET) == 0);
    uint8_t *file = gw_map(fd, PACKET, 0);
    CHECK(file != NULL);
    guest.memory.region[3] = (struct gw_region){FILE_GPA, PACKET, UVA + FILE_GPA, file};
    guest.memory.count = 4;
    guest.memory.unsealed = 1;
    start(&guest, INDIRECT_AND_EVENT, 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    static uint8_t header[HEADER], rest[PACKET], got[PACKET];
    struct gw_forward asked = {.header = header, .limit = PACKET, .enough = PACKET, .most = PACKET, .socket = pair[0],
                               .rest = rest};

    /* The payload is gone from its beginning on. */
    packet(&guest, 0, 7, 100, 1100, 300);
    desc(&guest, 0, BUFFER_GPA, HEADER + 100, D_NEXT, 1);
    desc(&guest, 1, FILE_GPA + 3 * PAGE, 1000, 0, 0);
    CHECK(ftruncate(fd, PAGE) == 0);
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    int taken = gw_vring_forward(guest.ring, &asked);
    CHECK(taken == 0 && asked.sent == -EFAULT);
    CHECK_INT(gw_vring_room(guest.ring), 1);
    CHECK_INT(recv(pair[1], got, sizeof got, MSG_DONTWAIT), -1);
    CHECK_INT(pop_all(&guest, 10, PACKET, PACKET), GW_BROKEN_TRUNCATED);
    CHECK_INT(gw_vring_start(guest.ring, 1), 0);

    /* The header is. */
    desc(&guest, 2, FILE_GPA + 3 * PAGE, HEADER, D_NEXT, 3);
    desc(&guest, 3, BUFFER_GPA, 100, 0, 0);
    offer(&guest, 2);
    CHECK_INT(gw_vring_peek(guest.ring, header), GW_BROKEN_TRUNCATED);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), GW_BROKEN_TRUNCATED);
    CHECK_INT(asked.rest_size, 0);
    CHECK_INT(used_idx(&guest), 0);

    /* The socket took a part that is there, and the rest is not. */
    CHECK_INT(gw_vring_start(guest.ring, 2), 0);
    packet(&guest, 4, 9, 100, PACKET - PAGE, 300);
    desc(&guest, 4, BUFFER_GPA + 0x800 * 4, HEADER, D_NEXT, 5);
    desc(&guest, 5, FILE_GPA, PACKET - PAGE, 0, 0);
    CHECK(ftruncate(fd, PACKET / 2) == 0);
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    taken = gw_vring_forward(guest.ring, &asked);
    CHECK(taken == GW_BROKEN_TRUNCATED || (taken == 0 && asked.sent == -EFAULT));
    CHECK_INT(used_idx(&guest), 0);
    guest.memory.count = 3;
    gw_unmap(file, PACKET);
    close(fd);
    close(pair[0]);
    close(pair[1]);
    close_guest(&guest);
}

int main(void) {
    test_many();
    test_truncated();
    struct guest guest;
    open_guest(&guest, 16);
    uint8_t header[HEADER], rest[2000], got[8000];
    struct gw_forward asked = {.header = header, .limit = 1000, .enough = 1000, .most = 1500, .rest = rest};
    CHECK_INT(gw_vring_peek(guest.ring, header), 0); /* not placed yet */
    start(&guest, INDIRECT_AND_EVENT, 0);
    int pair[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    asked.socket = pair[0];
    CHECK_INT(gw_vring_peek(guest.ring, header), 0);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);

    /* Whatever way header and payload are cut; the next stream's packet stays. */
    packet(&guest, 0, 7, 100, 100, 20);
    packet(&guest, 2, 7, 50, 40, 60);
    packet(&guest, 4, 8, 50, 50, 44);
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    CHECK_INT(header[16], 7);
    CHECK_INT(gw_vring_room(guest.ring), 3);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 2);
    CHECK_INT(asked.sent, 140);
    CHECK_INT(asked.rest_size, 0);
    CHECK(asked.buf_alloc == 3 && asked.fwd_cnt == 4);
    CHECK_INT(read(pair[1], got, sizeof got), 140);
    for (int i = 0; i < 140; i++)
        CHECK_INT(got[i], i < 100 ? i : i - 100 + 2);
    CHECK(used_idx(&guest) == 2 && used_word(&guest, 0, 0) == 0 && used_word(&guest, 1, 0) == 2);
    CHECK_INT(used_word(&guest, 1, 1), 0);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0); /* another stream's */
    CHECK_INT(asked.sent, 0);

    /* Limits: `enough` ends it, `limit` is never passed. */
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    asked.limit = 49;
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    asked.limit = 1000, asked.enough = 50;
    packet(&guest, 6, 8, 50, 50, 200);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 1);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 1);
    CHECK_INT(read(pair[1], got, sizeof got), 100);

    /* What does not look as it should is left to pop: no payload, too much said, too long, too long a chain, no header. */
    static const uint32_t lies[][3] = {{100, 0, 200}, {100, 101, 44}, {1600, 1501, 44}, {1600, 10, 44}};
    for (int i = 0; i < 4; i++) {
        packet(&guest, 8, 8, lies[i][0], lies[i][1], lies[i][2]);
        CHECK_INT(gw_vring_peek(guest.ring, header), 1);
        asked.limit = asked.enough = 10000;
        CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
        CHECK_INT(gw_vring_discard(guest.ring, 1), 1);
    }
    desc(&guest, 8, BUFFER_GPA, 43, 0, 0);
    offer(&guest, 8);
    CHECK_INT(gw_vring_peek(guest.ring, header), 0);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    CHECK_INT(gw_vring_discard(guest.ring, 1), 1);
    desc(&guest, 8, BUFFER_GPA, 100, D_WRITE, 0);
    offer(&guest, 8);
    CHECK_INT(gw_vring_peek(guest.ring, header), 0);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    CHECK_INT(gw_vring_discard(guest.ring, 1), 1);

    /* A socket that takes part: the packet is taken, its rest is the caller's. */
    int small = 1;
    CHECK_INT(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    CHECK_INT(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
    for (uint16_t i = 2; i < 12; i += 2)
        packet(&guest, i, 9, 1200, 1200, 300);
    CHECK_INT(gw_vring_peek(guest.ring, header), 1);
    ssize_t filled = 0, more;
    static const uint8_t zeros[256];
    while ((more = write(pair[0], zeros, sizeof zeros)) > 0)
        filled += more;
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    CHECK_INT(asked.sent, -EAGAIN);
    CHECK_INT(gw_vring_room(guest.ring), 5);
    while (filled > 0)
        filled -= read(pair[1], got, sizeof got);
    int taken = gw_vring_forward(guest.ring, &asked);
    CHECK(taken > 0 && taken < 5);
    CHECK(asked.rest_size > 0);
    CHECK_INT((uint64_t)asked.sent + asked.rest_size, 1200 * (uint64_t)taken);
    CHECK_INT(read(pair[1], got, sizeof got), asked.sent);
    memcpy(got + asked.sent, rest, asked.rest_size);
    for (int i = 0; i < 1200 * taken; i++)
        CHECK_INT(got[i], (uint8_t)(2 + 2 * (i / 1200) + i % 1200));
    CHECK_INT(gw_vring_room(guest.ring), 5 - taken);
    CHECK_INT(gw_vring_discard(guest.ring, 5), 5 - taken);
    close(pair[1]);
    packet(&guest, 0, 9, 10, 10, 300);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), 0);
    CHECK_INT(asked.sent, -EPIPE);

    /* An available index that lies breaks the ring here as everywhere. */
    gw_store16(at(&guest, AVAIL + RING_IDX), 1000, memory_order_release);
    CHECK_INT(gw_vring_peek(guest.ring, header), GW_BROKEN_AVAIL_INDEX);
    CHECK_INT(gw_vring_forward(guest.ring, &asked), GW_BROKEN_AVAIL_INDEX);
    close(pair[0]);
    close_guest(&guest);
    return 0;
}
