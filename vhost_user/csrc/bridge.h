/* SPDX-License-Identifier: MPL-2.0 */
/* Frames from one guest's transmit ring straight into other guests' receive rings: switching without Python in between.
 * Who may go where is Python's decision, kept here as a table of exact matches; whatever is not in it, or is unusual in
 * any way, stays in its ring for Python to take. See bridge.c. */
#ifndef GUESTWIRE_BRIDGE_H
#define GUESTWIRE_BRIDGE_H

#include "pool.h"
#include "route.h"
#include "steer.h"
#include "vnet.h"
#include "vring.h"

/* cdef begin */
enum {
    BRIDGE_OUTLETS = 128, /* rings one call can put frames into */
};

/* A ring frames may be put into. */
struct gw_outlet {
    struct gw_vring *ring;
    uint32_t usable;  /* it is live, and its gate is held */
    int32_t result;   /* out: 0, or the gw_result that broke it */
    uint32_t lock;    /* of the jobs of one run */
    uint32_t user;    /* the job that used it last in this run, from 1 */
    uint32_t waiting; /* chains known to be available, */
    uint32_t taken;   /* and how many of them are filled and not published */
    uint64_t apart[12]; /* from the next one: each is one core's at a time */
};

/* A guest's card as others send to it. */
struct gw_port {
    struct gw_outlet *outlets;
    struct gw_steer *steer; /* which outlet, if there are several; its slots are theirs */
    uint32_t count;
    uint32_t closed;     /* frames for it go another way for now */
    uint32_t guest_csum; /* it takes partial and verified checksums */
    uint32_t merge;      /* it takes frames in several buffers */
    uint32_t gso;        /* superframes it takes: VNET_TSO4... */
    uint32_t mtu;
};

/* Why a call ended. */
enum gw_stop {
    GW_STOP_EMPTY,   /* nothing left */
    GW_STOP_BUDGET,  /* there may be more */
    GW_STOP_ROUTE,   /* the next frame's way is not known, or too long ago */
    GW_STOP_UNUSUAL, /* the next frame, or its way, is for Python */
    GW_STOP_ROOM,    /* the next frame's ring has no room for it */
    GW_STOP_OUTLET,  /* the next frame's ring broke */
    GW_STOP_SOURCE,  /* the next chain is broken, or memory is gone */
};

/* One call for one ring; also a job's argument. */
struct gw_bridge {
    struct gw_vring *source;
    const struct gw_routes *routes;
    struct gw_port **ports;
    struct gw_outlet **outlets; /* all of all ports, for the end of the call */
    uint32_t outlet_count;
    struct gw_steer *steer;     /* the sender's, to learn from; or NULL */
    uint32_t pair;              /* it sends through this one */
    struct vnet_inbox *inbox;   /* what it may send, and where its drops are counted */
    uint32_t usable;            /* the source is live, and its gate is held */
    uint64_t max_bytes, max_chain;
    uint8_t *scratch; /* max_chain bytes and 64 more */
    /* out */
    int32_t result;   /* of the source: 0 or a gw_result */
    uint32_t stop;    /* enum gw_stop */
    uint32_t taken;   /* chains, dropped ones among them */
    uint32_t frames;  /* forwarded, those among them that their ring could not hold */
    uint64_t bytes;   /* of them, without their headers */
    uint32_t hits;    /* routes used: their ids, and by id how often */
    uint16_t hit[BRIDGE_ROUTES];
    uint32_t count[BRIDGE_ROUTES];
    /* private */
    uint32_t alone, finishing, unpublished, budget, number, crossed;
    int64_t now;
    struct gw_outlet *held;
    uint64_t apart[12]; /* from the next one */
};

/* What is to be looked at after a call. */
enum { BRIDGE_MOVED = 1, BRIDGE_LEFT = 2, BRIDGE_BROKE = 4, BRIDGE_CROSSED = 8 };

/* Forward up to `budget` frames from each of `count` rings, with everybody in the pool (or NULL). All have the same routes,
 * ports and outlets. Answers BRIDGE_MOVED: some job has frames; _LEFT: some job's `stop` is above GW_STOP_BUDGET; _BROKE:
 * a source or an outlet has a result below 0; _CROSSED: jobs kept taking outlets from each other, so that one thread would
 * have been faster. */
int gw_bridge(struct gw_pool *pool, struct gw_bridge *jobs, uint32_t count, int wake, uint32_t budget, int64_t now);
/* cdef end */

#endif
