/* SPDX-License-Identifier: MPL-2.0 */
/* Device to guest: frames, given as parts of Python buffers, scattered over writable chains.
 *
 * All or nothing per frame: the chains it needs are walked first, and only when they are enough is anything copied. Taking
 * chains is advancing a local count, so giving up a frame costs nothing and leaves no trace. Packets that may be cut
 * (vsock) are the exception: they take what there is.
 */
#include "bytes.h"
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct push {
    int mode;
    uint32_t at, header_size;
    const uint32_t *counts; /* parts of each frame */
    uint32_t frames;
    const uint32_t *parts;
    const uint8_t *blob;
    const void *const *external;
    bool patiently;
};

/* Reads the bytes of frames, part by part. */
struct source {
    const uint32_t *part;
    const uint8_t *blob;
    const void *const *external;
    const uint8_t *bytes; /* of the current part */
    uint32_t left;
    const uint8_t *behind; /* and what comes before the next one: the rest of a part a header was put in front of */
    uint32_t behind_left;
};

static void next_part(struct source *source) {
    if (source->behind_left > 0) {
        source->bytes = source->behind;
        source->left = source->behind_left;
        source->behind_left = 0;
        return;
    }
    uint32_t part = *source->part++;
    source->left = part & GW_PART_LENGTH;
    if (part & GW_PART_EXTERNAL)
        source->bytes = *source->external++;
    else {
        source->bytes = source->blob;
        source->blob += source->left;
    }
}

/* Writes the bytes of chains, piece by piece. */
struct sink {
    const struct gw_piece *piece;
    uint32_t offset; /* in *piece */
};

/* The caller knows that both have `count` bytes left. */
static void copy(struct gw_vring *ring, struct sink *sink, struct source *source, uint64_t count) {
    bool log = ring->log_all && ring->log != NULL;
    while (count > 0) {
        if (source->left == 0) {
            next_part(source);
            continue;
        }
        if (sink->offset == sink->piece->length) {
            sink->piece++;
            sink->offset = 0;
        }
        uint64_t room = gw_least(sink->piece->length - sink->offset, source->left);
        uint32_t some = (uint32_t)gw_least(count, room);
        gw_copy(sink->piece->host + sink->offset, source->bytes, some);
        if (log)
            gw_log_mark(ring->log, sink->piece->gpa + sink->offset, some);
        sink->offset += some;
        source->bytes += some;
        source->left -= some;
        count -= some;
    }
}

static void skip(struct sink *sink, uint64_t count) {
    while (count > sink->piece->length - sink->offset) {
        count -= sink->piece->length - sink->offset;
        sink->piece++;
        sink->offset = 0;
    }
    sink->offset += (uint32_t)count;
}

enum { SHORT = -1, NO_FIT = -2 }; /* beside gw_result below GW_BROKEN */

/* Walk as many chains as a frame of `bytes` needs, from the one after `taken`: their number, SHORT, NO_FIT or a
 * gw_result. */
static int gather(struct gw_vring *ring, const struct push *asked, uint64_t bytes, uint32_t taken, uint32_t waiting) {
    uint64_t smallest = asked->mode == GW_PUSH_MERGE ? asked->at + 2u : 0;
    uint64_t room = 0;
    uint32_t count = 0;
    gw_scratch_reset(ring);
    do {
        if (count == ring->num || !gw_scratch_left(ring))
            return NO_FIT;
        if (taken + count == waiting)
            return SHORT;
        struct gw_chain *chain = &ring->chains[count];
        int result = gw_chain_walk(ring, gw_head_at(ring, taken + count), true, chain);
        if (result < 0)
            return result;
        /* A buffer must hold the header at least (virtio 1.3 section 5.1.6.3.1). */
        if (chain->bytes < smallest)
            return gw_fail(ring, GW_BROKEN_SMALL, chain->bytes);
        room += chain->bytes;
        count++;
        if (asked->mode == GW_PUSH_ONE && room < bytes)
            return NO_FIT;
    } while (room < bytes);
    return (int)count;
}

/* Fill `count` gathered chains, all but the last one completely. */
static void fill(struct gw_vring *ring, const struct push *asked, struct source *source, uint64_t bytes, uint32_t taken,
                 uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const struct gw_chain *chain = &ring->chains[i];
        uint64_t part = gw_least(bytes, chain->bytes);
        struct sink sink = {&ring->pieces[chain->first], 0};
        copy(ring, &sink, source, part);
        bytes -= part;
        gw_put_used(ring, taken + i, chain->head, (uint32_t)part);
    }
    if (asked->mode == GW_PUSH_MERGE) {
        /* gather made sure that the first chain reaches this far */
        uint8_t number[2] = {(uint8_t)count, (uint8_t)(count >> 8)};
        struct source patch = {.bytes = number, .left = sizeof number};
        struct sink sink = {&ring->pieces[ring->chains[0].first], 0};
        skip(&sink, asked->at);
        copy(ring, &sink, &patch, sizeof number);
    }
}

/* Header and `bytes` of payload into the chains after `*taken`, however many there are: a packet may be cut anywhere, so
 * no shortage can keep it from getting on, and none is too large for a ring. Each chain begins with the header, whose
 * length is that of its own piece and whose marks are those of the piece that ends the packet. `*taken` is counted on,
 * `*placed` is the payload that found room: all of it if the answer is 0, otherwise SHORT or a gw_result. */
static int spread(struct gw_vring *ring, const struct push *asked, struct source *source, uint64_t bytes,
                  uint32_t *taken, uint32_t waiting, uint64_t *placed) {
    uint8_t header[GW_SPLIT_HEADER_MAX];
    uint32_t length_at = asked->at & UINT16_MAX, marks_at = asked->at >> 16;
    for (uint32_t b = 0; b < asked->header_size; b++) {
        while (source->left == 0)
            next_part(source);
        header[b] = *source->bytes++;
        source->left--;
    }
    uint8_t marks[4] = {0};
    if (marks_at > 0) {
        memcpy(marks, header + marks_at, sizeof marks);
        memset(header + marks_at, 0, sizeof marks);
    }
    ring->work = 0;
    do {
        ring->piece_count = 0;
        if (*taken == waiting || !gw_scratch_left(ring))
            return SHORT;
        struct gw_chain *chain = &ring->chains[0];
        int result = gw_chain_walk(ring, gw_head_at(ring, *taken), true, chain);
        if (result < 0)
            return result;
        uint64_t left = bytes - *placed;
        if (chain->bytes < asked->header_size || (left > 0 && chain->bytes == asked->header_size))
            return gw_fail(ring, GW_BROKEN_SMALL, chain->bytes);
        uint32_t part = (uint32_t)gw_least(left, chain->bytes - asked->header_size);
        for (uint32_t b = 0; b < 4; b++)
            header[length_at + b] = (uint8_t)(part >> (8 * b));
        if (marks_at > 0 && part == left)
            memcpy(header + marks_at, marks, sizeof marks);
        struct source patched = {.bytes = header, .left = asked->header_size};
        struct sink sink = {&ring->pieces[chain->first], 0};
        copy(ring, &sink, &patched, asked->header_size);
        copy(ring, &sink, source, part);
        gw_put_used(ring, (*taken)++, chain->head, asked->header_size + part);
        *placed += part;
    } while (*placed < bytes);
    return 0;
}

static int push(struct gw_vring *ring, void *arguments) {
    const struct push *asked = arguments;
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    bool split = asked->mode == GW_PUSH_SPLIT;
    uint64_t smallest = asked->mode == GW_PUSH_MERGE ? asked->at + 2u : asked->header_size;
    struct source source = {.part = asked->parts, .blob = asked->blob, .external = asked->external};
    uint32_t taken = 0, accepted = 0;
    for (; accepted < asked->frames; accepted++) {
        const uint32_t *end = source.part + asked->counts[accepted];
        uint64_t bytes = 0, placed = 0;
        for (const uint32_t *part = source.part; part < end; part++)
            bytes += *part & GW_PART_LENGTH;
        int count = NO_FIT;
        if (bytes >= smallest && split)
            count = spread(ring, asked, &source, bytes - asked->header_size, &taken, (uint32_t)waiting, &placed);
        else if (bytes >= smallest)
            count = gather(ring, asked, bytes, taken, (uint32_t)waiting);
        if (count == SHORT) {
            ring->counters.shortages++;
            ring->partial = placed;
            break;
        }
        if (count == NO_FIT) {
            ring->counters.dropped_no_fit++;
        } else if (count < 0) {
            if (taken == 0 && accepted == 0)
                return count;
            ring->partial = placed;
            break; /* as in pop: what came before is good */
        } else {
            if (!split)
                fill(ring, asked, &source, bytes, taken, (uint32_t)count);
            taken += (uint32_t)count;
            ring->counters.bytes += bytes;
        }
        while (source.part < end) /* a dropped frame, or empty parts at the end of one */
            next_part(&source);
        source.left = 0;
    }
    ring->counters.bytes += ring->partial;
    if (asked->patiently)
        gw_publish_patiently(ring, taken);
    else
        gw_publish(ring, taken);
    return (int)accepted;
}

/* The parts must account for every byte and pointer given: a wrong length is the caller's bug, not a read beyond. */
static bool complete(const struct push *asked, uint32_t part_count, uint64_t blob_size, uint32_t external_count) {
    uint64_t inline_bytes = 0, parts = 0;
    uint32_t externals = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        if (asked->parts[i] & GW_PART_EXTERNAL)
            externals++;
        else
            inline_bytes += asked->parts[i] & GW_PART_LENGTH;
    }
    for (uint32_t i = 0; i < asked->frames; i++)
        parts += asked->counts[i];
    return parts == part_count && inline_bytes == blob_size && externals == external_count;
}

int gw_vring_push(struct gw_vring *ring, int mode, uint32_t at, uint32_t header_size, const uint32_t *words,
                  uint32_t frames, uint32_t parts, const uint8_t *blob, uint64_t blob_size,
                  const void *const *external, uint32_t external_count) {
    bool patiently = (mode & GW_PUSH_PATIENTLY) != 0;
    mode &= ~GW_PUSH_PATIENTLY;
    struct push asked = {mode, at, header_size, words, frames, words + frames, blob, external, patiently};
    if (!complete(&asked, parts, blob_size, external_count) || frames > INT32_MAX)
        return GW_BAD_ARGUMENT;
    bool fits = mode == GW_PUSH_SPLIT ? (at & UINT16_MAX) + 4 <= header_size && (at >> 16) + 4 <= header_size
                                      : at <= UINT16_MAX;
    if (!fits || header_size > GW_SPLIT_HEADER_MAX)
        return GW_BAD_ARGUMENT;
    ring->partial = 0;
    return gw_run(ring, push, &asked);
}

int gw_vring_push_one(struct gw_vring *ring, int mode, uint32_t at, const uint8_t *frame, uint32_t length) {
    const uint32_t words[] = {1, length};
    return gw_vring_push(ring, mode, at, 0, words, 1, 1, frame, length, NULL, 0);
}

uint64_t gw_vring_partial(const struct gw_vring *ring) { return ring->partial; }

/* -- volleys: superframes of one flow that differ in their sequence numbers ------------------------------------------
 *
 * What is written is what gw_vring_push would write for frames of a header and a stretch of the payload each; only that
 * nobody has to make `count` headers and cut the payload. The guest is shown them GW_VOLLEY_SHOWN at a time, so that it
 * takes out the first ones while we copy the next.
 */

static void put_be32(uint8_t *at, uint32_t value) {
    for (uint32_t b = 0; b < 4; b++)
        at[b] = (uint8_t)(value >> (24 - 8 * b));
}

struct volley {
    struct push push;
    const uint8_t *headers;
    uint32_t header_size, number_at, number, size, last_size, count;
};

static int volley(struct gw_vring *ring, void *arguments) {
    const struct volley *asked = arguments;
    const struct push *push = &asked->push;
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    uint8_t header[GW_VOLLEY_HEADER_MAX];
    memcpy(header, asked->headers, asked->header_size);
    uint32_t number = asked->number, taken = 0, accepted = 0;
    struct source source = {.part = push->parts, .external = push->external};
    for (; accepted < asked->count; accepted++, number += asked->size) {
        uint32_t payload = asked->size;
        if (accepted + 1 == asked->count) {
            memcpy(header, asked->headers + asked->header_size, asked->header_size);
            payload = asked->last_size;
        }
        put_be32(header + asked->number_at, number);
        uint64_t bytes = (uint64_t)asked->header_size + payload;
        int count = gather(ring, push, bytes, taken, (uint32_t)waiting);
        if (count == SHORT)
            ring->counters.shortages++;
        if (count < 0) {
            if (count <= GW_BROKEN && taken == 0 && accepted == 0)
                return count;
            break; /* what came before is good; a frame that never fits is for gw_vring_push to drop */
        }
        source.behind = source.bytes;
        source.behind_left = source.left;
        source.bytes = header;
        source.left = asked->header_size;
        fill(ring, push, &source, bytes, taken, (uint32_t)count);
        ring->counters.bytes += bytes;
        taken += (uint32_t)count;
        if ((accepted + 1) % GW_VOLLEY_SHOWN == 0) {
            gw_publish(ring, taken);
            waiting -= (int)taken;
            taken = 0;
        }
    }
    gw_publish(ring, taken);
    return (int)accepted;
}

int gw_vring_volley(struct gw_vring *ring, int mode, uint32_t at, const uint8_t *headers, uint32_t header_size,
                   uint32_t number_at, uint32_t number, uint32_t size, uint32_t last_size, uint32_t count,
                   const uint32_t *lengths, const void *const *payload, uint32_t parts) {
    struct volley asked = {
        {.mode = mode, .at = at, .parts = lengths, .external = payload},
        headers, header_size, number_at, number, size, last_size, count,
    };
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < parts; i++) {
        if (!(lengths[i] & GW_PART_EXTERNAL))
            return GW_BAD_ARGUMENT;
        bytes += lengths[i] & GW_PART_LENGTH;
    }
    bool fits = mode != GW_PUSH_SPLIT && at <= UINT16_MAX && header_size <= GW_VOLLEY_HEADER_MAX &&
                number_at <= UINT16_MAX && at + 2 <= header_size && number_at + 4 <= header_size;
    if (!fits || count == 0 || count > INT32_MAX || bytes != (uint64_t)(count - 1) * size + last_size)
        return GW_BAD_ARGUMENT;
    return gw_run(ring, volley, &asked);
}

/* -- from a socket straight into guest memory ------------------------------------------------------------------------
 *
 * As GW_PUSH_SPLIT, but the payload is what one recvmsg puts there: no byte of it passes through memory of ours. The
 * chains are walked first and only as many as were filled are taken, so a socket with less than there is room for, or
 * with nothing, leaves the rest as it was. The kernel writes while we hold the ring; it does not wait (MSG_DONTWAIT).
 * A page that is gone (a truncated file) is EFAULT for a system call, not a SIGBUS.
 */

enum { FILL_VECTORS = 256 };

struct fill {
    const uint8_t *header;
    uint32_t header_size, at, most;
    int socket;
    uint64_t limit;
    int64_t *got;
};

/* The places of up to `bytes` of payload in one chain, behind its header, in as many vectors as `*left` allows, which are
 * counted down; how many bytes that is. */
static uint64_t places(struct gw_vring *ring, const struct gw_chain *chain, uint32_t header_size, uint64_t bytes,
                       struct iovec *vectors, int *left) {
    struct sink sink = {&ring->pieces[chain->first], 0};
    skip(&sink, header_size);
    uint64_t placed = 0;
    while (placed < bytes && *left > 0) {
        if (sink.offset == sink.piece->length) {
            sink.piece++;
            sink.offset = 0;
        }
        uint32_t some = (uint32_t)gw_least(bytes - placed, sink.piece->length - sink.offset);
        *vectors++ = (struct iovec){sink.piece->host + sink.offset, some};
        (*left)--;
        sink.offset += some;
        placed += some;
    }
    return placed;
}

/* The kernel wrote `bytes` of payload there. */
static void log_payload(struct gw_vring *ring, struct sink sink, uint64_t bytes) {
    if (!ring->log_all || ring->log == NULL)
        return;
    while (bytes > 0) {
        if (sink.offset == sink.piece->length) {
            sink.piece++;
            sink.offset = 0;
        }
        uint32_t some = (uint32_t)gw_least(bytes, sink.piece->length - sink.offset);
        gw_log_mark(ring->log, sink.piece->gpa + sink.offset, some);
        sink.offset += some;
        bytes -= some;
    }
}

static int receive(struct gw_vring *ring, void *arguments) {
    const struct fill *asked = arguments;
    struct iovec vectors[FILL_VECTORS];
    int waiting = gw_available(ring);
    if (waiting < 0)
        return waiting;
    uint32_t count = 0;
    int left_over = FILL_VECTORS;
    uint64_t room = 0;
    gw_scratch_reset(ring);
    while (room < asked->limit && left_over > 0 && count < (uint32_t)waiting && gw_scratch_left(ring)) {
        struct gw_chain *chain = &ring->chains[count];
        int result = gw_chain_walk(ring, gw_head_at(ring, count), true, chain);
        if (result == 0 && chain->bytes <= asked->header_size)
            result = gw_fail(ring, GW_BROKEN_SMALL, chain->bytes);
        if (result < 0 && count == 0)
            return result;
        if (result < 0)
            break; /* as in pop: what came before is good */
        uint64_t part = gw_least(gw_least(chain->bytes - asked->header_size, asked->most), asked->limit - room);
        part = places(ring, chain, asked->header_size, part, vectors + FILL_VECTORS - left_over, &left_over);
        chain->bytes = asked->header_size + part; /* what we use of it */
        room += part;
        count++;
    }
    if (room == 0) {
        if (asked->limit > 0)
            ring->counters.shortages++;
        *asked->got = -ENOBUFS;
        return 0;
    }
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)(FILL_VECTORS - left_over)};
    ssize_t got = recvmsg(asked->socket, &message, MSG_DONTWAIT);
    if (got <= 0) {
        *asked->got = got < 0 ? -errno : 0;
        return 0;
    }
    *asked->got = got;
    uint64_t left = (uint64_t)got;
    uint8_t header[GW_SPLIT_HEADER_MAX];
    memcpy(header, asked->header, asked->header_size);
    uint32_t taken = 0;
    for (; left > 0; taken++) {
        const struct gw_chain *chain = &ring->chains[taken];
        uint32_t part = (uint32_t)gw_least(left, chain->bytes - asked->header_size);
        for (uint32_t b = 0; b < 4; b++)
            header[asked->at + b] = (uint8_t)(part >> (8 * b));
        struct source patched = {.bytes = header, .left = asked->header_size};
        struct sink sink = {&ring->pieces[chain->first], 0};
        copy(ring, &sink, &patched, asked->header_size);
        log_payload(ring, sink, part);
        gw_put_used(ring, taken, chain->head, asked->header_size + part);
        left -= part;
    }
    ring->counters.bytes += (uint64_t)got;
    gw_publish(ring, taken);
    return (int)taken;
}

int gw_vring_receive(struct gw_vring *ring, const uint8_t *header, uint32_t header_size, uint32_t at, uint32_t most,
                     int socket, uint64_t limit, int64_t *got) {
    struct fill asked = {header, header_size, at, most, socket, limit, got};
    *got = -ENOBUFS;
    if (header_size > GW_SPLIT_HEADER_MAX || at + 4 > header_size || at > UINT16_MAX || most == 0)
        return GW_BAD_ARGUMENT;
    return gw_run(ring, receive, &asked);
}
