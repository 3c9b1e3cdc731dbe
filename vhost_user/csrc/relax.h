/* SPDX-License-Identifier: MPL-2.0 */
/* What a loop that looks again and again does between two looks. */
#ifndef GUESTWIRE_RELAX_H
#define GUESTWIRE_RELAX_H

/* "We are only waiting": leaves the core's other thread and its power to whoever has work. */
static inline void gw_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
