/* SPDX-License-Identifier: MPL-2.0 */
/* Packets of a virtio-vsock device: headers validated and unpacked for a whole burst at once, in private memory. */
#ifndef GUESTWIRE_VVSOCK_H
#define GUESTWIRE_VVSOCK_H

#include <stddef.h>
#include <stdint.h>

#include "chunk.h"

/* cdef begin */
enum {
    VVSOCK_HEADER = 44,            /* struct virtio_vsock_hdr, packed (virtio 1.3 5.10.6) */
    VVSOCK_MAX_PAYLOAD = 64 << 10, /* Linux's VIRTIO_VSOCK_MAX_PKT_BUF_SIZE */
};

/* One good packet: its header's fields, and where its payload lies (as in struct vnet_record). */
struct vvsock_record {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
    uint32_t begin, end;
    uint32_t chunk;
    uint32_t reserved;
};

enum vvsock_drop {
    VVSOCK_DROP_HEADER,   /* chain shorter than the header */
    VVSOCK_DROP_LONG,     /* more than 64 KiB of payload announced */
    VVSOCK_DROP_PAYLOAD,  /* len is more than the chain holds */
    VVSOCK_DROP_SRC_CID,  /* not the guest's own CID */
    VVSOCK_DROPS,
};

/* As struct vnet_inbox and vnet_take, for vsock. */
struct vvsock_inbox {
    uint64_t guest_cid;
    uint32_t nchunks;
    struct vvsock_record *records;
    struct chunk *chunks;
    uint64_t *drops; /* VVSOCK_DROPS of them, added to */
};

uint32_t vvsock_take(struct vvsock_inbox *inbox, const void *burst, uint32_t n, size_t size);
/* cdef end */

size_t vvsock_parse(const uint8_t *slab, size_t slab_size, const uint32_t *chains, size_t n, uint64_t guest_cid,
                    struct vvsock_record *out, struct chunk *chunks, size_t *nchunks, uint64_t *drops);

#endif
