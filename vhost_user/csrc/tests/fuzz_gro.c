/* SPDX-License-Identifier: MPL-2.0 */
/* Joining under a fuzzer: whatever the frames, cutting what was joined gives them back.
 *
 * The oracle cuts each superframe by itself and compares every byte with the frames it was made of, but for checksums
 * nobody reads any more and identifications that mean nothing. Of a frame marked as continuing the one before it makes the
 * headers out of that one's, and compares. With -DSTANDALONE this is a program of its own that feeds
 * itself runs with something wrong in them (argument: how many). Build with gro.c, train.c, vnet.c and checksum.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../gro.h"
#include "../train.h"

enum { MAX_CHAINS = 160, ACCEPT = 63 };

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint32_t be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static uint32_t be32(const uint8_t *p) { return be16(p) << 16 | be16(p + 2); }

static void put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* RFC 1071, word by word. */
static uint32_t slow_sum(const uint8_t *p, size_t length, uint32_t sum) {
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += be16(p + i);
    if (length & 1)
        sum += (uint32_t)p[length - 1] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* One piece of a superframe against the frame it must have come from. */
static void check_piece(const uint8_t *super, const uint8_t *frame, uint32_t length, uint32_t transport, uint32_t headers,
                        uint32_t offset, uint32_t bytes, uint32_t number, int last) {
    uint8_t cut[14 + 40 + 60];
    int six = super[12] == 0x86, tcp = super[six ? 20 : 23] == 6;
    memcpy(cut, super, headers);
    CHECK(length >= headers + bytes);
    if (six) {
        put16(cut + 18, headers - 54 + bytes);
    } else {
        put16(cut + 16, headers - 14 + bytes);
        CHECK(slow_sum(super + 14, 20, 0) == 0xffff && slow_sum(frame + 14, 20, 0) == 0xffff);
        uint32_t id = (be16(super + 18) + number) & 0xffff;
        CHECK((super[20] & 0x40) || id == be16(frame + 18));
        memcpy(cut + 18, frame + 18, 2);
        memcpy(cut + 24, frame + 24, 2);
    }
    if (tcp) {
        uint32_t seq = be32(super + transport + 4) + offset;
        put16(cut + transport + 4, seq >> 16);
        put16(cut + transport + 6, seq & 0xffff);
        if (!last)
            cut[transport + 13] &= (uint8_t)~8;
        memcpy(cut + transport + 16, frame + transport + 16, 2);
    } else {
        put16(cut + transport + 4, 8 + bytes);
        memcpy(cut + transport + 6, frame + transport + 6, 2);
    }
    CHECK(memcmp(cut, frame, headers) == 0);
    CHECK(memcmp(super + headers + offset, frame + headers, bytes) == 0);
}

static size_t check_superframe(const uint8_t *super, const struct vnet_record *r, const uint8_t *slab,
                               const struct vnet_record *from, size_t most) {
    int six = super[12] == 0x86;
    uint32_t length = r->end - r->begin, transport = six ? 54 : 34, size = r->gso_size;
    int tcp = super[six ? 20 : 23] == 6;
    CHECK(r->flags == 1 && r->csum_start == transport && r->csum_offset == (tcp ? 16 : 6));
    CHECK(r->gso_type == (tcp ? (six ? 4 : 1) : 5));
    uint32_t headers = transport + (tcp ? (uint32_t)(super[transport + 12] >> 4) * 4 : 8);
    CHECK(headers < length && length - 14 <= 65535 && size > 0);
    CHECK(be16(super + (six ? 18 : 16)) == length - (six ? 54 : 14));
    CHECK(tcp || be16(super + transport + 4) == length - transport);
    const uint8_t *addresses = super + (six ? 22 : 26);
    uint32_t pseudo = slow_sum(addresses, six ? 32 : 8, length - transport + (tcp ? 6 : 17));
    CHECK(be16(super + transport + (tcp ? 16 : 6)) == pseudo);
    size_t pieces = 0;
    for (uint32_t at = 0; at < length - headers; at += size, pieces++) {
        uint32_t rest = length - headers - at, bytes = rest < size ? rest : size;
        CHECK(pieces < most);
        check_piece(super, slab + from[pieces].begin, from[pieces].end - from[pieces].begin, transport, headers, at, bytes,
                    (uint32_t)pieces, bytes == rest);
    }
    CHECK(pieces > 1 && (tcp ? size >= VNET_MIN_GSO : pieces <= GRO_MAX_DATAGRAMS));
    return pieces;
}

static size_t followers, acknowledgments; /* of all rounds; acknowledgments are among the followers */

/* A frame marked as continuing the one before. */
static void check_follower(const uint8_t *before, uint32_t length, const uint8_t *frame, uint32_t here) {
    uint8_t made[14 + 40 + 60];
    int six = before[12] == 0x86;
    uint32_t transport = six ? 54 : 34;
    uint32_t headers = transport + (uint32_t)(before[transport + 12] >> 4) * 4;
    CHECK(before[six ? 20 : 23] == 6 && headers >= transport + 20 && headers <= length && headers <= here);
    CHECK((headers < length) == (headers < here));
    memcpy(made, before, headers);
    if (six) {
        CHECK(be16(before + 18) == length - 54);
        put16(made + 18, here - 54);
    } else {
        CHECK(be16(before + 16) == length - 14 && slow_sum(frame + 14, 20, 0) == 0xffff);
        CHECK(before[14] == 0x45 && !(be16(before + 20) & 0x3fff));
        put16(made + 16, here - 14);
        memcpy(made + 18, frame + 18, 2);
        memcpy(made + 24, frame + 24, 2);
    }
    if (headers == length) { /* bare: it acknowledges more, and may say another window */
        uint32_t more = be32(frame + transport + 8) - be32(before + transport + 8);
        CHECK(more > 0 && more < 1u << 31 && before[transport + 13] == 0x10);
        memcpy(made + transport + 8, frame + transport + 8, 4);
        memcpy(made + transport + 14, frame + transport + 14, 2);
        acknowledgments++;
    }
    uint32_t seq = be32(before + transport + 4) + length - headers;
    put16(made + transport + 4, seq >> 16);
    put16(made + transport + 6, seq & 0xffff);
    if (headers < length)
        made[transport + 13] = (uint8_t)((made[transport + 13] & ~8) | (frame[transport + 13] & 8));
    memcpy(made + transport + 16, frame + transport + 16, 2);
    CHECK(memcmp(made, frame, headers) == 0);
    followers++;
}

static void check_train(const uint8_t *slab, struct vnet_record *records, size_t count) {
    struct vnet_record before[MAX_CHAINS];
    memcpy(before, records, count * sizeof *before);
    vnet_mark_followers(slab, records, count);
    for (size_t i = 0; i < count; i++) {
        struct vnet_record *r = &records[i], *last = i > 0 ? r - 1 : r;
        if (r->flags & VNET_FOLLOWS) {
            CHECK(i > 0 && r->flags == (VNET_FOLLOWS | before[i].flags) && before[i].flags != 0);
            CHECK(before[i].flags == before[i - 1].flags && r->gso_type == last->gso_type);
            CHECK(r->gso_size == last->gso_size && r->csum_start == last->csum_start);
            check_follower(slab + last->begin, last->end - last->begin, slab + r->begin, r->end - r->begin);
            r->flags &= (uint16_t)~VNET_FOLLOWS;
        }
        CHECK(memcmp(r, &before[i], sizeof *r) == 0);
    }
}

/* Returns how many frames were joined with one before them. */
static size_t check_join(const uint8_t *slab, size_t size, const uint32_t *chains, size_t n) {
    struct vnet_record before[MAX_CHAINS], after[MAX_CHAINS];
    struct chunk chunks[MAX_CHAINS];
    uint64_t drops[VNET_DROPS] = {0};
    size_t count = vnet_parse(slab, size, chains, n, ACCEPT, 65535, before, drops);
    uint8_t *work = malloc(size ? size : 1);
    CHECK(work != NULL);
    memcpy(work, slab, size);
    memcpy(after, before, sizeof before);
    size_t left = gro_join(work, after, count), i = 0;
    for (size_t j = 0; j < left; j++) {
        const uint8_t *now = work + after[j].begin;
        CHECK(i < count && after[j].begin == before[i].begin && after[j].end <= size);
        if (after[j].gso_type != before[i].gso_type) {
            i += check_superframe(now, &after[j], slab, before + i, count - i);
        } else {
            CHECK(memcmp(&after[j], &before[i], sizeof after[j]) == 0);
            CHECK(memcmp(now, slab + before[i].begin, before[i].end - before[i].begin) == 0);
            i++;
        }
    }
    CHECK(i == count);
    check_train(work, after, left);
    check_train(slab, before, count);
    CHECK(vnet_place(after, left, size, chunks) <= left);
    free(work);
    return count - left;
}

/* Input: number of chains (1), their lengths (2 each), then the slab. */
static size_t run_one(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    size_t n = data[0] % (MAX_CHAINS + 1);
    data += 1;
    size -= 1;
    if (size < 2 * n)
        return 0;
    uint32_t chains[2 * MAX_CHAINS], at = 0;
    for (size_t i = 0; i < n; i++) {
        chains[2 * i] = at;
        chains[2 * i + 1] = (uint32_t)(data[2 * i] | data[2 * i + 1] << 8);
        at += chains[2 * i + 1];
    }
    size -= 2 * n;
    uint8_t *slab = malloc(size ? size : 1);
    CHECK(slab != NULL);
    memcpy(slab, data + 2 * n, size);
    size_t joined = check_join(slab, size, chains, n);
    free(slab);
    return joined;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run_one(data, size);
    return 0;
}

#ifdef STANDALONE
#include "draw.h"

struct flow {
    int six, tcp;
    uint32_t words, seq, id, size, ack, step; /* step: it only acknowledges, so much more with each frame */
};

/* The next frame of a flow behind its header; now and then one byte is another, or the length. */
static size_t next_frame(uint8_t *out, struct flow *f) {
    uint32_t payload = f->step && draw(12) ? 0 : draw(12) ? f->size : draw(f->size + 2), padding = draw(6) ? 0 : draw(20);
    uint32_t ip = f->six ? 40 : 20, header = f->tcp ? 4 * f->words : 8, transport = 14 + ip;
    uint8_t *frame = out + 12, *l3 = frame + 14, *l4 = frame + transport;
    size_t size = transport + header + payload;
    memset(out, 0, 12 + size + padding);
    out[0] = 1;
    out[6] = (uint8_t)transport;
    out[8] = f->tcp ? 16 : 6;
    frame[12] = f->six ? 0x86 : 0x08;
    frame[13] = f->six ? 0xdd : 0;
    if (f->six) {
        l3[0] = 0x60;
        put16(l3 + 4, header + payload);
        l3[6] = f->tcp ? 6 : 17;
    } else {
        l3[0] = 0x45;
        put16(l3 + 2, 20 + header + payload);
        put16(l3 + 4, f->id++);
        l3[6] = f->id & 0x40000 ? 0x40 : 0; /* DF or not, for all of a flow */
        l3[9] = f->tcp ? 6 : 17;
    }
    if (f->tcp) {
        put16(l4 + 4, f->seq >> 16);
        put16(l4 + 6, f->seq & 0xffff);
        f->ack += draw(8) ? f->step : 0;
        put16(l4 + 8, f->ack >> 16);
        put16(l4 + 10, f->ack & 0xffff);
        l4[12] = (uint8_t)(f->words << 4);
        l4[13] = draw(20) ? 0x10 : 0x18;
    } else {
        put16(l4 + 4, 8 + payload);
    }
    f->seq += payload;
    for (uint32_t i = 0; i < payload; i++)
        l4[header + i] = (uint8_t)draw(256);
    if (!f->six)
        put16(l3 + 10, ~slow_sum(l3, 20, 0) & 0xffff);
    if (draw(25) == 0) {
        size_t at = draw(transport + header);
        frame[at] ^= (uint8_t)(1 << draw(8));
        if (!f->six && at >= 14 && at < 34 && draw(4)) { /* wrong, but summed rightly */
            put16(l3 + 10, 0);
            put16(l3 + 10, ~slow_sum(l3, 20, 0) & 0xffff);
        }
    }
    return 12 + size + padding;
}

int main(int argc, char **argv) {
    static uint8_t input[1 + 2 * MAX_CHAINS + MAX_CHAINS * 2048];
    long rounds = argc > 1 ? atol(argv[1]) : 1000;
    size_t joined = 0, most = 0;
    for (long i = 0; i < rounds; i++) {
        struct flow flows[2];
        for (int k = 0; k < 2; k++)
            flows[k] = (struct flow){(int)draw(2), (int)draw(2), 5 + draw(11), draw(2) ? 0xffffff00 : draw(1000),
                                     draw(2) ? 0x4fff0 : 0xfff0, draw(3) ? 1 + draw(64) : 1 + draw(1400),
                                     draw(2) ? 0xffffff00 : draw(1000), draw(3) ? 0 : draw(2000)};
        size_t n = draw(8) ? draw(12) : draw(MAX_CHAINS), at = 1 + 2 * n, which = 0;
        input[0] = (uint8_t)n;
        for (size_t k = 0; k < n; k++) {
            which = draw(10) ? which : draw(2);
            size_t size = next_frame(input + at, &flows[which]);
            put16(input + 1 + 2 * k, (uint32_t)((size & 0xff) << 8 | size >> 8));
            at += size;
        }
        size_t here = run_one(input, draw(10) ? at : draw((uint32_t)at + 1));
        joined += here;
        most = here > most ? here : most;
    }
    CHECK(rounds < 1000 || (joined > (size_t)rounds / 2 && most > 64 && followers > joined &&
                            acknowledgments > (size_t)rounds / 10)); /* it has something to check */
    printf("%ld rounds\n", rounds);
    return 0;
}
#endif
