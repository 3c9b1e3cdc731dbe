/* SPDX-License-Identifier: MPL-2.0 */
/* The Internet checksum's partial sum (RFC 1071): for frames no offload spares it. */
#ifndef GW_CHECKSUM_H
#define GW_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
struct gw_sum_job {
    uint32_t offset;  /* of the bytes to sum, from base */
    uint32_t length;  /* bytes */
    uint32_t initial; /* an earlier partial sum, e.g. of the pseudo-header */
};

/* The ones-complement sum of the 16-bit big-endian words of [bytes, bytes+length), an odd last byte padded with zero,
 * plus initial (any 32-bit sum of such words); folded to 16 bits, not inverted. */
uint32_t gw_sum(const void *bytes, size_t length, uint32_t initial);

/* The same over the concatenation of parts, which may have any lengths. */
uint32_t gw_sum_parts(const void *const *parts, const uint32_t *lengths, uint32_t count, uint32_t initial);

/* Many sums in one call, over pieces of one buffer of `size` bytes; sums[i] is 0x10000 where a job lies outside. */
void gw_sum_jobs(const uint8_t *base, size_t size, const struct gw_sum_job *jobs, uint32_t count, uint32_t *sums);
/* cdef end */

#endif
