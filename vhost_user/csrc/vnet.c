/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * The ring code has copied each chain, header and frame, into one private slab. vnet_parse makes one pass over the
 * burst: a chain that breaks a rule of virtio 1.3 5.1.6.2 is counted by reason and left out, every other becomes one
 * fixed-size record that Python unpacks with a single iter_unpack. A guest can only hurt its own frame.
 *
 * Facts that later stages act on (where a checksum goes, how a superframe is to be cut) are made certain here: the
 * checksum field lies inside the frame, a superframe is a TCP segment of the family it claims with the checksum field
 * where TCP has it, and the number of segments is bounded. hdr_len is a hint the driver may get wrong: never read.
 *
 * Small frames are grouped into chunks for the caller to copy out (chunk.h). */
#include "vnet.h"

#include "bytes.h"
#include "checksum.h"
#include "gro.h"
#include "train.h"

enum {
    ETHER_HEADER = 14,
    VLAN_TAG = 4,
    MAX_IP_PACKET = 65535,
    HDR_NEEDS_CSUM = 1, /* virtio_net_hdr.flags */
    HDR_DATA_VALID = 2,
    GSO_NONE = 0,
    GSO_TCPV4 = 1,
    GSO_TCPV6 = 4,
    GSO_UDP_L4 = 5,
    GSO_ECN = 0x80,
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_QINQ = 0x88a8,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    TCP_CHECKSUM = 16, /* offset of the checksum field in the header */
    UDP_CHECKSUM = 6,
    MAX_TAGS = 2,
    MAX_EXTENSIONS = 8, /* IPv6 extension headers walked before we stop caring */
};

static inline uint32_t le16(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

/* Where the transport header of a frame is. */
struct transport {
    uint32_t version; /* 4, 6; 0: not IP, or not whole */
    uint32_t proto;
    uint32_t network;        /* where the IP header starts in the frame */
    uint32_t offset;         /* and the transport header */
    uint32_t length;         /* transport header and payload, by the IP header */
    const uint8_t *address;  /* source and destination, adjacent in both families */
    uint32_t address_length; /* of both together */
    int fragment;
};

static void find_ipv4(const uint8_t *frame, uint32_t length, uint32_t at, struct transport *t) {
    const uint8_t *ip = frame + at;
    if (length - at < 20 || ip[0] >> 4 != 4)
        return;
    uint32_t header = (ip[0] & 15u) * 4, total = gw_be16(ip + 2);
    if (header < 20 || total < header || total > length - at)
        return;
    t->version = 4;
    t->network = at;
    t->proto = ip[9];
    t->offset = at + header;
    t->length = total - header;
    t->address = ip + 12;
    t->address_length = 8;
    t->fragment = (gw_be16(ip + 6) & 0x3fff) != 0; /* MF or an offset */
}

static void find_ipv6(const uint8_t *frame, uint32_t length, uint32_t at, struct transport *t) {
    const uint8_t *ip = frame + at;
    if (length - at < 40 || ip[0] >> 4 != 6)
        return;
    uint32_t left = gw_be16(ip + 4), next = ip[6], here = at + 40;
    if (left > length - here)
        return;
    for (int i = 0; i < MAX_EXTENSIONS && (next == 0 || next == 43 || next == 60); i++) {
        if (left < 8)
            return;
        uint32_t size = (frame[here + 1] + 1u) * 8;
        if (size > left)
            return;
        next = frame[here];
        here += size;
        left -= size;
    }
    t->version = 6;
    t->network = at;
    t->proto = next; /* a fragment is protocol 44 here, none we look into */
    t->offset = here;
    t->length = left;
    t->address = ip + 8;
    t->address_length = 32;
}

static struct transport find_transport(const uint8_t *frame, uint32_t length) {
    struct transport t = {0};
    uint32_t at = ETHER_HEADER, type = gw_be16(frame + 12);
    for (int i = 0; i < MAX_TAGS && (type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ); i++) {
        if (length - at < VLAN_TAG)
            return t;
        type = gw_be16(frame + at + 2);
        at += VLAN_TAG;
    }
    if (type == ETHERTYPE_IPV4)
        find_ipv4(frame, length, at, &t);
    else if (type == ETHERTYPE_IPV6)
        find_ipv6(frame, length, at, &t);
    return t;
}

int vnet_can_wait(const uint8_t *chain, uint32_t length) {
    if (length < VNET_HEADER + ETHER_HEADER)
        return 0;
    const uint8_t *frame = chain + VNET_HEADER;
    struct transport t = find_transport(frame, length - VNET_HEADER);
    if (t.version == 0 || t.proto != PROTO_TCP || t.fragment || t.length < 20)
        return 0;
    uint32_t header = (frame[t.offset + 12] >> 4) * 4u;
    return t.length == header || t.length >= header + VNET_BULK;
}

/* 1: verified, 0: nothing to verify (left to the stack), -1: wrong. */
static int verify_checksum(const uint8_t *frame, uint32_t length) {
    struct transport t = find_transport(frame, length);
    if (t.version == 0 || t.fragment)
        return 0;
    const uint8_t *l4 = frame + t.offset;
    if (t.proto == PROTO_TCP) {
        if (t.length < 20)
            return 0;
    } else if (t.proto == PROTO_UDP) {
        /* 0 means "none"; whether that is allowed is for UDP to say (RFC 768, RFC 8200 section 8.1). */
        if (t.length < 8 || gw_be16(l4 + UDP_CHECKSUM) == 0)
            return 0;
    } else {
        return 0;
    }
    uint8_t tail[8] = {(uint8_t)(t.length >> 24), (uint8_t)(t.length >> 16), (uint8_t)(t.length >> 8),
                       (uint8_t)t.length, 0, 0, 0, (uint8_t)t.proto};
    uint32_t pseudo = gw_sum(tail, sizeof tail, gw_sum(t.address, t.address_length, 0));
    return gw_sum(l4, t.length, pseudo) == 0xffff ? 1 : -1;
}

/* The same for datagrams, of either version. There may be many small ones, as Linux makes them, but not thousands. */
static int check_uso(const uint8_t *frame, uint32_t length, uint32_t mtu, const struct vnet_record *r) {
    struct transport t = find_transport(frame, length);
    if (t.version == 0 || t.proto != PROTO_UDP || t.fragment || t.length < 8 || r->csum_start != t.offset ||
        r->csum_offset != UDP_CHECKSUM)
        return VNET_DROP_GSO_HEADERS;
    if (r->gso_size == 0 || (r->gso_size < VNET_MIN_GSO && t.length - 8 > (uint32_t)r->gso_size * VNET_MAX_DATAGRAMS) ||
        t.offset - t.network + 8 + r->gso_size > mtu)
        return VNET_DROP_GSO_SIZE;
    return -1;
}

/* -1: the superframe is what its header claims; otherwise the reason to drop it. */
static int check_gso(const uint8_t *frame, uint32_t length, uint32_t accept, uint32_t mtu,
                     const struct vnet_record *r) {
    uint32_t type = r->gso_type & ~(uint32_t)GSO_ECN;
    if (r->gso_type == GSO_UDP_L4 && (accept & VNET_USO))
        return r->flags & HDR_NEEDS_CSUM ? check_uso(frame, length, mtu, r) : VNET_DROP_GSO_CSUM;
    if (!(type == GSO_TCPV4 && (accept & VNET_TSO4)) && !(type == GSO_TCPV6 && (accept & VNET_TSO6)))
        return VNET_DROP_GSO_TYPE;
    if ((r->gso_type & GSO_ECN) && !(accept & VNET_ECN))
        return VNET_DROP_GSO_TYPE;
    if (!(r->flags & HDR_NEEDS_CSUM))
        return VNET_DROP_GSO_CSUM;
    if (r->gso_size < VNET_MIN_GSO)
        return VNET_DROP_GSO_SIZE;
    struct transport t = find_transport(frame, length);
    if (t.version != (type == GSO_TCPV4 ? 4u : 6u) || t.proto != PROTO_TCP || t.fragment || t.length < 20)
        return VNET_DROP_GSO_HEADERS;
    uint32_t header = (frame[t.offset + 12] >> 4) * 4u;
    if (header < 20 || header > t.length || r->csum_start != t.offset || r->csum_offset != TCP_CHECKSUM)
        return VNET_DROP_GSO_HEADERS;
    if (t.offset - t.network + header + r->gso_size > mtu)
        return VNET_DROP_GSO_SIZE;
    return -1;
}

int vnet_judge(const uint8_t *slab, uint32_t at, uint32_t size, uint32_t accept, uint32_t mtu, struct vnet_record *r) {
    if (size < VNET_HEADER)
        return VNET_DROP_HEADER;
    const uint8_t *header = slab + at, *frame = header + VNET_HEADER;
    uint32_t length = size - VNET_HEADER;
    *r = (struct vnet_record){.begin = at + VNET_HEADER, .end = at + size, .gso_type = header[1]};
    if (length < ETHER_HEADER)
        return VNET_DROP_SHORT;
    /* Flag bits we do not know are to be ignored (5.1.6.2.2); DATA_VALID is none a driver may set. */
    if (header[0] & HDR_NEEDS_CSUM) {
        if (!(accept & VNET_CSUM))
            return VNET_DROP_CSUM_REFUSED;
        uint32_t start = le16(header + 6), offset = le16(header + 8);
        if (start + offset + 2 > length)
            return VNET_DROP_CSUM_RANGE;
        r->flags = HDR_NEEDS_CSUM;
        r->csum_start = (uint16_t)start;
        r->csum_offset = (uint16_t)offset;
    }
    uint32_t headers = ETHER_HEADER;
    uint32_t type = gw_be16(frame + 12);
    if (type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ)
        headers += VLAN_TAG; /* a tag does not count against the MTU */
    if (r->gso_type != GSO_NONE) {
        r->gso_size = (uint16_t)le16(header + 4);
        if (length > headers + MAX_IP_PACKET)
            return VNET_DROP_LONG;
        return check_gso(frame, length, accept, mtu, r);
    }
    if (length > headers + mtu)
        return VNET_DROP_LONG;
    if ((accept & VNET_VERIFY) && r->flags == 0) {
        int verdict = verify_checksum(frame, length);
        if (verdict < 0)
            return VNET_DROP_CHECKSUM;
        if (verdict > 0)
            r->flags = HDR_DATA_VALID;
    }
    return -1;
}

size_t vnet_parse(const uint8_t *slab, size_t slab_size, const uint32_t *chains, size_t n, uint32_t accept,
                  uint32_t mtu, struct vnet_record *out, uint64_t *drops) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t at = chains[2 * i], size = chains[2 * i + 1];
        int reason = VNET_DROP_HEADER;
        if (at <= slab_size && size <= slab_size - at)
            reason = vnet_judge(slab, at, size, accept, mtu, &out[count]);
        if (reason >= 0)
            drops[reason]++;
        else
            count++;
    }
    return count;
}

size_t vnet_place(struct vnet_record *records, size_t count, size_t slab_size, struct chunk *chunks) {
    struct chunker chunker = {.chunks = chunks, .share = slab_size <= CHUNK_SIZE};
    for (size_t i = 0; i < count; i++)
        records[i].chunk = (uint16_t)chunk_place(&chunker, &records[i].begin, &records[i].end);
    return chunker.count;
}

/* What a record says, its place apart. */
static int same_facts(const struct vnet_record *a, const struct vnet_record *b) {
    return a->flags == b->flags && a->gso_type == b->gso_type && a->gso_size == b->gso_size &&
           a->csum_start == b->csum_start && a->csum_offset == b->csum_offset;
}

uint32_t vnet_take(struct vnet_inbox *inbox, void *burst, uint32_t n, size_t size, int join) {
    const uint32_t *chains = burst;
    uint8_t *slab = (uint8_t *)burst + 8 * (size_t)n;
    struct vnet_record *records = inbox->records;
    size_t count = vnet_parse(slab, size, chains, n, inbox->accept, inbox->mtu, records, inbox->drops);
    inbox->frames = (uint32_t)count;
    inbox->bytes = 0;
    for (size_t i = 0; i < count; i++)
        inbox->bytes += records[i].end - records[i].begin;
    if (join) {
        count = gro_join(slab, records, count);
        vnet_mark_followers(slab, records, count);
    }
    inbox->alike = 1; /* the first one need not be: it follows nobody */
    for (size_t i = 2; i < count && inbox->alike; i++)
        inbox->alike = same_facts(&records[1], &records[i]);
    inbox->nchunks = (uint32_t)vnet_place(records, count, size, inbox->chunks);
    return (uint32_t)count;
}

int vnet_finish_checksum(uint8_t *frame, size_t length, uint32_t start, uint32_t offset) {
    if (start > 0xffff || offset > 0xffff || (size_t)start + offset + 2 > length)
        return -1;
    uint32_t sum = ~gw_sum(frame + start, length - start, 0) & 0xffff;
    if (sum == 0)
        sum = 0xffff; /* the same number, and UDP's 0 means "no checksum" (RFC 768) */
    frame[start + offset] = (uint8_t)(sum >> 8);
    frame[start + offset + 1] = (uint8_t)sum;
    return 0;
}
