/* SPDX-License-Identifier: MPL-2.0 */
/* Payload that lands in a reader's buffer, from a ring on: which chains do, what is said of them, and what the rest does. */
#include "guest.h"

#include "../bytes.h"
#include "../checksum.h"
#include "../take.h"

enum { PAYLOAD = 20000, MSS = 1448, SLOT = 128, PLAIN = 40, STAMPED = 52, GROUND = 3 * PAYLOAD, CHAIN = 65536 };

static const uint8_t HEAD[16] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0};
static const uint8_t PLACE[12] = {10, 0, 2, 15, 10, 0, 2, 2, 0x9c, 0x40, 0, 80};

struct card {
    struct guest guest;
    struct gw_take take;
    uint8_t small[64] __attribute__((aligned(8)));
    struct vnet_record records[16];
    struct chunk chunks[16];
    uint64_t drops[VNET_DROPS];
    uint8_t *ground; /* from malloc, so that ASan sees every byte beyond it */
};

static void put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void put32(uint8_t *p, uint32_t value) {
    put16(p, value >> 16);
    put16(p + 2, value);
}

static struct card *open_card(uint64_t features) {
    struct card *card = calloc(1, sizeof *card);
    CHECK(card != NULL);
    open_guest(&card->guest, 16);
    start(&card->guest, features, 65534);
    card->ground = malloc(GROUND);
    CHECK(card->ground != NULL);
    card->take = (struct gw_take){.ring = card->guest.ring, .budget = 16, .join = 1, .max_bytes = 1 << 19,
                                  .max_chain = CHAIN,
                                  .burst = {.small = card->small, .small_size = sizeof card->small},
                                  .inbox = {.accept = VNET_CSUM | VNET_TSO4 | VNET_VERIFY, .mtu = 1500,
                                            .records = card->records, .chunks = card->chunks, .drops = card->drops}};
    for (uint32_t i = 0; i < PAYLOAD; i++)
        *at(&card->guest, BUFFERS + i) = (uint8_t)(i * 7 + (i >> 8));
    return card;
}

static void close_card(struct card *card) {
    gw_slab_free(card->take.burst.slab);
    free(card->ground);
    close_guest(&card->guest);
    free(card);
}

/* The headers of superframe number `slot` of a stream, in memory of their own. */
static uint8_t *headers(struct card *card, uint32_t slot, uint32_t data, uint32_t payload) {
    uint8_t *header = at(&card->guest, C_GPA + SLOT * slot), *ip = header + 26, *tcp = ip + 20;
    memset(header, 0, SLOT);
    header[0] = 1; /* NEEDS_CSUM */
    if (payload > MSS) {
        header[1] = 1; /* GSO_TCPV4 */
        header[4] = MSS & 0xff;
        header[5] = MSS >> 8;
    }
    header[6] = 34;
    header[8] = 16;
    memcpy(header + 12, HEAD, sizeof HEAD);
    put16(ip + 2, data + payload);
    put16(ip + 4, slot * 50);
    put16(ip + 8, 64 << 8 | 6);
    memcpy(ip + 12, PLACE, sizeof PLACE);
    put16(ip + 10, ~gw_sum(ip, 20, 0) & 0xffff);
    put32(tcp + 4, 0xffffff00 + slot * PAYLOAD);
    put32(tcp + 8, 77);
    tcp[12] = (uint8_t)((data - 20) << 2);
    tcp[13] = 0x10 | (slot & 1 ? 8 : 0);
    put16(tcp + 14, 500);
    if (data == STAMPED) {
        put32(tcp + 20, 0x0101080a);
        put32(tcp + 24, 1000);
        put32(tcp + 28, slot);
    }
    return header;
}

/* A chain of headers, in two pieces, and payload. */
static void send(struct card *card, uint32_t slot, uint32_t data, uint32_t payload) {
    struct guest *guest = &card->guest;
    uint32_t header = 26 + data;
    desc(guest, 3 * slot, C_GPA + SLOT * slot, 30, D_NEXT, (uint16_t)(3 * slot + 1));
    desc(guest, 3 * slot + 1, C_GPA + SLOT * slot + 30, header - 30, D_NEXT, (uint16_t)(3 * slot + 2));
    desc(guest, 3 * slot + 2, BUFFERS, payload, 0, 0);
    offer(guest, (uint16_t)(3 * slot));
}

static void superframe(struct card *card, uint32_t slot, uint32_t data) {
    headers(card, slot, data, PAYLOAD);
    send(card, slot, data, PAYLOAD);
}

static struct gw_landing *want(struct card *card, uint32_t data, uint32_t room) {
    struct gw_landing *landing = &card->take.landing;
    gw_slab_free(card->take.burst.slab);
    memset(card->ground, 0xee, GROUND);
    *landing = (struct gw_landing){.ground = card->ground, .fate = 64 << 8 | 6, .window = 500, .seq = 0xffffff00,
                                   .ack = 77, .stamp = 999, .data = data, .room = room};
    memcpy(landing->head, HEAD, sizeof HEAD);
    memcpy(landing->place, PLACE, sizeof PLACE);
    return landing;
}

static void check_ground(struct card *card, uint32_t frames) {
    for (uint32_t i = 0; i < frames * PAYLOAD; i++)
        CHECK_INT(card->ground[i], *at(&card->guest, BUFFERS + i % PAYLOAD));
    for (uint32_t i = frames * PAYLOAD; i < GROUND; i++)
        CHECK_INT(card->ground[i], 0xee);
}

static void test_what_was_expected_lands(uint32_t data) {
    struct card *card = open_card(INDIRECT_AND_EVENT);
    for (uint32_t i = 0; i < 3; i++)
        superframe(card, i, data);
    struct gw_landing *landing = want(card, data, GROUND);
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK(card->take.burst.slab == NULL);
    CHECK_INT(landing->frames, 3);
    CHECK_INT(landing->bytes, 3 * PAYLOAD);
    CHECK_INT(landing->wire, 3 * (14 + data + PAYLOAD));
    CHECK_INT(landing->segments, 3 * ((PAYLOAD + MSS - 1) / MSS));
    CHECK_INT(landing->longest, MSS);
    CHECK_INT(landing->value, data == PLAIN ? 0 : 1000);
    CHECK_INT(landing->full, 0);
    CHECK_INT(landing->room, 0); /* asked for once */
    CHECK_INT(card->take.inbox.frames, 3);
    CHECK_INT(card->take.inbox.bytes, landing->wire);
    CHECK_INT(card->take.inbox.heard, landing->wire);
    check_ground(card, 3);
    CHECK_INT(used_idx(&card->guest), (uint16_t)(65534 + 3));
    const struct gw_counters *counters = gw_vring_counters(card->guest.ring);
    CHECK_INT(counters->bytes, landing->wire + 36);
    CHECK_INT(counters->dropped_long, 0);
    CHECK_INT(calls(&card->guest), 1); /* from the start: that these buffers are free can wait */
    gw_vring_elapse(card->guest.ring, GW_OWED_LOOKS);
    CHECK_INT(calls(&card->guest), 1);
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK_INT(landing->frames, 0);
    close_card(card);
}

static void test_the_rest_goes_to_the_slab(void) {
    struct card *card = open_card(0);
    superframe(card, 0, PLAIN);
    headers(card, 1, PLAIN, PAYLOAD)[26 + 20 + 13] |= 1; /* FIN */
    send(card, 1, PLAIN, PAYLOAD);
    superframe(card, 2, PLAIN); /* as expected, but what is before it did not land */
    struct gw_landing *landing = want(card, PLAIN, GROUND);
    CHECK_INT(gw_take_one(&card->take), 2);
    CHECK_INT(card->take.frames, 2);
    CHECK_INT(landing->frames, 1);
    CHECK_INT(card->take.inbox.frames, 3);
    CHECK_INT(card->take.inbox.bytes, 3 * (54 + PAYLOAD));
    CHECK_INT(card->take.inbox.heard, 3 * (54 + PAYLOAD));
    CHECK_INT(card->records[0].end - card->records[0].begin, 54 + PAYLOAD);
    check_ground(card, 1);
    close_card(card);
}

static void test_what_finds_no_room_waits(void) {
    struct card *card = open_card(0);
    for (uint32_t i = 0; i < 3; i++)
        superframe(card, i, PLAIN);
    struct gw_landing *landing = want(card, PLAIN, 2 * PAYLOAD + 100);
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK_INT(landing->frames, 2);
    CHECK_INT(landing->full, 1);
    CHECK(card->take.inbox.heard == UINT64_MAX);
    check_ground(card, 2);
    CHECK_INT(gw_vring_room(card->guest.ring), 1);
    landing = want(card, PLAIN, PAYLOAD - 1); /* where none fits, none waits */
    landing->seq += 2 * PAYLOAD;
    CHECK_INT(gw_take_one(&card->take), 1);
    CHECK_INT(landing->frames, 0);
    check_ground(card, 0);
    close_card(card);
}

static void test_a_burst_is_as_long_as_ever(void) {
    struct card *card = open_card(0);
    for (uint32_t i = 0; i < 3; i++)
        superframe(card, i, PLAIN);
    card->take.max_bytes = 2 * (66 + PAYLOAD);
    struct gw_landing *landing = want(card, PLAIN, GROUND);
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK_INT(landing->frames, 2);
    CHECK_INT(landing->full, 0);
    card->take.max_chain = PAYLOAD; /* one too long for us is dropped before anything lands */
    landing = want(card, PLAIN, GROUND);
    landing->seq += 2 * PAYLOAD;
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK_INT(landing->frames, 0);
    CHECK_INT(gw_vring_counters(card->guest.ring)->dropped_long, 1);
    close_card(card);
}

static void test_one_large_packet(void) {
    struct card *card = open_card(0);
    card->take.inbox.mtu = 65535;
    headers(card, 0, PLAIN, PAYLOAD);
    memset(at(&card->guest, C_GPA + 1), 0, 5); /* no superframe */
    send(card, 0, PLAIN, PAYLOAD);
    struct gw_landing *landing = want(card, PLAIN, GROUND);
    CHECK_INT(gw_take_one(&card->take), 0);
    CHECK_INT(landing->frames, 1);
    CHECK_INT(landing->segments, 1);
    CHECK_INT(landing->longest, PAYLOAD);
    close_card(card);
}

/* What bits of the headers may be other than expected; 0xff: all. */
static uint8_t free_bits(uint32_t byte, uint32_t data) {
    if ((byte >= 2 && byte < 4) || byte == 10 || byte == 11) /* hdr_len, num_buffers */
        return 0xff;
    if (byte == 0) /* flags we do not know */
        return 0xfe;
    if (byte == 26 + 4 || byte == 26 + 5) /* identification */
        return 0xff;
    if (byte == 26 + 6) /* DF and what is reserved */
        return 0xc0;
    if (byte == 26 + 20 + 13)
        return 0x08; /* PSH */
    if (byte >= 26 + 20 + 16 && byte < 26 + 20 + 20) /* checksum, which the facts vouch for; urgent pointer without URG */
        return 0xff;
    if (data == STAMPED && byte >= 26 + 20 + 28)
        return 0xff;
    return 0;
}

static void test_whatever_differs_does_not_land(uint32_t data) {
    uint32_t landed = 0, refused = 0;
    for (uint32_t byte = 0; byte < 26 + data; byte++)
        for (uint32_t bit = 1; bit < 256; bit <<= 1) {
            if (byte == 26 + 10 || byte == 26 + 11)
                continue; /* the header's checksum: below */
            struct card *card = open_card(0);
            uint8_t *header = headers(card, 0, data, PAYLOAD);
            header[byte] ^= (uint8_t)bit;
            put16(header + 26 + 10, 0);
            put16(header + 26 + 10, ~gw_sum(header + 26, 20, 0) & 0xffff);
            send(card, 0, data, PAYLOAD);
            struct gw_landing *landing = want(card, data, GROUND);
            gw_take_one(&card->take);
            uint32_t stamp = byte - (26 + 20 + 24);
            int earlier = data == STAMPED && stamp < 4;
            uint32_t size = header[4] | (uint32_t)header[5] << 8; /* of segments: any that the MTU allows */
            int may = earlier                  ? gw_be32(header + 26 + 20 + 24) - 999u < 0x80000000
                      : byte == 4 || byte == 5 ? size >= VNET_MIN_GSO && size + data <= 1500
                                               : (free_bits(byte, data) & bit) != 0;
            CHECK_INT(landing->frames, may);
            check_ground(card, (uint32_t)may);
            landed += (uint32_t)may;
            refused += !may;
            close_card(card);
        }
    CHECK(landed > 50 && refused > 200);
    struct card *card = open_card(0);
    headers(card, 0, data, PAYLOAD)[26 + 10] ^= 1;
    send(card, 0, data, PAYLOAD);
    struct gw_landing *landing = want(card, data, GROUND);
    gw_take_one(&card->take);
    CHECK_INT(landing->frames, 0);
    close_card(card);
}

static void test_small_ones_do_not_land(void) {
    static const uint32_t sizes[] = {1, 20, 1000, VNET_BULK - 1};
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct card *card = open_card(0);
        headers(card, 0, PLAIN, sizes[i]);
        send(card, 0, PLAIN, sizes[i]);
        struct gw_landing *landing = want(card, PLAIN, GROUND);
        CHECK_INT(gw_take_one(&card->take), 1);
        CHECK_INT(landing->frames, 0);
        check_ground(card, 0);
        close_card(card);
    }
}

static void test_other_time_stamps_do_not_land_together(void) {
    struct card *card = open_card(0);
    superframe(card, 0, STAMPED);
    put32(headers(card, 1, STAMPED, PAYLOAD) + 26 + 20 + 24, 1001);
    send(card, 1, STAMPED, PAYLOAD);
    struct gw_landing *landing = want(card, STAMPED, GROUND);
    CHECK_INT(gw_take_one(&card->take), 1);
    CHECK_INT(landing->frames, 1);
    CHECK_INT(landing->value, 1000);
    close_card(card);
}

static void test_a_broken_ring_has_landed_nothing(void) {
    struct card *card = open_card(0);
    superframe(card, 0, PLAIN);
    desc(&card->guest, 9, HOLE, 100, 0, 0);
    offer(&card->guest, 9);
    struct gw_landing *landing = want(card, PLAIN, GROUND);
    CHECK_INT(gw_take_one(&card->take), 0); /* that before the broken one is good */
    CHECK_INT(landing->frames, 1);
    landing = want(card, PLAIN, GROUND);
    CHECK_INT(gw_take_one(&card->take), GW_BROKEN_ADDRESS);
    CHECK_INT(landing->frames, 0);
    CHECK_INT(landing->room, 0);
    close_card(card);
}

int main(void) {
    for (uint32_t data = PLAIN; data <= STAMPED; data += STAMPED - PLAIN) {
        test_what_was_expected_lands(data);
        test_whatever_differs_does_not_land(data);
    }
    test_the_rest_goes_to_the_slab();
    test_what_finds_no_room_waits();
    test_a_burst_is_as_long_as_ever();
    test_one_large_packet();
    test_small_ones_do_not_land();
    test_other_time_stamps_do_not_land_together();
    test_a_broken_ring_has_landed_nothing();
    puts("ok");
    return 0;
}
