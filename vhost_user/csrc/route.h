/* SPDX-License-Identifier: MPL-2.0 */
/* A table of exact matches: frames between these two addresses go there. Open addressing, at most half full. */
#ifndef GUESTWIRE_ROUTE_H
#define GUESTWIRE_ROUTE_H

#include <stdint.h>
#include <string.h>

/* cdef begin */
enum {
    BRIDGE_KEY = 12,      /* destination and source address: where an Ethernet frame begins */
    BRIDGE_SLOTS = 1024,  /* of the table of routes, a power of two */
    BRIDGE_ROUTES = 512,  /* of which at most so many are in use */
};

/* Frames that begin with `key` go to ports[port] until `deadline`. */
struct gw_route {
    uint8_t key[BRIDGE_KEY];
    uint16_t id;   /* the caller's name for it, below BRIDGE_ROUTES */
    uint16_t port; /* from 1; 0: the slot is free */
    int64_t deadline;
};

struct gw_routes {
    uint32_t count;
    struct gw_route slot[BRIDGE_SLOTS];
};

/* Add a route, or change the one with that key. 0, or -1: the table is full. */
int gw_route_put(struct gw_routes *routes, const uint8_t *key, uint32_t id, uint32_t port, int64_t deadline);
void gw_route_remove(struct gw_routes *routes, const uint8_t *key);
/* cdef end */

static inline uint32_t gw_route_home(const uint8_t *key) {
    uint64_t low;
    uint32_t high;
    memcpy(&low, key, sizeof low);
    memcpy(&high, key + 8, sizeof high);
    uint64_t hash = (low ^ (uint64_t)high << 17 ^ high) * 0x9e3779b97f4a7c15;
    return (uint32_t)(hash >> 54) & (BRIDGE_SLOTS - 1);
}

/* The slot with this key, or the free one where it would be. At most half of them are in use. */
static inline uint32_t gw_route_find(const struct gw_routes *routes, const uint8_t *key) {
    uint32_t at = gw_route_home(key);
    while (routes->slot[at].port != 0 && memcmp(routes->slot[at].key, key, BRIDGE_KEY) != 0)
        at = (at + 1) & (BRIDGE_SLOTS - 1);
    return at;
}

#endif
