/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * A guest that sends bulk data fills a burst with superframes, none of which can be joined with the next: their sum
 * would exceed the 65535 bytes an IP packet can say. But what the stack decides about the first of them it would decide
 * about the next ones too. Here it is found out where that is so, while the headers are in the cache; what is found is
 * one bit of the record, and whoever does not know the bit has lost nothing: a follower is a frame like any other.
 *
 * A frame follows the one before it if both are TCP segments over plain IPv4 or IPv6, with the same offload facts, and
 * nothing in all of their headers differs but
 *
 * - the length, which says that the frame ends where the packet does (no padding of the link's), and that it has payload;
 * - of IPv4 the identification, which nobody looks at in a whole packet (RFC 6864), and the checksum, which is verified;
 * - the sequence number, which is the one after the payload of the frame before;
 * - PSH (RFC 9293 3.9.1.2: a hint to whoever delivers), and the checksum, which the facts vouch for.
 *
 * So an option, time stamps among them, an acknowledgment, a window or a CE mark that is new is walked with.
 *
 * Who is sent bulk answers with bare acknowledgments, one behind the other. One follows another of the same length if it
 * acknowledges more, whatever its window is, and only the numbers of IPv4 and the checksums differ besides: the last of
 * them says all there is to know (Linux's tcp_add_to_backlog puts such together for the same reason).
 *
 * What is compared is known to lie inside the frames: vnet_judge looked at the lengths of frames, the rest is done here. */
#include "train.h"

#include <string.h>

#include "bytes.h"

enum {
    ETHER = 14,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    TCP_HEADER = 20,
    TCP = 6,
    TCP_PSH = 0x08,
    TCP_ACK = 0x10,
    MORE_OR_OFFSET = 0x3fff,
};

/* A TCP segment in a frame. */
struct segment {
    const uint8_t *frame;
    uint32_t transport, headers; /* offsets in the frame: the transport header, the payload; 0: it is no such segment */
    uint32_t payload;            /* bytes */
};

/* A frame with another end than its packet's has no headers here. */
static struct segment look(const uint8_t *frame, const struct vnet_record *r) {
    struct segment s = {.frame = frame};
    uint32_t length = r->end - r->begin, transport;
    if (r->flags == 0 || length < ETHER + IPV4_HEADER + TCP_HEADER)
        return s;
    const uint8_t *ip = frame + ETHER;
    uint32_t type = gw_be16(frame + 12);
    if (type == 0x0800) {
        if (ip[0] != 0x45 || gw_be16(ip + 2) != length - ETHER || (gw_be16(ip + 6) & MORE_OR_OFFSET) || ip[9] != TCP ||
            !gw_header_sum_right(ip))
            return s;
        transport = ETHER + IPV4_HEADER;
    } else if (type == 0x86dd) {
        if (length < ETHER + IPV6_HEADER + TCP_HEADER || gw_be16(ip + 4) != length - ETHER - IPV6_HEADER || ip[6] != TCP)
            return s;
        transport = ETHER + IPV6_HEADER;
    } else {
        return s;
    }
    uint32_t header = (frame[transport + 12] >> 4) * 4u;
    if (header < TCP_HEADER || header > length - transport)
        return s;
    s.transport = transport;
    s.headers = transport + header;
    s.payload = length - s.headers;
    return s;
}

static int same_facts(const struct vnet_record *a, const struct vnet_record *b) {
    return (a->flags & ~VNET_FOLLOWS) == b->flags && a->gso_type == b->gso_type && a->gso_size == b->gso_size &&
           a->csum_start == b->csum_start && a->csum_offset == b->csum_offset;
}

/* Whether all that must not differ between two segments does not; of superframes and others with payload alike, and of bare
 * acknowledgments. */
static int continues(const struct segment *a, const struct segment *b, uint32_t gso_type) {
    if (a->headers != b->headers || a->transport != b->transport)
        return 0;
    const uint8_t *p = a->frame, *q = b->frame;
    if (memcmp(p, q, ETHER + 2) != 0) /* MACs, type; version, length of the header and class */
        return 0;
    if (a->transport == ETHER + IPV4_HEADER) {
        /* flags, TTL, protocol; addresses and, behind them, ports */
        if (memcmp(p + ETHER + 6, q + ETHER + 6, 4) != 0 || memcmp(p + ETHER + 12, q + ETHER + 12, 12) != 0)
            return 0;
    } else if (memcmp(p + ETHER + 2, q + ETHER + 2, 2) != 0 || memcmp(p + ETHER + 6, q + ETHER + 6, 2 + 32 + 4) != 0) {
        /* label; next header and hop limit, addresses and ports */
        return 0;
    }
    uint32_t after = a->headers - a->transport - 18;
    p += a->transport;
    q += b->transport;
    if (a->payload == 0) {
        uint32_t more = gw_be32(q + 8) - gw_be32(p + 8);
        return b->payload == 0 && gso_type == 0 && memcmp(p + 4, q + 4, 4) == 0 && /* sequence number */
               more - 1 < INT32_MAX && p[12] == q[12] && p[13] == TCP_ACK && q[13] == TCP_ACK &&
               memcmp(p + 18, q + 18, after) == 0; /* urgent pointer, options */
    }
    return b->payload > 0 && gw_be32(q + 4) == (uint32_t)(gw_be32(p + 4) + a->payload) && /* next in sequence */
           memcmp(p + 8, q + 8, 5) == 0 &&                        /* acknowledgment, length of the header */
           ((p[13] ^ q[13]) & ~TCP_PSH) == 0 &&                   /* flags */
           memcmp(p + 14, q + 14, 2) == 0 &&                      /* window */
           memcmp(p + 18, q + 18, after) == 0;                    /* urgent pointer, options */
}

void vnet_mark_followers(const uint8_t *slab, struct vnet_record *records, size_t count) {
    struct segment before = {0};
    for (size_t i = 0; i < count; i++) {
        struct vnet_record *r = &records[i];
        struct segment here = look(slab + r->begin, r);
        if (here.headers != 0 && before.headers != 0 && same_facts(&records[i - 1], r) && continues(&before, &here, r->gso_type))
            r->flags |= VNET_FOLLOWS;
        before = here;
    }
}
