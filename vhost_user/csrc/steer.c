/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * With several queue pairs a driver puts a flow where one CPU handles it, and wants its answers there too. The device
 * cannot ask; it remembers, by a hash over addresses and ports that is the same for both directions, through which pair
 * the guest sent a flow last (virtio 1.3 section 5.1.6.5.5). A flow the guest has sent nothing of goes by its hash alone:
 * always to the same pair, in order.
 *
 * Fragments are hashed by addresses only, for only the first one has ports: all of a datagram stay together. What is no
 * IP goes by the MAC addresses. */
#include "steer.h"

#include <string.h>

static uint32_t be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static uint64_t load64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint32_t load32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* Neither argument first: both directions give the same. */
static uint64_t both(uint64_t a, uint64_t b) { return (a ^ b) * 0x9e3779b97f4a7c15 + (a + b); }

static uint32_t mix(uint64_t value) {
    value = (value ^ value >> 32) * 0xd6e8feb86659fd93;
    return (uint32_t)(value >> 32 ^ value);
}

static uint64_t address6(const uint8_t *p) { return load64(p) * 0xff51afd7ed558ccd + load64(p + 8); }

uint32_t gw_flow(const uint8_t *frame, size_t length) {
    enum { ETHER = 14, TCP = 6, UDP = 17 };
    if (length < ETHER)
        return 0;
    if (length > STEER_HEAD)
        length = STEER_HEAD;
    size_t at = ETHER;
    uint32_t type = be16(frame + 12);
    if ((type == 0x8100 || type == 0x88a8) && length >= ETHER + 4) {
        type = be16(frame + 16);
        at += 4;
    }
    uint64_t value;
    size_t ports;
    uint32_t proto;
    if (type == 0x0800 && length >= at + 20) {
        const uint8_t *ip = frame + at;
        value = both(load32(ip + 12), load32(ip + 16));
        proto = be16(ip + 6) & 0x3fff ? 0 : ip[9];
        ports = at + (ip[0] & 15u) * 4;
    } else if (type == 0x86dd && length >= at + 40) {
        const uint8_t *ip = frame + at;
        value = both(address6(ip + 8), address6(ip + 24));
        proto = ip[6];
        ports = at + 40;
    } else {
        uint64_t one = load32(frame) | (uint64_t)be16(frame + 4) << 32;
        uint64_t other = load32(frame + 6) | (uint64_t)be16(frame + 10) << 32;
        return mix(both(one, other));
    }
    if ((proto == TCP || proto == UDP) && length >= ports + 4)
        value += both(be16(frame + ports), be16(frame + ports + 2)) * 0xc2b2ae3d27d4eb4f + proto;
    return mix(value);
}

void gw_steer_clear(struct gw_steer *steer) { memset(steer->pair, STEER_NOWHERE, sizeof steer->pair); }

void gw_steer_burst(const struct gw_steer *steer, const uint8_t *heads, uint32_t n, uint8_t *slots) {
    for (uint32_t i = 0; i < n; i++)
        slots[i] = (uint8_t)gw_steer_pick(steer, gw_flow(heads + (size_t)STEER_HEAD * i, STEER_HEAD));
}
