/* SPDX-License-Identifier: MPL-2.0 */
#define _GNU_SOURCE
#include "sigbus.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

/* How many different predecessors one process can have. More means someone swaps handlers all the time. */
#define SLOTS 8

/* The guard of the burst this thread is in. Initial-exec: a handler must not allocate thread-local storage. */
static _Thread_local struct gw_guard *active __attribute__((tls_model("initial-exec")));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned guarded; /* bursts under way, all threads */

/* Slot i's handler chains to predecessor[i]. A slot is written once, before its handler can run. */
static struct sigaction predecessor[SLOTS];
static unsigned slots;

int gw_within(const struct gw_reach *reach, uintptr_t address) {
    for (uint32_t i = 0; i < reach->memory->count; i++)
        if (address - (uintptr_t)reach->memory->region[i].host < reach->memory->region[i].size)
            return true;
    return reach->log != NULL && address - (uintptr_t)reach->log->bits < reach->log->size;
}

static bool within(struct gw_guard *guard, uintptr_t address) {
    for (const struct gw_reach *reach = guard->reach; reach != NULL; reach = reach->next)
        if (gw_within(reach, address)) {
            guard->at = address;
            return true;
        }
    return false;
}

static void handle(unsigned slot, int number, siginfo_t *info, void *context) {
    /* si_code > 0: raised by the kernel for a fault, with an address; not by kill(). */
    if (active != NULL && info->si_code > 0 && within(active, (uintptr_t)info->si_addr))
        siglongjmp(active->jump, 1); /* gw_guard_leave puts the signal mask right */
    const struct sigaction *next = &predecessor[slot];
    if (next->sa_flags & SA_SIGINFO)
        next->sa_sigaction(number, info, context);
    else if (next->sa_handler == SIG_IGN && info->si_code <= 0)
        return; /* sent by kill(), and ignored */
    else if (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN) {
        /* A fault nobody handles ends the process: return to it with the default in force. */
        struct sigaction fatal = {.sa_handler = SIG_DFL};
        (void)sigaction(number, &fatal, NULL);
        if (info->si_code <= 0)
            (void)raise(number); /* pending until this handler returns */
    } else
        next->sa_handler(number);
}

#define HANDLER(i)                                                                                                     \
    static void handler_##i(int number, siginfo_t *info, void *context) { handle(i, number, info, context); }
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)
HANDLER(6)
HANDLER(7)
static void (*const handlers[SLOTS])(int, siginfo_t *, void *) = {handler_0, handler_1, handler_2, handler_3,
                                                                  handler_4, handler_5, handler_6, handler_7};

static bool same(const struct sigaction *a, const struct sigaction *b) {
    return a->sa_flags == b->sa_flags && ((a->sa_flags & SA_SIGINFO) ? a->sa_sigaction == b->sa_sigaction
                                                                      : a->sa_handler == b->sa_handler);
}

/* The slot whose handler is in force, or -1. */
static int slot_of(const struct sigaction *action) {
    if (action->sa_flags & SA_SIGINFO)
        for (unsigned i = 0; i < slots; i++)
            if (action->sa_sigaction == handlers[i])
                return (int)i;
    return -1;
}

/* With the lock held: make sure a handler of ours is in force. */
static int install(void) {
    struct sigaction found;
    (void)sigaction(SIGBUS, NULL, &found);
    while (slot_of(&found) < 0) {
        unsigned slot = 0;
        while (slot < slots && !same(&predecessor[slot], &found))
            slot++;
        if (slot == slots) {
            if (slots == SLOTS)
                return -1;
            predecessor[slots++] = found;
        }
        struct sigaction action = {.sa_sigaction = handlers[slot], .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&action.sa_mask);
        struct sigaction replaced;
        (void)sigaction(SIGBUS, &action, &replaced);
        if (same(&replaced, &found))
            return 0;
        found = replaced; /* another thread installed one meanwhile: chain to that instead */
    }
    return 0;
}

/* With the lock held: put back what ours replaced, unless somebody else's is in force by now. */
static void restore(void) {
    struct sigaction found;
    (void)sigaction(SIGBUS, NULL, &found);
    int slot = slot_of(&found);
    if (slot < 0)
        return;
    struct sigaction replaced;
    (void)sigaction(SIGBUS, &predecessor[slot], &replaced);
    if (slot_of(&replaced) < 0)
        (void)sigaction(SIGBUS, &replaced, NULL); /* installed since we looked: theirs stays */
}

int gw_guard_enter(struct gw_guard *guard, const struct gw_memory *memory, const struct gw_log *log) {
    guard->own = (struct gw_reach){memory, log, NULL};
    return gw_guard_enter_all(guard, &guard->own);
}

int gw_guard_enter_all(struct gw_guard *guard, const struct gw_reach *reach) {
    guard->reach = reach;
    (void)pthread_mutex_lock(&lock);
    int result = install();
    guarded += result == 0;
    (void)pthread_mutex_unlock(&lock);
    if (result != 0)
        return result;
    guard->outer = active;
    active = guard;
    /* A fault in a thread that blocks its signal kills the process, whoever handles it. */
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    (void)pthread_sigmask(SIG_UNBLOCK, &bus, &guard->mask);
    return 0;
}

void gw_guard_leave(struct gw_guard *guard) {
    active = guard->outer;
    (void)pthread_sigmask(SIG_SETMASK, &guard->mask, NULL);
    (void)pthread_mutex_lock(&lock);
    if (--guarded == 0)
        restore();
    (void)pthread_mutex_unlock(&lock);
}
