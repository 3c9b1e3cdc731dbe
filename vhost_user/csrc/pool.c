/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 * -------------------
 * A caller that has several rings to serve puts a job for each on the table, and everybody takes one that nobody has
 * taken, the caller from the front, helpers from the back, until none is left: so a ring mostly stays with one core, whose
 * caches know it. A helper that sleeps, or whose core is busy with something
 * better, costs nothing: the caller does all of it himself. Waking a helper takes longer than a burst; so after a run
 * helpers look for the next one for a short while before they sleep, and the caller says whether waking them is worth
 * a system call. While they look they yield: who needs the core gets it.
 *
 * What is on the table is one 64-bit word: the number of the run, how many jobs it has, how many are taken at each end. Taking one
 * is a compare-and-swap of that word, so a helper that was late can never take a job of a run it has not looked at. The
 * caller returns when all jobs are done; a job that was taken is done before that, so nothing of a run is touched after
 * it. Helpers take no signals but their own faults: Python's are the other threads'. */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "relax.h"

enum {
    SPIN_NS = 50000,   /* how long a helper looks before it sleeps: about what waking it takes */
    LOOKS = 64,        /* between two looks at the clock */
    JOBS_MAX = 0xff,
    FRONT = 1, /* one more taken there */
    BACK = 1 << 8,
};

/* The table: run << 32 | jobs << 16 | taken at the back << 8 | taken at the front. */
struct gw_pool {
    _Atomic uint64_t table;
    _Atomic(const struct gw_job *) jobs;
    _Atomic uint32_t left; /* of this run, not done */
    _Atomic uint32_t asleep;
    _Atomic bool quit;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pid_t owner;
    uint32_t threads;
    pthread_t thread[];
};

static int64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static inline uint32_t count_of(uint64_t table) { return table >> 16 & 0xff; }
static inline uint32_t taken_of(uint64_t table) { return (table & 0xff) + (table >> 8 & 0xff); }

/* Take and do one job of the run on the table, at this end; false: there is none. */
static bool do_one(struct gw_pool *pool, uint64_t end) {
    uint64_t table = atomic_load_explicit(&pool->table, memory_order_acquire);
    while (taken_of(table) < count_of(table)) {
        const struct gw_job *jobs = atomic_load_explicit(&pool->jobs, memory_order_relaxed);
        /* Failing, it looks at the new word: perhaps another run's, with jobs of its own. */
        if (atomic_compare_exchange_weak_explicit(&pool->table, &table, table + end, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            const struct gw_job *job = jobs + (end == FRONT ? table & 0xff : count_of(table) - 1 - (table >> 8 & 0xff));
            job->run(job->argument);
            atomic_fetch_sub_explicit(&pool->left, 1, memory_order_release);
            return true;
        }
    }
    return false;
}

static bool nothing_to_do(struct gw_pool *pool) {
    uint64_t table = atomic_load_explicit(&pool->table, memory_order_acquire);
    return taken_of(table) == count_of(table) && !atomic_load_explicit(&pool->quit, memory_order_acquire);
}

static void sleep_until_called(struct gw_pool *pool) {
    (void)pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->asleep, 1); /* before the last look: who does not see it has put work on the table before */
    while (nothing_to_do(pool))
        (void)pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->asleep, 1);
    (void)pthread_mutex_unlock(&pool->lock);
}

static void *help(void *opaque) {
    struct gw_pool *pool = opaque;
    int64_t since = now_ns();
    while (!atomic_load_explicit(&pool->quit, memory_order_acquire)) {
        bool worked = false;
        for (int look = 0; look < LOOKS && !worked; look++) {
            worked = do_one(pool, BACK);
            gw_relax();
        }
        int64_t now = now_ns();
        if (worked)
            since = now;
        else if (now - since > SPIN_NS) {
            sleep_until_called(pool);
            since = now_ns();
        } else
            (void)sched_yield();
    }
    return NULL;
}

static void call_all(struct gw_pool *pool) {
    (void)pthread_mutex_lock(&pool->lock);
    (void)pthread_cond_broadcast(&pool->wake);
    (void)pthread_mutex_unlock(&pool->lock);
}

struct gw_pool *gw_pool_new(uint32_t threads) {
    if (threads == 0)
        return NULL;
    struct gw_pool *pool = calloc(1, sizeof *pool + threads * sizeof pool->thread[0]);
    if (pool == NULL)
        return NULL;
    pool->owner = getpid();
    (void)pthread_mutex_init(&pool->lock, NULL);
    (void)pthread_cond_init(&pool->wake, NULL);
    sigset_t blocked, before;
    sigfillset(&blocked);
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigdelset(&blocked, faults[i]);
    (void)pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool->threads < threads && pthread_create(&pool->thread[pool->threads], NULL, help, pool) == 0)
        pool->threads++;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->threads == 0) {
        gw_pool_free(pool);
        return NULL;
    }
    return pool;
}

void gw_pool_free(struct gw_pool *pool) {
    if (pool == NULL)
        return;
    if (pool->owner == getpid()) { /* a child that was forked has the memory and not the threads */
        atomic_store_explicit(&pool->quit, true, memory_order_release);
        call_all(pool);
        for (uint32_t i = 0; i < pool->threads; i++)
            (void)pthread_join(pool->thread[i], NULL);
        (void)pthread_mutex_destroy(&pool->lock);
        (void)pthread_cond_destroy(&pool->wake);
    }
    free(pool);
}

void gw_pool_run(struct gw_pool *pool, const struct gw_job *jobs, uint32_t count, int wake) {
    if (pool == NULL || count < 2 || count > JOBS_MAX) {
        for (uint32_t i = 0; i < count; i++)
            jobs[i].run(jobs[i].argument);
        return;
    }
    uint64_t run = (atomic_load_explicit(&pool->table, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&pool->jobs, jobs, memory_order_relaxed);
    atomic_store_explicit(&pool->left, count, memory_order_relaxed);
    atomic_store(&pool->table, run << 32 | (uint64_t)count << 16);
    if (wake && atomic_load(&pool->asleep) > 0)
        call_all(pool);
    while (do_one(pool, FRONT))
        continue;
    for (int look = 0; atomic_load_explicit(&pool->left, memory_order_acquire) > 0; look++) {
        gw_relax();
        if (look % LOOKS == LOOKS - 1)
            (void)sched_yield(); /* the helper may want this core */
    }
}
