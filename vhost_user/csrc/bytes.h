/* SPDX-License-Identifier: MPL-2.0 */
/* Numbers in frames, in network byte order, wherever they lie, and the sum in front of them. */
#ifndef GUESTWIRE_BYTES_H
#define GUESTWIRE_BYTES_H

#include <stdint.h>
#include <string.h>

static inline uint32_t gw_be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | (uint32_t)p[1]; }

static inline uint32_t gw_be32(const uint8_t *p) { return gw_be16(p) << 16 | gw_be16(p + 2); }

/* Of an IPv4 header without options: its first byte is 0x45, so the sum is never 0 itself (RFC 1071). */
static inline int gw_header_sum_right(const uint8_t *ip) {
    uint32_t words[5];
    memcpy(words, ip, sizeof words);
    return ((uint64_t)words[0] + words[1] + words[2] + words[3] + words[4]) % 0xffff == 0;
}

#endif
