/* SPDX-License-Identifier: MPL-2.0 */
/* Superframes and checksums from guest to guest: what the receiver takes arrives as it is, what it does not is finished
 * here or left. */
#include "lan.h"

#include "../checksum.h"

/* An IPv4 TCP superframe over three descriptors of which the first ends within the headers. */
static void test_a_superframe_moves_once(void) {
    struct lan *lan = open_lan();
    uint8_t *sent = put_frame(lan, 0, 6000);
    static const uint8_t ip[] = {8, 0, 0x45, 0, 5986 >> 8, 5986 & 255, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};
    memcpy(sent + HEADER + 12, ip, sizeof ip);
    sent[HEADER + 34 + 12] = 5 << 4;
    sent[0] = 1;
    sent[1] = 1 | 0x80;
    put16(sent + 4, 1448);
    put16(sent + 6, 34);
    put16(sent + 8, 16);
    desc(&lan->from, 0, BUFFERS, 30, D_NEXT, 1);
    desc(&lan->from, 1, BUFFERS + 30, 4000, D_NEXT, 2);
    desc(&lan->from, 2, BUFFERS + 4030, HEADER + 6000 - 4030, 0, 0);
    offer(&lan->from, 0);
    post(lan, 0, 1000);
    post(lan, 1, 4096);
    post(lan, 2, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK_INT(used_word(&lan->to, 65533, 1), 1000);
    CHECK_INT(used_word(&lan->to, 65534, 1), 4096);
    CHECK_INT(used_word(&lan->to, 65535, 1), HEADER + 6000 - 5096);
    CHECK(memcmp(buffer(lan, 0), "\1\x81\x36\0\xa8\5\x22\0\x10\0\3\0", HEADER) == 0); /* hdr_len 54, gso_size 1448 */
    CHECK(memcmp(buffer(lan, 0) + HEADER, sent + HEADER, 988) == 0);
    CHECK(memcmp(buffer(lan, 1), sent + 1000, 4096) == 0);
    CHECK(memcmp(buffer(lan, 2), sent + 5096, HEADER + 6000 - 5096) == 0);
    /* A receiver that does not take such superframes: for Python. */
    static const uint32_t lacking[] = {VNET_TSO6 | VNET_ECN | VNET_USO, VNET_TSO4 | VNET_TSO6 | VNET_USO};
    for (int i = 0; i < 2; i++) {
        lan->port.gso = lacking[i];
        if (i == 0)
            offer(&lan->from, 0);
        CHECK_INT(forward(lan), BRIDGE_LEFT);
        CHECK_INT(lan->job.stop, GW_STOP_UNUSUAL);
    }
    close_lan(lan);
}

/* Superframes of each kind whose payload moves directly, behind tags or not, and one whose headers may be anywhere. */
static void test_superframes_of_all_kinds(void) {
    static const struct { uint8_t type, proto, tags; int version; uint32_t bit; bool chased; } kinds[] = {
        {1, 6, 0, 4, VNET_TSO4, false}, {1, 6, 1, 4, VNET_TSO4, false},    {4, 6, 0, 6, VNET_TSO6, false},
        {4, 6, 2, 6, VNET_TSO6, false}, {0x84, 6, 0, 6, VNET_ECN, false}, {5, 17, 0, 4, VNET_USO, false},
        {5, 17, 1, 6, VNET_USO, false}, {4, 6, 0, 6, VNET_TSO6, true},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        struct lan *lan = open_lan();
        uint32_t size = 3000, at_ip = 14 + 4u * kinds[k].tags, header = kinds[k].version == 4 ? 20 : 40;
        uint8_t *sent = put_frame(lan, 0, size), *frame = sent + HEADER;
        memset(frame + 12, 0, 100);
        for (uint32_t tag = 0; tag < kinds[k].tags; tag++)
            memcpy(frame + 12 + 4 * tag, tag == 0 && kinds[k].tags == 2 ? "\x88\xa8" : "\x81\x00", 2);
        uint32_t length = size - at_ip;
        uint8_t *ip = frame + at_ip;
        if (kinds[k].version == 4) {
            memcpy(ip - 2, "\x08\x00\x45", 3);
            ip[2] = (uint8_t)(length >> 8);
            ip[3] = (uint8_t)length;
            ip[9] = kinds[k].proto;
        } else {
            memcpy(ip - 2, "\x86\xdd\x60", 3);
            ip[4] = (uint8_t)((length - 40) >> 8);
            ip[5] = (uint8_t)(length - 40);
            ip[6] = kinds[k].proto;
            if (kinds[k].chased) { /* a destination option of eight bytes first */
                ip[6] = 60;
                ip[40] = kinds[k].proto;
                header = 48;
            }
        }
        ip[header + 12] = 0x50;
        sent[0] = 1;
        sent[1] = kinds[k].type;
        put16(sent + 4, 1000);
        put16(sent + 6, at_ip + header);
        put16(sent + 8, kinds[k].proto == 6 ? 16 : 6);
        desc(&lan->from, 0, BUFFERS, HEADER + size, 0, 0);
        offer(&lan->from, 0);
        post(lan, 0, 4096);
        uint32_t all = lan->port.gso;
        lan->port.gso = all & ~kinds[k].bit;
        CHECK_INT(forward(lan), BRIDGE_LEFT);
        CHECK_INT(lan->job.stop, GW_STOP_UNUSUAL);
        lan->port.gso = all;
        CHECK_INT(forward(lan), BRIDGE_MOVED);
        CHECK_INT(buffer(lan, 0)[1], kinds[k].type);
        CHECK_INT(buffer(lan, 0)[2], at_ip + header + (kinds[k].proto == 6 ? 20 : 8));
        CHECK(memcmp(buffer(lan, 0) + HEADER, frame, size) == 0);
        close_lan(lan);
    }
}

/* What looks like a tag or IPv6 at first sight, and a large frame whose checksum has to be finished here. */
static void test_types_that_are_none(void) {
    static const uint8_t types[][2] = {{0x81, 0x37}, {0x88, 0xb5}, {0x86, 0x04}};
    struct lan *lan = open_lan();
    lan->inbox.mtu = lan->port.mtu = 9000;
    for (uint16_t i = 0; i < 4; i++) {
        uint8_t *sent = put_frame(lan, i, 3000);
        memcpy(sent + HEADER + 12, types[i % 3], 2);
        sent[0] = 1;
        put16(sent + 6, 14);
        put16(sent + 8, 2);
        lan->port.guest_csum = i < 3;
        desc(&lan->from, i, BUFFERS + 4096 * i, HEADER + 3000, 0, 0);
        offer(&lan->from, i);
        post(lan, i, 4096);
        CHECK_INT(forward(lan), BRIDGE_MOVED);
        if (i < 3)
            CHECK(memcmp(buffer(lan, i) + HEADER, sent + HEADER, 3000) == 0);
        else {
            CHECK(memcmp(buffer(lan, i) + HEADER + 18, sent + HEADER + 18, 2982) == 0);
            uint32_t sum = gw_sum(buffer(lan, i) + HEADER + 14, 2986, 0); /* what was in the field stays in it */
            CHECK_INT(gw_sum(sent + HEADER + 16, 2, sum), 0xffff);
        }
    }
    close_lan(lan);
}

/* With a tag a superframe can be longer than any receiver takes. */
static void test_a_superframe_that_is_too_long(void) {
    struct lan *lan = open_lan();
    uint8_t *sent = put_frame(lan, 0, 4000), *frame = sent + HEADER;
    memcpy(frame + 12, "\x81\0\0\7\x08\0\x45\0\xff\xff\0\0\x40\0\x40\6", 16);
    frame[38 + 12] = 0x50;
    sent[0] = sent[1] = 1;
    put16(sent + 4, 1400);
    put16(sent + 6, 38);
    put16(sent + 8, 16);
    for (uint16_t i = 0; i < 16; i++)
        desc(&lan->from, i, BUFFERS, i == 0 ? 4000 : i == 15 ? HEADER + 65553 - 14 * 4352 - 4000 : 4352,
             i < 15 ? D_NEXT : 0, i + 1);
    offer(&lan->from, 0);
    post(lan, 0, 4096);
    CHECK_INT(forward(lan), BRIDGE_LEFT);
    CHECK_INT(lan->job.stop, GW_STOP_UNUSUAL);
    close_lan(lan);
}

/* UDP over IPv6: its checksum is finished for a receiver that takes no partial ones, verified for one that believes us. */
static void test_checksums(void) {
    struct lan *lan = open_lan();
    uint8_t *sent = put_frame(lan, 0, 80);
    static const uint8_t ip[] = {0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64};
    memcpy(sent + HEADER + 12, ip, sizeof ip);
    uint8_t *udp = sent + HEADER + 54;
    memcpy(udp, "\1\2\3\4\0\x1a\0\0", 8);
    uint8_t tail[8] = {0, 0, 0, 26, 0, 0, 0, 17};
    uint32_t pseudo = gw_sum(tail, 8, gw_sum(sent + HEADER + 22, 32, 0));
    udp[6] = (uint8_t)(pseudo >> 8);
    udp[7] = (uint8_t)pseudo;
    sent[0] = 1;
    put16(sent + 6, 54);
    put16(sent + 8, 6);
    desc(&lan->from, 0, BUFFERS, HEADER + 80, 0, 0);
    offer(&lan->from, 0);
    post(lan, 0, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK(memcmp(buffer(lan, 0), sent, 10) == 0 && memcmp(buffer(lan, 0) + HEADER, sent + HEADER, 80) == 0);
    lan->port.guest_csum = lan->port.merge = lan->port.gso = 0;
    offer(&lan->from, 0);
    post(lan, 1, 4096);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK(memcmp(buffer(lan, 1), "\0\0\0\0\0\0\0\0\0\0\1\0", HEADER) == 0);
    CHECK_INT(gw_sum(buffer(lan, 1) + HEADER + 54, 26, gw_sum(tail, 8, gw_sum(sent + HEADER + 22, 32, 0))), 0xffff);
    /* back again, complete: verified on the way */
    memcpy(sent, buffer(lan, 1), HEADER + 80);
    for (uint16_t slot = 2; slot < 4; slot++) {
        lan->port.guest_csum = slot == 2;
        offer(&lan->from, 0);
        post(lan, slot, 4096);
        CHECK_INT(forward(lan), BRIDGE_MOVED);
        CHECK_INT(buffer(lan, slot)[0], slot == 2 ? 2 : 0);
    }
    udp[8] ^= 1;
    offer(&lan->from, 0);
    CHECK_INT(forward(lan), 0);
    CHECK_INT(lan->job.taken, 1);
    CHECK_INT(lan->drops[VNET_DROP_CHECKSUM], 1);
    close_lan(lan);
}

static void test_a_large_packet_without_superframes_is_summed(void) {
    struct lan *lan = open_lan();
    lan->inbox.mtu = lan->port.mtu = 9000;
    uint8_t *sent = put_frame(lan, 0, 3000);
    static const uint8_t ip[] = {8, 0, 0x45, 0, 2986 >> 8, 2986 & 255, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
                                 1, 2, 3, 4, 2966 >> 8, 2966 & 255, 0x12, 0x34};
    memcpy(sent + HEADER + 12, ip, sizeof ip);
    desc(&lan->from, 0, BUFFERS, HEADER + 3000, 0, 0);
    offer(&lan->from, 0);
    post(lan, 0, 4096);
    CHECK_INT(forward(lan), 0);
    CHECK_INT(lan->drops[VNET_DROP_CHECKSUM], 1);
    sent[HEADER + 40] = sent[HEADER + 41] = 0; /* none */
    offer(&lan->from, 0);
    CHECK_INT(forward(lan), BRIDGE_MOVED);
    CHECK(memcmp(buffer(lan, 0) + HEADER, sent + HEADER, 3000) == 0);
    close_lan(lan);
}

int main(void) {
    test_a_superframe_moves_once();
    test_superframes_of_all_kinds();
    test_types_that_are_none();
    test_a_superframe_that_is_too_long();
    test_checksums();
    test_a_large_packet_without_superframes_is_summed();
    puts("ok");
    return 0;
}
