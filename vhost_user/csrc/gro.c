/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * A guest without segmentation offload cuts what it sends into packets, and each of them would walk through the whole
 * stack in Python. Where neighbours in a burst are what one superframe would have been cut into, they are put together
 * again here: the payload of each is moved up behind the one before, in the slab itself, over the headers between
 * them, and the first one's headers are rewritten to say what a driver with offload would have said. From there on
 * nobody can tell the difference, and nobody has to: that is the seam.
 *
 * Joining loses nothing. Cutting the superframe again, as a sender with offload does (RFC 9293 has no say in how a byte
 * stream is cut; virtio 1.3 5.1.6.2 does), gives the packets back to the bit, but for identifications that mean nothing
 * (RFC 6864: with DF set). So all of these end a run:
 *
 * - anything but a plain IPv4 or IPv6 header in front of TCP or UDP: tags, options, extension headers, fragments,
 *   packets to a group;
 * - a checksum that is wrong (such frames are gone already), absent, or that nobody vouches for; a wrong one in the IPv4
 *   header;
 * - a difference in MACs, addresses, ports, traffic class (so a CE mark ends it: RFC 3168 5.3), flow label, hop limit,
 *   DF, or identifications that do not count up where they matter;
 * - of TCP: another flag than ACK and PSH; PSH (which ends a run and stays in it), a gap in sequence, a new
 *   acknowledgment, window or option (time stamps among them); a segment longer than the first, a shorter one stays in
 *   it as the last;
 * - of UDP: datagrams longer than the first, and a shorter one as with TCP; an empty one.
 *
 * Only neighbours are joined: the order of frames never changes, and a flood over many flows costs one comparison a
 * frame. */
#include "gro.h"

#include <string.h>

#include "bytes.h"
#include "checksum.h"

enum {
    ETHER = 14,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    MAX_PACKET = 65535,
    NEEDS_CSUM = 1,
    DATA_VALID = 2,
    GSO_TCPV4 = 1,
    GSO_TCPV6 = 4,
    GSO_UDP_L4 = 5,
    TCP = 6,
    UDP = 17,
    TCP_PSH = 0x08,
    TCP_ACK = 0x10,
    DF = 0x4000,
    MORE_OR_OFFSET = 0x3fff,
};

static inline void put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* A frame that might be part of a run; `frame` is NULL if it can not. */
struct segment {
    uint8_t *frame;
    uint32_t transport, headers; /* offsets in the frame: the transport header, the payload */
    uint32_t payload;            /* bytes, padding of the link not among them */
    uint32_t proto;
    int six, last; /* last: whatever comes behind it begins anew */
};

/* The run that is growing: its first segment, and what has been added. */
struct run {
    struct segment head;
    uint32_t size;   /* payload of the first one, and of all but the last */
    uint32_t pieces;
};

static struct segment look(uint8_t *frame, uint32_t length, const struct vnet_record *r) {
    struct segment none = {0}, s = {.frame = frame};
    if (r->gso_type != 0 || r->flags == 0 || length < ETHER + IPV4_HEADER || (frame[0] & 1))
        return none;
    const uint8_t *ip = frame + ETHER;
    uint32_t type = gw_be16(frame + 12), left;
    if (type == 0x0800) {
        uint32_t total = gw_be16(ip + 2);
        if (ip[0] != 0x45 || total < IPV4_HEADER || total > length - ETHER || (gw_be16(ip + 6) & MORE_OR_OFFSET))
            return none;
        s.proto = ip[9];
        s.transport = ETHER + IPV4_HEADER;
        left = total - IPV4_HEADER;
    } else if (type == 0x86dd) {
        if (length < ETHER + IPV6_HEADER || ip[0] >> 4 != 6 || gw_be16(ip + 4) > length - ETHER - IPV6_HEADER)
            return none;
        s.six = 1;
        s.proto = ip[6];
        s.transport = ETHER + IPV6_HEADER;
        left = gw_be16(ip + 4);
    } else {
        return none;
    }
    const uint8_t *l4 = frame + s.transport;
    uint32_t header, field;
    if (s.proto == TCP) {
        if (left < 20 || (l4[12] & 0x0f) || (l4[13] & ~TCP_PSH) != TCP_ACK)
            return none;
        header = (l4[12] >> 4) * 4u;
        field = 16;
        if (header < 20)
            return none;
        s.last = (l4[13] & TCP_PSH) != 0;
    } else if (s.proto == UDP) {
        if (left < 8 || gw_be16(l4 + 4) != left || gw_be16(l4 + 6) == 0)
            return none;
        header = 8;
        field = 6;
    } else {
        return none;
    }
    if (header >= left) /* nothing to join */
        return none;
    if (r->flags == NEEDS_CSUM && (r->csum_start != s.transport || r->csum_offset != field))
        return none;
    if (!s.six && !gw_header_sum_right(ip))
        return none;
    s.headers = s.transport + header;
    s.payload = left - header;
    return s;
}

static int same_flow(const struct run *run, const struct segment *s) {
    const struct segment *head = &run->head;
    const uint8_t *a = head->frame, *b = s->frame;
    if (head->headers != s->headers || memcmp(a, b, ETHER) != 0)
        return 0;
    a += ETHER;
    b += ETHER;
    if (!s->six) {
        /* version, length and TOS; DF, TTL and protocol; both addresses and, behind them, both ports */
        if (memcmp(a, b, 2) != 0 || memcmp(a + 6, b + 6, 4) != 0 || memcmp(a + 12, b + 12, 12) != 0)
            return 0;
        if (!(gw_be16(a + 6) & DF) && (uint16_t)(gw_be16(b + 4) - gw_be16(a + 4)) != (uint16_t)run->pieces)
            return 0;
    } else if (memcmp(a, b, 4) != 0 || memcmp(a + 6, b + 6, 2 + 32 + 4) != 0) {
        /* class and label; next header and hop limit; addresses and ports */
        return 0;
    }
    if (s->proto == UDP)
        return 1;
    a = head->frame + head->transport;
    b = s->frame + s->transport;
    return gw_be32(b + 4) == (uint32_t)(gw_be32(a + 4) + head->payload) && /* next in sequence */
           memcmp(a + 8, b + 8, 5) == 0 &&                          /* acknowledgment, header length */
           memcmp(a + 14, b + 14, 2) == 0 &&                        /* window */
           memcmp(a + 18, b + 18, s->headers - s->transport - 18) == 0; /* urgent pointer, options */
}

/* 1: `s` is part of the run now. */
static int append(struct run *run, const struct segment *s) {
    struct segment *head = &run->head;
    if (s->payload > run->size || head->headers - ETHER + head->payload + s->payload > MAX_PACKET)
        return 0;
    if (s->proto == TCP ? run->size < VNET_MIN_GSO : run->pieces == GRO_MAX_DATAGRAMS)
        return 0;
    /* Frames follow one another in the slab, whoever else calls us with what records. */
    if (s->frame < head->frame + head->headers + head->payload || !same_flow(run, s))
        return 0;
    memmove(head->frame + head->headers + head->payload, s->frame + s->headers, s->payload);
    head->payload += s->payload;
    head->last = s->last || s->payload < run->size;
    if (s->proto == TCP && s->last)
        head->frame[head->transport + 13] |= TCP_PSH;
    run->pieces++;
    return 1;
}

/* Headers and record of a run of several pieces, as a driver with offload would have made them. */
static void finish(const struct run *run, struct vnet_record *r) {
    const struct segment *s = &run->head;
    uint8_t *ip = s->frame + ETHER, *l4 = s->frame + s->transport;
    uint32_t length = s->headers - s->transport + s->payload;
    uint32_t field = s->proto == TCP ? 16 : 6, pseudo;
    if (s->six) {
        put16(ip + 4, length);
        pseudo = gw_sum(ip + 8, 32, length + s->proto);
    } else {
        put16(ip + 2, IPV4_HEADER + length);
        put16(ip + 10, 0);
        put16(ip + 10, ~gw_sum(ip, IPV4_HEADER, 0) & 0xffff);
        pseudo = gw_sum(ip + 12, 8, length + s->proto);
    }
    if (s->proto == UDP)
        put16(l4 + 4, length);
    put16(l4 + field, pseudo);
    r->end = r->begin + s->headers + s->payload;
    r->flags = NEEDS_CSUM;
    r->gso_type = s->proto == UDP ? GSO_UDP_L4 : s->six ? GSO_TCPV6 : GSO_TCPV4;
    r->gso_size = (uint16_t)run->size;
    r->csum_start = (uint16_t)s->transport;
    r->csum_offset = (uint16_t)field;
}

size_t gro_join(uint8_t *slab, struct vnet_record *records, size_t count) {
    struct run run = {0};
    size_t left = 0; /* records[left - 1] is the run's, if there is one */
    for (size_t i = 0; i < count; i++) {
        const struct vnet_record *r = &records[i];
        struct segment s = look(slab + r->begin, r->end - r->begin, r);
        if (s.frame != NULL && run.head.frame != NULL && !run.head.last && append(&run, &s))
            continue;
        if (run.pieces > 1)
            finish(&run, &records[left - 1]);
        run = (struct run){.head = s, .size = s.payload, .pieces = 1};
        records[left++] = *r;
    }
    if (run.pieces > 1)
        finish(&run, &records[left - 1]);
    return left;
}
