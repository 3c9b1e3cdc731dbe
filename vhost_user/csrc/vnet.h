/* SPDX-License-Identifier: MPL-2.0 */
/* Frames of a virtio-net device: struct virtio_net_hdr validated and unpacked for a whole burst at once.
 * Works on private memory only (the slab the chains were copied to), so nothing here can change under our feet. */
#ifndef GUESTWIRE_VNET_H
#define GUESTWIRE_VNET_H

#include <stddef.h>
#include <stdint.h>

#include "chunk.h"

/* cdef begin */
/* One good frame: where it lies in the slab (behind its header) and what its header said. chunk is 0 for a frame that
 * is to be looked at in the slab; a small frame has the number (from 1) of the chunk to copy out, and begin and end
 * are then offsets into that chunk. flags: those of struct virtio_net_hdr, and VNET_FOLLOWS. */
struct vnet_record {
    uint32_t begin, end;
    uint16_t chunk, flags, gso_type, gso_size, csum_start, csum_offset;
};

enum {
    VNET_HEADER = 12,      /* struct virtio_net_hdr with num_buffers: VERSION_1 or MRG_RXBUF (virtio 1.3 5.1.6) */
    VNET_BULK = 16384,     /* payload of a segment of which more follow */
    VNET_MIN_GSO = 48,     /* smallest gso_size taken: bounds the segments a guest can make us cut from 64 KiB */
    VNET_MAX_DATAGRAMS = 128, /* of a UDP superframe whose datagrams are smaller than that, as many as Linux makes */
    VNET_FOLLOWS = 128,    /* flag of a record: the frame continues the one before it (train.h) */
};

/* What vnet_parse may accept: the offloads the driver acked, and whether to verify checksums itself. */
enum {
    VNET_CSUM = 1,
    VNET_TSO4 = 2,
    VNET_TSO6 = 4,
    VNET_ECN = 8,
    VNET_VERIFY = 16,
    VNET_USO = 32,
};

enum vnet_drop {
    VNET_DROP_HEADER,       /* chain shorter than the header */
    VNET_DROP_SHORT,        /* no whole Ethernet header */
    VNET_DROP_LONG,         /* longer than the MTU (or than 64 KiB for a superframe) allows */
    VNET_DROP_CSUM_REFUSED, /* NEEDS_CSUM without having negotiated CSUM */
    VNET_DROP_CSUM_RANGE,   /* checksum field outside the frame */
    VNET_DROP_GSO_TYPE,     /* unknown or not negotiated */
    VNET_DROP_GSO_SIZE,     /* zero, tiny, or segments larger than the MTU */
    VNET_DROP_GSO_CSUM,     /* superframe without NEEDS_CSUM */
    VNET_DROP_GSO_HEADERS,  /* superframe that is no TCP segment or datagram of the family it claims */
    VNET_DROP_CHECKSUM,     /* TCP or UDP checksum is wrong */
    VNET_DROPS,
};

/* What one device needs to take bursts apart. records and chunks have room for the longest burst. */
struct vnet_inbox {
    uint32_t accept, mtu;
    uint32_t nchunks; /* of the last burst */
    uint32_t frames;  /* good ones in the last burst, however many records they became */
    uint64_t heard;   /* bytes of the last burst, for who asks how much the guest has to send: more if it left some behind */
    uint32_t alike;   /* from the second on all records say the same but for the place */
    uint64_t bytes;   /* of the frames */
    struct vnet_record *records;
    struct chunk *chunks;
    uint64_t *drops; /* VNET_DROPS of them, added to */
};

/* burst: n pairs of u32 (offset, length) and behind them the payload of `size` bytes they point into: what
 * gw_vring_pop makes. join: put neighbours of one flow together (gro.h), for which the payload is rewritten, and mark those
 * that continue the one before (train.h). Returns the number of records. */
uint32_t vnet_take(struct vnet_inbox *inbox, void *burst, uint32_t n, size_t size, int join);

/* Completes a checksum whose field holds the pseudo-header's sum. Returns 0, or -1 when the field lies outside. */
int vnet_finish_checksum(uint8_t *frame, size_t length, uint32_t start, uint32_t offset);
/* cdef end */

/* Judge one chain: `size` bytes at slab + at, header and frame. Fills *r (begin and end as slab offsets) and returns -1,
 * or the reason to drop it, an enum vnet_drop. */
int vnet_judge(const uint8_t *slab, uint32_t at, uint32_t size, uint32_t accept, uint32_t mtu, struct vnet_record *r);

/* Whether a chain's sender can do without it for a while. 1 for TCP segments that carry nothing, whose sender's buffers hold
 * nothing that somebody waits to write, and for those of a bulk transfer, who soon hears of the acknowledgment anyway. */
int vnet_can_wait(const uint8_t *chain, uint32_t length);

/* chains: n pairs (offset, length) into the slab. out has room for n records, which refer to the slab, all in chunk 0.
 * drops[VNET_DROPS] is added to. Returns the number of records. */
size_t vnet_parse(const uint8_t *slab, size_t slab_size, const uint32_t *chains, size_t n, uint32_t accept,
                  uint32_t mtu, struct vnet_record *out, uint64_t *drops);

/* Groups the small ones into chunks, for which there is room for as many; returns their number. */
size_t vnet_place(struct vnet_record *records, size_t count, size_t slab_size, struct chunk *chunks);

#endif
