/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * The ring code has gathered each chain, however the driver cut it, into one private piece: header and payload are in
 * one place and stay as they are. One pass over the burst judges the structure of each packet (virtio 1.3 5.10.6 and
 * what Linux's vhost-vsock refuses) and unpacks its header into a fixed-size record. What a packet *means* - unknown
 * ports, types, operations, credit - is for the connection engine, which answers with RST where one is due. */
#include "vvsock.h"

enum { OP_RW = 5 }; /* VIRTIO_VSOCK_OP_RW: the only operation with a payload */

static inline uint16_t le16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static inline uint32_t le32(const uint8_t *p) { return (uint32_t)le16(p) | (uint32_t)le16(p + 2) << 16; }

static inline uint64_t le64(const uint8_t *p) { return (uint64_t)le32(p) | (uint64_t)le32(p + 4) << 32; }

/* Returns -1, or the reason to drop the packet. */
static int parse_one(const uint8_t *p, uint32_t at, uint32_t size, uint64_t guest_cid, struct vvsock_record *r) {
    if (size < VVSOCK_HEADER)
        return VVSOCK_DROP_HEADER;
    uint32_t length = le32(p + 24);
    *r = (struct vvsock_record){
        .src_cid = le64(p),
        .dst_cid = le64(p + 8),
        .src_port = le32(p + 16),
        .dst_port = le32(p + 20),
        .type = le16(p + 28),
        .op = le16(p + 30),
        .flags = le32(p + 32),
        .buf_alloc = le32(p + 36),
        .fwd_cnt = le32(p + 40),
        .begin = at + VVSOCK_HEADER,
        .end = at + VVSOCK_HEADER,
    };
    if (length > VVSOCK_MAX_PAYLOAD)
        return VVSOCK_DROP_LONG;
    if (length > size - VVSOCK_HEADER)
        return VVSOCK_DROP_PAYLOAD;
    if (r->src_cid != guest_cid)
        return VVSOCK_DROP_SRC_CID;
    if (r->op == OP_RW) /* a payload anywhere else is ignored */
        r->end += length;
    return -1;
}

size_t vvsock_parse(const uint8_t *slab, size_t slab_size, const uint32_t *chains, size_t n, uint64_t guest_cid,
                    struct vvsock_record *out, struct chunk *chunks, size_t *nchunks, uint64_t *drops) {
    struct chunker chunker = {.chunks = chunks, .share = slab_size <= CHUNK_SIZE};
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t at = chains[2 * i], size = chains[2 * i + 1];
        struct vvsock_record *r = &out[count];
        int reason = VVSOCK_DROP_HEADER;
        if (at <= slab_size && size <= slab_size - at)
            reason = parse_one(slab + at, at, size, guest_cid, r);
        if (reason >= 0) {
            drops[reason]++;
            continue;
        }
        r->chunk = chunk_place(&chunker, &r->begin, &r->end);
        count++;
    }
    *nchunks = chunker.count;
    return count;
}

uint32_t vvsock_take(struct vvsock_inbox *inbox, const void *burst, uint32_t n, size_t size) {
    const uint32_t *chains = burst;
    size_t chunks = 0;
    size_t count = vvsock_parse((const uint8_t *)(chains + 2 * (size_t)n), size, chains, n, inbox->guest_cid,
                                inbox->records, inbox->chunks, &chunks, inbox->drops);
    inbox->nchunks = (uint32_t)chunks;
    return (uint32_t)count;
}
