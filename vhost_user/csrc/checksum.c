/* SPDX-License-Identifier: MPL-2.0 */
#include "checksum.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian hosts, like the virtio structures beside it"
#endif

/* Sums host-order words: the ones-complement sum is the same up to a final byte swap (RFC 1071 section 2 (B)). Plain
 * 32-bit loads into 64-bit sums are what the compiler turns into vector code at -O3. */
static uint64_t sum_words(const uint8_t *bytes, size_t length) {
    uint64_t sum = 0;
    size_t words = length / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, bytes + 4 * i, 4);
        sum += word;
    }
    uint32_t tail = 0;
    memcpy(&tail, bytes + 4 * words, length % 4); /* little-endian: the padding is zero bytes behind */
    return sum + tail;
}

static uint32_t fold(uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    uint32_t low = (uint32_t)(sum & 0xffff) + (uint32_t)(sum >> 16);
    return (low & 0xffff) + (low >> 16);
}

static uint32_t swap16(uint32_t sum) { return ((sum & 0xff) << 8) | (sum >> 8); }

uint32_t gw_sum(const void *bytes, size_t length, uint32_t initial) {
    if (length == 0)
        return fold(initial);
    return fold((uint64_t)swap16(fold(sum_words(bytes, length))) + initial);
}

uint32_t gw_sum_parts(const void *const *parts, const uint32_t *lengths, uint32_t count, uint32_t initial) {
    uint64_t sum = initial;
    int odd = 0; /* an odd number of bytes before: this part's words are shifted by one byte */
    for (uint32_t i = 0; i < count; i++) {
        uint32_t part = gw_sum(parts[i], lengths[i], 0);
        sum += odd ? swap16(part) : part;
        odd ^= lengths[i] & 1;
    }
    return fold(sum);
}

void gw_sum_jobs(const uint8_t *base, size_t size, const struct gw_sum_job *jobs, uint32_t count, uint32_t *sums) {
    for (uint32_t i = 0; i < count; i++) {
        const struct gw_sum_job *job = &jobs[i];
        if (job->offset > size || job->length > size - job->offset)
            sums[i] = 0x10000;
        else
            sums[i] = gw_sum(base + job->offset, job->length, job->initial);
    }
}
