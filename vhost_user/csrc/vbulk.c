/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * A bench of bulk is to measure the device's side, so the driver's must be as quick as a guest's kernel at least. It is the
 * driver of vdriver.c all the same: payload is copied into guest memory and out of it, chains are published and kicked by
 * its rules, and buffers go back. It is quick because it knows one connection, and only the plain case of it: whole
 * segments in order, without options. Anything else, ARP, a retransmission, a FIN, is handed to the caller as it was
 * copied out of the ring, and changes nothing here. What the device wrote is looked at in that copy alone. */
#include "vbulk.h"

#include <string.h>

#include "bytes.h"
#include "relax.h"

enum {
    IP = 12 + 14, /* behind struct virtio_net_hdr with num_buffers, and Ethernet */
    TYPE = IP - 2,
    TOTAL = IP + 2,
    FRAGMENT = IP + 6,
    PROTOCOL = IP + 9,
    SOURCE = IP + 12,
    DESTINATION = IP + 16,
    TCP = IP + 20,
    SEQUENCE = TCP + 4,
    ACKNOWLEDGMENT = TCP + 8,
    OFFSET = TCP + 12,
    FLAGS = TCP + 13,
    WINDOW = TCP + 14,
    CHECKSUM = TCP + 16,
    MORE_OR_OFFSET = 0x3fff,
    PSH = 0x08,
    ACK = 0x10,
};

static void publish(struct vdrv_bulk *bulk, struct vdrv_ring *ring, int kick) {
    bulk->kicks += (uint64_t)vdrv_show(ring, kick);
}

static void put32(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 24);
    p[1] = (uint8_t)(value >> 16);
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)value;
}

/* Numbered as of now, into a buffer the device is not yet shown. Returns 1, or 0: no buffer or descriptor is free. */
static uint32_t add(struct vdrv_bulk *bulk, struct vdrv_segment *s) {
    uint32_t seq = (uint32_t)bulk->snd_nxt, ack = (uint32_t)bulk->rcv_nxt;
    put32(s->header + SEQUENCE, seq);
    put32(s->header + ACKNOWLEDGMENT, ack);
    if (s->sum >= 0) {
        uint32_t sum = (uint32_t)s->sum + (seq >> 16) + (seq & 0xffff) + (ack >> 16) + (ack & 0xffff);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = ~((sum & 0xffff) + (sum >> 16));
        s->header[CHECKSUM] = (uint8_t)(sum >> 8);
        s->header[CHECKSUM + 1] = (uint8_t)sum;
    }
    const struct vdrv_message message = {
        .header = s->header, .header_length = VDRV_BULK_HEADERS, .data = s->data, .data_length = s->length};
    return vdrv_send(bulk->tx, bulk->tx_pool, &message, 1);
}

/* Whether the frame of `length` bytes at `p` says nothing but what is taken in here. */
static int take_in(struct vdrv_bulk *bulk, const uint8_t *p, uint32_t length) {
    const uint8_t *ours = bulk->ack.header;
    if (length < VDRV_BULK_HEADERS || gw_be16(p + TYPE) != 0x0800 || p[IP] != 0x45 ||
        (gw_be16(p + FRAGMENT) & MORE_OR_OFFSET) || p[PROTOCOL] != 6 || memcmp(p + SOURCE, ours + DESTINATION, 4) ||
        memcmp(p + DESTINATION, ours + SOURCE, 4) || gw_be16(p + TCP) != gw_be16(ours + TCP + 2) ||
        gw_be16(p + TCP + 2) != gw_be16(ours + TCP) || p[OFFSET] != 0x50 || (p[FLAGS] & ~PSH) != ACK)
        return 0;
    uint32_t total = gw_be16(p + TOTAL);
    uint32_t acked = gw_be32(p + ACKNOWLEDGMENT) - (uint32_t)bulk->snd_una;
    if (total < VDRV_BULK_HEADERS - IP || total > length - IP || gw_be32(p + SEQUENCE) != (uint32_t)bulk->rcv_nxt ||
        acked > bulk->snd_nxt - bulk->snd_una)
        return 0;
    uint32_t payload = total - (VDRV_BULK_HEADERS - IP);
    bulk->snd_una += acked;
    bulk->window = (uint64_t)gw_be16(p + WINDOW) << bulk->scale;
    bulk->rcv_nxt += payload;
    bulk->owed |= payload > 0;
    return 1;
}

/* Everything that is there, a poll's worth at most. VDRV_BULK_MOVED: something was. */
static int poll(struct vdrv_bulk *bulk) {
    int end = VDRV_BULK_IDLE;
    for (uint32_t taken = 0; taken < VDRV_BULK_POLL && end != VDRV_BULK_OTHER && vdrv_pending(bulk->rx) > 0; taken++) {
        if (bulk->fill > bulk->size / 2)
            bulk->fill = 0;
        if (vdrv_receive(bulk->rx, bulk->rx_pool, bulk->out + bulk->fill, bulk->size - bulk->fill, &bulk->frame, 1,
                         bulk->merge) != 1)
            return VDRV_BULK_STUCK;
        bulk->frame.offset = (uint32_t)bulk->fill;
        bulk->fill += bulk->frame.length;
        end = take_in(bulk, bulk->out + bulk->frame.offset, bulk->frame.length) ? VDRV_BULK_MOVED : VDRV_BULK_OTHER;
    }
    if (end != VDRV_BULK_IDLE && vdrv_post(bulk->rx, bulk->rx_pool) > 0)
        publish(bulk, bulk->rx, bulk->rx_kick);
    if (bulk->owed && add(bulk, &bulk->ack)) {
        bulk->owed = 0;
        publish(bulk, bulk->tx, bulk->tx_kick);
    }
    return end;
}

int vdrv_flood(struct vdrv_bulk *bulk, uint64_t end) {
    uint32_t length = bulk->data.length;
    for (uint32_t vain = 0; bulk->snd_nxt + length <= end;) {
        uint64_t edge = bulk->snd_una + bulk->window;
        uint32_t sent = 0;
        for (; sent < VDRV_BULK_BURST && bulk->snd_nxt + length <= (edge < end ? edge : end); sent++) {
            if (!add(bulk, &bulk->data))
                break;
            bulk->snd_nxt += length;
        }
        publish(bulk, bulk->tx, bulk->tx_kick);
        int came = poll(bulk);
        if (came > VDRV_BULK_IDLE)
            return came;
        if (sent > 0 || came == VDRV_BULK_MOVED)
            vain = 0;
        else if (vain++ >= bulk->patience)
            return VDRV_BULK_IDLE;
        else
            gw_relax();
    }
    return VDRV_BULK_MOVED;
}

int vdrv_drain(struct vdrv_bulk *bulk, uint64_t end) {
    while (bulk->rcv_nxt < end) {
        if (vdrv_linger(bulk->rx, bulk->enough, bulk->looks) == 0)
            vdrv_linger(bulk->rx, 1, bulk->patience);
        int came = poll(bulk);
        if (came != VDRV_BULK_MOVED)
            return came;
    }
    return VDRV_BULK_MOVED;
}
