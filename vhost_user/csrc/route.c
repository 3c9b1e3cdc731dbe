/* SPDX-License-Identifier: MPL-2.0 */
#include "route.h"

int gw_route_put(struct gw_routes *routes, const uint8_t *key, uint32_t id, uint32_t port, int64_t deadline) {
    struct gw_route *route = &routes->slot[gw_route_find(routes, key)];
    if (route->port == 0) {
        if (routes->count == BRIDGE_ROUTES)
            return -1;
        routes->count++;
        memcpy(route->key, key, BRIDGE_KEY);
    }
    route->id = (uint16_t)id;
    route->port = (uint16_t)port;
    route->deadline = deadline;
    return 0;
}

void gw_route_remove(struct gw_routes *routes, const uint8_t *key) {
    uint32_t hole = gw_route_find(routes, key);
    if (routes->slot[hole].port == 0)
        return;
    routes->count--;
    /* Those behind it that would no longer be found move up. */
    for (uint32_t at = (hole + 1) & (BRIDGE_SLOTS - 1); routes->slot[at].port != 0; at = (at + 1) & (BRIDGE_SLOTS - 1)) {
        uint32_t wanted = gw_route_home(routes->slot[at].key);
        if (((at - wanted) & (BRIDGE_SLOTS - 1)) >= ((at - hole) & (BRIDGE_SLOTS - 1))) {
            routes->slot[hole] = routes->slot[at];
            hole = at;
        }
    }
    routes->slot[hole].port = 0;
}
