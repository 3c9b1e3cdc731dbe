/* SPDX-License-Identifier: MPL-2.0 */
/* Numbers in frames, in network byte order, wherever they lie, the sum in front of them; and copying many bytes. */
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

/* memcpy of the C library, whatever its length: GCC makes `rep movs` of one that it knows to be short. */
static void *(*volatile const gw_memcpy)(void *, const void *, size_t) = memcpy;

/* memcpy, a KiB at a time. From 2 KiB on glibc copies by `rep movsb` where the processor calls that fast; on a Zen 4 it takes
 * some 16 times as long where the target lies 1 to 15 bytes behind the source modulo 4096 as it takes elsewhere. */
static inline void gw_copy(uint8_t *to, const uint8_t *from, size_t length) {
    while (length > 0) {
        size_t some = length < 1024 ? length : 1024;
        gw_memcpy(to, from, some);
        to += some;
        from += some;
        length -= some;
    }
}

#endif
