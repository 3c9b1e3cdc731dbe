/* SPDX-License-Identifier: MPL-2.0 */
/* Inputs for the fuzz programs when no fuzzer makes them: the same ones on every machine. */
#ifndef GW_DRAW_H
#define GW_DRAW_H

#include <stdint.h>

/* xorshift64: below `below`, which is not 0. */
static inline uint32_t draw(uint32_t below) {
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

/* `bytes` of `value`, little-endian. */
static inline void put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

#endif
