/* SPDX-License-Identifier: MPL-2.0 */
/* Two guests, a ring of one to be forwarded to a ring of the other: for the tests of bridge.c. */
#ifndef GW_TEST_LAN_H
#define GW_TEST_LAN_H

#include "guest.h"

#include "../bridge.h"

enum { SCRATCH = 65536 + 1024, MTU = 1500, HEADER = 12 };

struct lan {
    struct guest from, to;
    struct gw_routes routes;
    struct gw_outlet outlet;
    struct gw_outlet *outlets[1];
    struct gw_port port;
    struct gw_port *ports[1];
    struct gw_steer steer;
    uint64_t drops[VNET_DROPS];
    struct vnet_inbox inbox;
    struct gw_bridge job;
    uint8_t scratch[SCRATCH];
};

static const uint8_t KEY[BRIDGE_KEY] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1};

static inline void wire(struct lan *lan) {
    lan->outlet = (struct gw_outlet){.ring = lan->to.ring, .usable = 1};
    lan->outlets[0] = &lan->outlet;
    gw_steer_clear(&lan->steer);
    lan->steer.slots = 1;
    lan->port = (struct gw_port){.outlets = &lan->outlet, .steer = &lan->steer, .count = 1, .guest_csum = 1, .merge = 1,
                                 .gso = VNET_TSO4 | VNET_TSO6 | VNET_ECN | VNET_USO, .mtu = MTU};
    lan->ports[0] = &lan->port;
    lan->inbox = (struct vnet_inbox){.accept = VNET_CSUM | VNET_TSO4 | VNET_TSO6 | VNET_ECN | VNET_USO | VNET_VERIFY,
                                     .mtu = MTU, .drops = lan->drops};
    lan->job = (struct gw_bridge){.source = lan->from.ring, .routes = &lan->routes, .ports = lan->ports,
                                   .outlets = lan->outlets, .outlet_count = 1, .inbox = &lan->inbox, .usable = 1,
                                   .max_bytes = 1 << 19, .max_chain = HEADER + 18 + 65535, .scratch = lan->scratch};
    CHECK_INT(gw_route_put(&lan->routes, KEY, 7, 1, 1000), 0);
}

static inline struct lan *open_lan(void) {
    struct lan *lan = calloc(1, sizeof *lan);
    CHECK(lan != NULL);
    open_guest(&lan->from, 16);
    open_guest(&lan->to, 16);
    start(&lan->from, INDIRECT_AND_EVENT, 65530);
    start(&lan->to, INDIRECT_AND_EVENT, 65533);
    wire(lan);
    return lan;
}

static inline void close_lan(struct lan *lan) {
    close_guest(&lan->from);
    close_guest(&lan->to);
    free(lan);
}

static inline int forward(struct lan *lan) { return gw_bridge(NULL, &lan->job, 1, 0, 256, 500); }

/* A frame of `size` bytes, its header before it, in the sender's buffer number `slot` of 4 KiB. */
static inline uint8_t *put_frame(struct lan *lan, uint32_t slot, uint32_t size) {
    uint8_t *frame = at(&lan->from, BUFFERS + 4096 * slot);
    memset(frame, 0, HEADER);
    for (uint32_t i = 0; i < size; i++)
        frame[HEADER + i] = (uint8_t)(i * 7 + slot);
    memcpy(frame + HEADER, KEY, sizeof KEY);
    if (size >= 14)
        memcpy(frame + HEADER + 12, "\x88\xb5", 2);
    return frame;
}

/* The same, made available as one descriptor. */
static inline uint8_t *send_frame(struct lan *lan, uint16_t slot, uint32_t size) {
    uint8_t *frame = put_frame(lan, slot, size);
    desc(&lan->from, slot, BUFFERS + 4096 * slot, HEADER + size, 0, 0);
    offer(&lan->from, slot);
    return frame;
}

/* `size` bytes for the receiver's ring to be filled, at its buffer number `slot` of 4 KiB. */
static inline void post(struct lan *lan, uint16_t slot, uint32_t size) {
    desc(&lan->to, slot, BUFFERS + 4096 * slot, size, D_WRITE, 0);
    offer(&lan->to, slot);
}

static inline uint8_t *buffer(struct lan *lan, uint32_t slot) { return at(&lan->to, BUFFERS + 4096 * slot); }

static inline void put16(uint8_t *where, uint32_t value) {
    where[0] = (uint8_t)value;
    where[1] = (uint8_t)(value >> 8);
}

/* The call ends before its first frame, with this reason, and nobody is the poorer. */
static inline void stays(struct lan *lan, uint32_t why) {
    uint16_t base = (uint16_t)gw_vring_base(lan->from.ring), used = used_idx(&lan->to);
    CHECK_INT(forward(lan), BRIDGE_LEFT | (why == GW_STOP_OUTLET ? BRIDGE_BROKE : 0));
    CHECK_INT(lan->job.stop, why);
    CHECK_INT(gw_vring_base(lan->from.ring), base);
    CHECK_INT(used_idx(&lan->to), used);
    CHECK_INT(lan->job.result, 0);
}

#endif
