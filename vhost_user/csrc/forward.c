/* SPDX-License-Identifier: MPL-2.0 */
/* Guest to socket: the payload of packets that belong to one stream, sent by one system call from where it lies.
 *
 * The chains are walked first and taken only as far as the socket took them, so a socket without room leaves the ring as
 * it was. A chain that went in part is taken too, its rest copied out for the caller: no chain stays ours while a program
 * is slow. The kernel reads while we hold the ring; it does not wait (MSG_DONTWAIT). A page that is gone (a truncated
 * file) is EFAULT for a system call, not a SIGBUS. Headers are read once, into private memory, and judged there; what does
 * not look exactly as the caller said ends the burst and is left for `gw_vring_pop`, which knows what to do with it.
 */
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { VECTORS = 256 };

/* struct virtio_vsock_hdr: src_cid to dst_port, len, type and op, flags, buf_alloc, fwd_cnt. */
enum { HEADER = 44, ADDRESSES = 24, LENGTH_AT = 24, KIND_AT = 28, ALLOC_AT = 36, FORWARDED_AT = 40 };

static uint32_t le32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Copy `count` bytes out of a chain's pieces, from `skip` on. The chain has as many. */
static void copy_out(const struct gw_piece *piece, uint64_t skip, uint8_t *to, uint64_t count) {
    for (; count > 0; piece++) {
        if (skip >= piece->length) {
            skip -= piece->length;
            continue;
        }
        uint64_t some = gw_least(count, piece->length - skip);
        memcpy(to, piece->host + skip, some);
        skip = 0;
        to += some;
        count -= some;
    }
}

/* The places of `count` bytes of a chain behind its header, in at most `room` vectors: how many, 0 if they are more. */
static uint32_t places(const struct gw_piece *piece, uint64_t count, struct iovec *vectors, uint32_t room) {
    uint64_t skip = HEADER;
    uint32_t used = 0;
    for (; count > 0; piece++) {
        if (skip >= piece->length) {
            skip -= piece->length;
            continue;
        }
        if (used == room)
            return 0;
        uint64_t some = gw_least(count, piece->length - skip);
        vectors[used++] = (struct iovec){piece->host + skip, some};
        skip = 0;
        count -= some;
    }
    return used;
}

static int peek(struct gw_vring *ring, void *arguments) {
    uint8_t *header = arguments;
    int waiting = gw_available(ring);
    if (waiting <= 0)
        return waiting;
    gw_scratch_reset(ring);
    struct gw_chain *chain = &ring->chains[0];
    if (gw_chain_walk(ring, gw_head_at(ring, 0), false, chain) < 0 || chain->bytes < HEADER)
        return 0; /* pop will say what is wrong */
    copy_out(&ring->pieces[chain->first], 0, header, HEADER);
    return 1;
}

int gw_vring_peek(struct gw_vring *ring, uint8_t *header) { return gw_run(ring, peek, header); }

static int forward(struct gw_vring *ring, void *arguments) {
    struct gw_forward *asked = arguments;
    struct iovec vectors[VECTORS];
    uint32_t lengths[VECTORS], allocs[VECTORS], forwarded[VECTORS];
    uint8_t header[HEADER];
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    uint32_t count = 0, used = 0;
    uint64_t bytes = 0;
    gw_scratch_reset(ring);
    while (count < (uint32_t)waiting && count < VECTORS && gw_scratch_left(ring)) {
        struct gw_chain *chain = &ring->chains[count];
        if (gw_chain_walk(ring, gw_head_at(ring, count), false, chain) < 0 || chain->bytes < HEADER)
            break;
        copy_out(&ring->pieces[chain->first], 0, header, HEADER);
        uint32_t length = le32(header + LENGTH_AT);
        if (memcmp(header, asked->header, ADDRESSES) != 0 || memcmp(header + KIND_AT, asked->header + KIND_AT, 4) != 0)
            break;
        if (length == 0 || length > asked->most || length > chain->bytes - HEADER || length > asked->limit - bytes ||
            chain->bytes > HEADER + (uint64_t)asked->most)
            break;
        uint32_t more = places(&ring->pieces[chain->first], length, vectors + used, VECTORS - used);
        if (more == 0)
            break;
        allocs[count] = le32(header + ALLOC_AT);
        forwarded[count] = le32(header + FORWARDED_AT);
        lengths[count++] = length;
        used += more;
        bytes += length;
        if (bytes >= asked->enough)
            break;
    }
    if (count == 0)
        return 0;
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = used};
    ssize_t sent = sendmsg(asked->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
        asked->sent = -errno;
        return 0;
    }
    asked->sent = sent;
    uint64_t left = (uint64_t)sent;
    uint32_t taken = 0;
    for (; taken < count && left > 0; taken++) {
        const struct gw_chain *chain = &ring->chains[taken];
        uint64_t part = gw_least(left, lengths[taken]);
        left -= part;
        asked->rest_size = lengths[taken] - part;
        copy_out(&ring->pieces[chain->first], HEADER + part, asked->rest, asked->rest_size);
        gw_put_used(ring, taken, chain->head, 0);
        asked->buf_alloc = allocs[taken];
        asked->fwd_cnt = forwarded[taken];
    }
    ring->counters.bytes += (uint64_t)sent + asked->rest_size;
    gw_publish(ring, taken);
    return (int)taken;
}

int gw_vring_forward(struct gw_vring *ring, struct gw_forward *asked) {
    asked->sent = 0;
    asked->rest_size = 0;
    return gw_run(ring, forward, asked);
}
