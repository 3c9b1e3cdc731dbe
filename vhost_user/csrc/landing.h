/* SPDX-License-Identifier: MPL-2.0 */
/* Payload straight from guest memory into a reader's buffer: which chains may, and what came of it. */
#ifndef GUESTWIRE_LANDING_H
#define GUESTWIRE_LANDING_H

#include "vnet.h"

enum {
    LANDING_HEAD = VNET_HEADER + 14 + 20 + 60, /* what is looked at of a chain: all headers a TCP segment can have */
    LANDING_LEAVE = 0xffffffff,                /* answer: it is for there, but not any more in this burst */
};

/* cdef begin */
/* One flow's next segments. Numbers of the wire are in host order here. */
struct gw_landing {
    uint8_t *ground;  /* where their payload goes, `room` bytes; 0: nowhere */
    uint8_t head[16]; /* MACs, ethertype of IPv4, version, header length, TOS */
    uint8_t place[12]; /* addresses and ports */
    uint16_t fate;    /* TTL and protocol */
    uint16_t window;
    uint32_t seq, ack;
    uint32_t stamp; /* TS.Recent */
    uint32_t data;  /* offset of the payload in the packet: 40, or 52 behind a time stamp */
    uint32_t room;
    /* out */
    uint32_t frames, segments;
    uint32_t bytes, wire; /* payload; whole frames */
    uint32_t longest;     /* payload of a segment */
    uint32_t value;       /* TSval of all of them */
    uint32_t full;        /* there was another one, but no room for it */
};
/* cdef end */

/* A chain of `length` bytes, of which the first `got` (LANDING_HEAD of them, if it has so many) are at `chain`, private:
 * if what is behind a header is to go to ground + bytes, that header's length, and it is accounted for. Otherwise 0 or
 * LANDING_LEAVE. accept, mtu: as vnet_judge. */
uint32_t gw_land(struct gw_landing *landing, const uint8_t *chain, uint32_t got, uint32_t length, uint32_t accept,
                 uint32_t mtu);

#endif
