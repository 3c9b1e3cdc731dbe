/* SPDX-License-Identifier: MPL-2.0 */
/* Survive a front-end that truncates the file behind guest memory: SIGBUS while a burst touches it becomes an error.
 *
 * Theory of operation
 * -------------------
 * Only bursts over memory whose file is not sealed against shrinking pay for this. Such a burst runs between
 * gw_guard_enter and gw_guard_leave; a SIGBUS of *this thread* at an address *inside the ring's memory or log* jumps
 * back to where the burst began. Every other SIGBUS goes to whoever was there before us.
 *
 * The disposition of a signal belongs to the whole process, so we borrow it only while some burst is guarded: the first
 * one in installs our handler over the one in force, the last one out puts that back. Should someone install another in
 * between, theirs is left alone; the next burst finds it, and installs ours over it again, chained to it. Since they may
 * have remembered ours as their predecessor and call it, each distinct predecessor gets a handler function of its own
 * (they differ only in whom they chain to): so a fault passed down the chain always ends.
 */
#ifndef GW_SIGBUS_H
#define GW_SIGBUS_H

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>

#include "memory.h"

/* What a burst touches: one guest's memory and its log, and perhaps another guest's. */
struct gw_reach {
    const struct gw_memory *memory;
    const struct gw_log *log; /* or NULL */
    const struct gw_reach *next; /* or NULL */
};

struct gw_guard {
    sigjmp_buf jump; /* the caller's sigsetjmp(jump, 0), called before gw_guard_enter */
    const struct gw_reach *reach;
    struct gw_reach own;    /* for a burst that touches one guest's memory */
    uintptr_t at;           /* after a jump: the address that is gone */
    struct gw_guard *outer; /* this thread's guard around this one */
    sigset_t mask;          /* this thread's, before */
};

/* 0, or -1 if more handlers were found in this process than can be chained to: then nothing is guarded. */
int gw_guard_enter(struct gw_guard *guard, const struct gw_memory *memory, const struct gw_log *log);

/* The same for everything within reach, which stays as it is until gw_guard_leave. */
int gw_guard_enter_all(struct gw_guard *guard, const struct gw_reach *reach);

/* Whether the address is in this memory or log; `next` is not looked at. */
int gw_within(const struct gw_reach *reach, uintptr_t address);

/* After the burst, and also after a jump. */
void gw_guard_leave(struct gw_guard *guard);

#endif
