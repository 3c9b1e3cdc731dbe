/* SPDX-License-Identifier: MPL-2.0 */
/* The driver's side of a bulk transfer: one TCP connection's segments into and out of guest memory. */
#ifndef GUESTWIRE_VBULK_H
#define GUESTWIRE_VBULK_H

#include "vdriver.h"

/* cdef begin */
enum {
    VDRV_BULK_HEADERS = 66, /* struct virtio_net_hdr, Ethernet, IPv4 and TCP, without options */
    VDRV_BULK_BURST = 8,    /* segments shown to the device at a time: more superframes put both sides in lockstep */
    VDRV_BULK_POLL = 64,    /* frames taken in between two acknowledgments at most, as in a poll of Linux's NAPI */
};

/* A segment that is sent again and again: its headers, into which the numbers are written, and its payload. */
struct vdrv_segment {
    uint8_t header[VDRV_BULK_HEADERS];
    const uint8_t *data;
    uint32_t length;
    int32_t sum; /* of what the checksum covers, but for the numbers (RFC 1071); -1: the device makes the checksum */
};

/* The guest's end of an established connection over IPv4. Numbers go on counting where those on the wire wrap. */
struct vdrv_bulk {
    struct vdrv_ring *tx, *rx;
    struct vdrv_pool *tx_pool, *rx_pool;
    int tx_kick, rx_kick; /* eventfds */
    int merge;            /* as vdrv_receive */
    struct vdrv_segment data, ack;
    uint64_t snd_una, snd_nxt, rcv_nxt;
    uint64_t window;      /* the peer's, in bytes, from snd_una on */
    uint32_t scale;       /* its shift, 14 at most */
    uint32_t enough;      /* buffers a receiver waits for, `looks` looks at most, before it takes in what is there */
    uint32_t looks;
    uint32_t patience;    /* looks in vain before there is nothing to do */
    uint8_t *out;         /* private memory that frames are copied to, round and round */
    size_t size, fill;
    uint32_t owed;        /* 1: an acknowledgment is to be sent */
    /* out */
    struct vdrv_received frame; /* the last one, in `out` */
    uint64_t kicks;             /* given, counted on */
};

enum vdrv_bulk_end {
    VDRV_BULK_MOVED,  /* as much as was asked for */
    VDRV_BULK_IDLE,   /* nothing moved for `patience` looks, or a ring is at fault */
    VDRV_BULK_OTHER,  /* `frame` is not the connection's next segment, nor a bare acknowledgment: it is the caller's */
    VDRV_BULK_STUCK,  /* the next frame is longer than half of `size`, or the ring is at fault */
};

/* Sends `data` again and again, as fast as the peer's window and the device allow, until another one would take snd_nxt past
 * `end`; takes in what comes meanwhile. */
int vdrv_flood(struct vdrv_bulk *bulk, uint64_t end);
/* Takes in what comes and acknowledges it, until rcv_nxt is `end` or more. */
int vdrv_drain(struct vdrv_bulk *bulk, uint64_t end);
/* cdef end */

#endif
