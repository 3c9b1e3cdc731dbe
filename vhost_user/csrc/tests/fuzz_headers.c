/* SPDX-License-Identifier: MPL-2.0 */
/* Header validation of net and vsock under a fuzzer: whatever the bytes, what is let through keeps its promises.
 *
 * With -DSTANDALONE this is a program of its own that feeds itself frames that are almost right (argument: how many).
 * Build with vnet.c, gro.c, vvsock.c and checksum.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vnet.h"
#include "../vvsock.h"

enum { MAX_CHAINS = 64 };

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                                 \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Chunks follow one another inside the slab; a record lies inside its chunk, or inside the slab. */
static void check_place(uint32_t begin, uint32_t end, uint32_t chunk, const struct chunk *chunks, size_t nchunks,
                        size_t slab) {
    CHECK(begin <= end && chunk <= nchunks);
    if (chunk == 0) {
        CHECK(end <= slab);
        return;
    }
    const struct chunk *c = &chunks[chunk - 1];
    CHECK(c->begin < c->end && c->end <= slab && c->end - c->begin <= CHUNK_SIZE);
    CHECK(end <= c->end - c->begin && end - begin < CHUNK_SMALL);
    CHECK(chunk == 1 || chunks[chunk - 2].end <= c->begin);
}

static void check_net(const uint8_t *slab, size_t size, const uint32_t *chains, size_t n, uint32_t accept, uint32_t mtu) {
    struct vnet_record records[MAX_CHAINS];
    struct chunk chunks[MAX_CHAINS];
    size_t nchunks = 0;
    uint64_t drops[VNET_DROPS] = {0}, dropped = 0;
    size_t count = vnet_parse(slab, size, chains, n, accept, mtu, records, drops);
    nchunks = vnet_place(records, count, size, chunks);
    for (int i = 0; i < VNET_DROPS; i++)
        dropped += drops[i];
    CHECK(count + dropped == n && nchunks <= count);
    for (size_t i = 0; i < count; i++) {
        const struct vnet_record *r = &records[i];
        check_place(r->begin, r->end, r->chunk, chunks, nchunks, size);
        uint32_t length = r->end - r->begin, base = r->chunk ? chunks[r->chunk - 1].begin : 0;
        CHECK(length >= 14 && (r->flags == 0 || r->flags == 1 || r->flags == 2));
        CHECK(r->flags != 1 || ((accept & VNET_CSUM) && r->csum_start + r->csum_offset + 2u <= length));
        CHECK(r->flags != 2 || (accept & VNET_VERIFY));
        if (r->gso_type == 0) {
            CHECK(r->gso_size == 0 && length <= mtu + 18);
        } else {
            CHECK(r->flags == 1 && r->gso_size < mtu);
            if (r->gso_type == 5) {
                CHECK((accept & VNET_USO) && r->csum_offset == 6 && r->csum_start + 8u <= length);
                CHECK(r->gso_size > 0);
            } else {
                CHECK(r->gso_size >= VNET_MIN_GSO && r->csum_offset == 16);
                CHECK((r->gso_type & 0x7f) == 1 ? accept & VNET_TSO4 : (r->gso_type & 0x7f) == 4 && (accept & VNET_TSO6));
                CHECK(!(r->gso_type & 0x80) || (accept & VNET_ECN));
                CHECK(r->csum_start + 20u <= length);
            }
        }
        if (r->flags == 1 && length > 0) {
            uint8_t *frame = malloc(length);
            CHECK(frame != NULL);
            memcpy(frame, slab + base + r->begin, length);
            CHECK(vnet_finish_checksum(frame, length, r->csum_start, r->csum_offset) == 0);
            free(frame);
        }
    }
}

static void check_vsock(const uint8_t *slab, size_t size, const uint32_t *chains, size_t n, uint64_t cid) {
    struct vvsock_record records[MAX_CHAINS];
    struct chunk chunks[MAX_CHAINS];
    size_t nchunks = 0;
    uint64_t drops[VVSOCK_DROPS] = {0}, dropped = 0;
    size_t count = vvsock_parse(slab, size, chains, n, cid, records, chunks, &nchunks, drops);
    for (int i = 0; i < VVSOCK_DROPS; i++)
        dropped += drops[i];
    CHECK(count + dropped == n && nchunks <= count);
    for (size_t i = 0; i < count; i++) {
        const struct vvsock_record *r = &records[i];
        check_place(r->begin, r->end, r->chunk, chunks, nchunks, size);
        CHECK(r->src_cid == cid && r->end - r->begin <= VVSOCK_MAX_PAYLOAD);
        CHECK(r->op == 5 || r->begin == r->end);
    }
}

/* Input: accept (1), mtu (2), number of chains (1), their lengths (2 each), then the slab. Lengths are honoured as far
 * as the slab reaches; one beyond it is left in to see it refused. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4)
        return 0;
    uint32_t accept = data[0] & 31, mtu = 68 + (data[1] | data[2] << 8) % (65535 - 68 + 1);
    size_t n = data[3] % (MAX_CHAINS + 1);
    data += 4;
    size -= 4;
    if (size < 2 * n)
        return 0;
    uint32_t chains[2 * MAX_CHAINS], at = 0;
    for (size_t i = 0; i < n; i++) {
        chains[2 * i] = at;
        chains[2 * i + 1] = (uint32_t)(data[2 * i] | data[2 * i + 1] << 8);
        at += chains[2 * i + 1];
    }
    size -= 2 * n;
    uint8_t *slab = malloc(size ? size : 1); /* exactly as large as it claims: a byte beyond is caught */
    CHECK(slab != NULL);
    memcpy(slab, data + 2 * n, size);
    check_net(slab, size, chains, n, accept, mtu);
    uint64_t cid = 3;
    if (size >= 8)
        memcpy(&cid, slab, 8);
    check_vsock(slab, size, chains, n, cid);
    free(slab);
    return 0;
}

#ifdef STANDALONE
#include "draw.h"

/* A header and a frame that would be good but for a few bytes. */
static size_t almost(uint8_t *out) {
    size_t payload = draw(4) ? draw(1400) : draw(9000);
    int six = draw(2) != 0, tagged = draw(8) == 0, super = draw(3) == 0;
    size_t ether = tagged ? 18 : 14, ip = six ? 40 : 20, tcp = 20 + 4 * (size_t)draw(4), size = ether + ip + tcp + payload;
    memset(out, 0, 12 + size);
    uint8_t *frame = out + 12, *l3 = frame + ether, *l4 = l3 + ip;
    out[0] = (uint8_t)(super || draw(2));
    out[1] = (uint8_t)(super ? (six ? 4 : 1) | (draw(4) ? 0 : 0x80) : 0);
    out[4] = (uint8_t)draw(256);
    out[5] = (uint8_t)draw(6);
    out[6] = (uint8_t)(ether + ip);
    out[8] = 16;
    if (tagged) {
        frame[12] = 0x81;
        frame[13] = 0;
    }
    frame[ether - 2] = six ? 0x86 : 0x08;
    frame[ether - 1] = six ? 0xdd : 0x00;
    size_t length = six ? tcp + payload : ip + tcp + payload;
    l3[0] = six ? 0x60 : 0x45;
    l3[six ? 4 : 2] = (uint8_t)(length >> 8);
    l3[six ? 5 : 3] = (uint8_t)length;
    l3[six ? 6 : 9] = 6;
    l4[12] = (uint8_t)(tcp / 4 << 4);
    if (draw(2)) {
        size_t spoil = 1 + draw(3);
        while (spoil-- > 0)
            out[draw((uint32_t)(draw(4) ? 12 + ether + ip + tcp : 12 + size))] = (uint8_t)draw(256);
    }
    return draw(6) ? 12 + size : draw((uint32_t)(12 + size));
}

int main(int argc, char **argv) {
    static uint8_t input[4 + 2 * MAX_CHAINS + MAX_CHAINS * 16384];
    long rounds = argc > 1 ? atol(argv[1]) : 1000;
    for (long i = 0; i < rounds; i++) {
        size_t n = draw(6), at = 4 + 2 * n;
        input[0] = draw(2) ? 31 : (uint8_t)draw(32);
        uint32_t mtu = (draw(2) ? 1500 : draw(65468)) - 68;
        input[1] = (uint8_t)mtu;
        input[2] = (uint8_t)(mtu >> 8);
        input[3] = (uint8_t)n;
        for (size_t k = 0; k < n; k++) {
            size_t size = almost(input + at);
            input[4 + 2 * k] = (uint8_t)size;
            input[5 + 2 * k] = (uint8_t)(size >> 8);
            at += size;
        }
        LLVMFuzzerTestOneInput(input, draw(10) ? at : draw((uint32_t)at + 1));
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
#endif
