/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * A program that waits for bulk data with a buffer of its own would have it copied twice: from guest memory into the
 * slab, and from there. While it waits, and nothing is queued before it, the payload of the next segments of its
 * connection may go into its buffer at once. Which those are is said beforehand, by all that header prediction asks of
 * a segment (stack.tcp.landing), and decided here for each chain, by a private copy of its headers, before its payload
 * is read: the guest's memory is read once, as ever, and a guest that changes payload meanwhile changes what it sends.
 *
 * A segment lands if it says what was expected to the bit but for length, identification, PSH and TSecr (which says
 * nothing to who has sent nothing since), continues the one before, is whole and behind one IPv4 header, has a payload
 * no smaller than what counts as bulk, and its facts are good and vouch for its checksum: one that had to be verified
 * would have to be read first. Of several with time stamps all have the same.
 *
 * Only the first chains of a burst land, so what landed came before everything in the slab. */
#include "landing.h"

#include <string.h>

#include "bytes.h"

enum {
    ETHER = 14,
    IPV4_HEADER = 20,
    TCP_PSH = 0x08,
    TCP_ACK = 0x10,
    MORE_OR_OFFSET = 0x3fff,
    NEEDS_CSUM = 1,
    PLAIN = 40,
    STAMP_OPTION = 0x0101080a, /* two of padding, kind, length: as everybody lays it out */
};

static int expected(const struct gw_landing *l, const uint8_t *frame, uint32_t length) {
    const uint8_t *ip = frame + ETHER, *tcp = ip + IPV4_HEADER;
    return memcmp(frame, l->head, sizeof l->head) == 0 && gw_be16(ip + 2) == length - ETHER &&
           (gw_be16(ip + 6) & MORE_OR_OFFSET) == 0 && gw_be16(ip + 8) == l->fate &&
           memcmp(ip + 12, l->place, sizeof l->place) == 0 && gw_be32(tcp + 4) == l->seq + l->bytes &&
           gw_be32(tcp + 8) == l->ack && tcp[12] == (l->data - IPV4_HEADER) << 2 && (tcp[13] & ~TCP_PSH) == TCP_ACK &&
           gw_be16(tcp + 14) == l->window && gw_header_sum_right(ip);
}

/* Whether its time stamp is one that can come next. */
static int in_time(const struct gw_landing *l, const uint8_t *tcp) {
    if (l->data == PLAIN)
        return 1;
    if (gw_be32(tcp + 20) != STAMP_OPTION)
        return 0;
    uint32_t value = gw_be32(tcp + 24);
    return l->frames > 0 ? value == l->value : value - l->stamp < 0x80000000;
}

uint32_t gw_land(struct gw_landing *l, const uint8_t *chain, uint32_t got, uint32_t length, uint32_t accept,
                 uint32_t mtu) {
    uint32_t headers = VNET_HEADER + ETHER + l->data;
    if (got < LANDING_HEAD || length < headers + VNET_BULK)
        return 0;
    const uint8_t *frame = chain + VNET_HEADER;
    struct vnet_record r;
    if (!expected(l, frame, length - VNET_HEADER) || !in_time(l, frame + ETHER + IPV4_HEADER))
        return 0;
    /* Looks no further than headers, as these are the plain ones, unless it has a checksum to verify. */
    if (!(chain[0] & NEEDS_CSUM) || vnet_judge(chain, 0, length, accept, mtu, &r) >= 0)
        return 0;
    uint32_t payload = length - headers;
    if (payload > l->room - l->bytes) {
        l->full = l->frames > 0;
        return l->full ? LANDING_LEAVE : 0;
    }
    uint32_t piece = r.gso_type != 0 ? r.gso_size : payload;
    if (piece > l->longest)
        l->longest = piece;
    if (l->data != PLAIN)
        l->value = gw_be32(frame + ETHER + PLAIN + 4);
    l->frames++;
    l->segments += (payload + piece - 1) / piece;
    l->bytes += payload;
    l->wire += length - VNET_HEADER;
    return headers;
}
