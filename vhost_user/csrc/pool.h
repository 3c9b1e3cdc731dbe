/* SPDX-License-Identifier: MPL-2.0 */
/* A few threads that help with one thing at a time: jobs in C, on rings, while the caller waits. See pool.c. */
#ifndef GUESTWIRE_POOL_H
#define GUESTWIRE_POOL_H

#include <stdint.h>

/* cdef begin */
struct gw_pool;

/* Something to do; jobs of one run are independent of each other. */
struct gw_job {
    void (*run)(void *argument);
    void *argument;
};

/* A pool of `threads` helpers beside the caller, or NULL. */
struct gw_pool *gw_pool_new(uint32_t threads);
void gw_pool_free(struct gw_pool *pool);

/* Do all of the jobs, in this thread and in those helpers that are awake; `wake`: the others are woken first. One
 * caller at a time. Without a pool (NULL) this thread does them one after the other. */
void gw_pool_run(struct gw_pool *pool, const struct gw_job *jobs, uint32_t count, int wake);
/* cdef end */

#endif
