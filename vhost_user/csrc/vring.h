/* SPDX-License-Identifier: MPL-2.0 */
/* Split virtqueues, device side (virtio 1.3 section 2.7): whole bursts of chains in, used entries out.
 *
 * No function here may run at the same time as another one on the same ring; guest memory, on the other hand, changes
 * under all of them at any time. See vring.c for how it works.
 */
#ifndef GW_VRING_H
#define GW_VRING_H

#include "memory.h"

/* cdef begin */
#define GW_PART_EXTERNAL 0x80000000 /* the next of `external`, not of `blob` */
#define GW_PART_LENGTH 0x7fffffff

#define GW_SPLIT_HEADER_MAX 64
#define GW_APART_HEAD 128 /* bytes shown of a chain that may go apart */
#define GW_APART_LEAVE 0xffffffff
#define GW_VOLLEY_HEADER_MAX 128
#define GW_VOLLEY_SHOWN 4 /* superframes of a volley that are published at a time */

enum gw_push_mode {
    GW_PUSH_ONE,   /* a frame goes into exactly one chain */
    GW_PUSH_MERGE, /* into one or more, their number as le16 at offset `at` of the frame */
    GW_PUSH_SPLIT, /* into however many there are, each beginning with the header, in which the le32 at the low half of
                       * `at` is the payload behind it, and the le32 at the high half (0: none) is 0 but in the last */
    GW_PUSH_PATIENTLY = 16, /* or-ed in: nobody waits for these, the call may be owed for a while */
};

/* What a device must never do (fault.c). */
enum gw_fault {
    GW_FAULT_ID,    /* used entries that name the descriptor `value`, without taking a chain */
    GW_FAULT_SHORT, /* chains returned as they are, with a used length of `value` */
    GW_FAULT_LOSE,  /* chains taken and never returned */
};

/* What a call can answer instead of a count. All below GW_BROKEN mean that the ring can not go on. */
enum gw_result {
    GW_NO_MEMORY = -1,
    GW_BAD_ARGUMENT = -2,
    GW_BROKEN = -10,
    GW_BROKEN_AVAIL_INDEX = -11,
    GW_BROKEN_HEAD = -12,
    GW_BROKEN_NEXT = -13,
    GW_BROKEN_LOOP = -14,
    GW_BROKEN_INDIRECT_REFUSED = -15,
    GW_BROKEN_INDIRECT_NEXT = -16,
    GW_BROKEN_INDIRECT_NESTED = -17,
    GW_BROKEN_INDIRECT_LENGTH = -18,
    GW_BROKEN_ORDER = -19,
    GW_BROKEN_WRITABLE = -20,
    GW_BROKEN_READABLE = -21,
    GW_BROKEN_ADDRESS = -22,
    GW_BROKEN_PIECES = -23,
    GW_BROKEN_LENGTH = -24,
    GW_BROKEN_SMALL = -25,
    GW_BROKEN_TRUNCATED = -26,
    GW_BROKEN_GUARD = -27,
    GW_BROKEN_PLACE = -28,
    GW_BROKEN_ALIGNMENT = -29,
};

struct gw_counters {
    uint64_t bursts, chains, bytes, kicks, calls, calls_spared, discarded, dropped_long, dropped_no_fit, shortages,
        no_memory;
    uint64_t burst_sizes[16]; /* bursts of 1, 2 to 3, 4 to 7, ... chains */
};

/* Of the first chains of a pop what is behind a header may go elsewhere, without a record. */
struct gw_apart {
    /* Of a chain of `length` bytes, of which the first `got` are at `chain`: how long that header is; 0: this chain and
     * those behind it go to the slab; GW_APART_LEAVE: they stay in the ring. */
    uint32_t (*header)(struct gw_apart *self, const uint8_t *chain, uint32_t got, uint32_t length);
    uint8_t *at;  /* where the next goes */
    uint32_t chains; /* how many did; their sender can do without them for a while */
};

/* One pop's result: `count` pairs of u32 (offset, length), then the payload they refer to, offsets from its beginning. */
struct gw_burst {
    uint8_t *small;      /* the caller's: where bursts of up to small_size bytes go */
    uint64_t small_size;
    uint8_t *slab;       /* larger ones, for gw_slab_free; or NULL */
    int (*patient)(const uint8_t *chain, uint32_t length); /* whether its sender can do without it for a while; or NULL */
    struct gw_apart *apart; /* or NULL */
    uint64_t bytes;
};

struct gw_vring;

/* A ring for sizes up to max_num (<= 32768), or NULL without memory. */
struct gw_vring *gw_vring_new(uint32_t max_num);
void gw_vring_free(struct gw_vring *ring);

/* virtio feature bits 26 (log), 28 (indirect), 29 (event index); others are ignored. */
void gw_vring_set_features(struct gw_vring *ring, uint64_t features);

/* Place a ring of num descriptors (a power of two <= max_num) at user addresses in memory: 0, GW_BROKEN_PLACE or
 * GW_BROKEN_ALIGNMENT (then nothing changed). flags bit 0: log used-ring writes at log_gpa. Keeps the table's address. On a
 * started ring also what gw_vring_start answers. */
int gw_vring_place(struct gw_vring *ring, const struct gw_memory *memory, uint32_t num, uint64_t desc_uva,
                   uint64_t avail_uva, uint64_t used_uva, uint32_t flags, uint64_t log_gpa);

/* Forget the place: data functions then find nothing and touch nothing. */
void gw_vring_unplace(struct gw_vring *ring);

/* Begin at this available index; once there is a place (now or later), read the used index from guest memory, ask for
 * kicks and call the guest. 0 or a gw_result; so may gw_vring_place answer if it comes second. */
int gw_vring_start(struct gw_vring *ring, uint32_t base);

/* Forget the place and the start. */
void gw_vring_stop(struct gw_vring *ring);
uint32_t gw_vring_base(const struct gw_vring *ring);
void gw_vring_set_log(struct gw_vring *ring, const struct gw_log *log);
void gw_vring_set_kick(struct gw_vring *ring, int fd);
void gw_vring_set_call(struct gw_vring *ring, int fd);

/* Chains available: 0..num, or a gw_result. */
int gw_vring_room(struct gw_vring *ring);

/* Look up to `looks` times, a pause of the processor after each, whether a chain is available: 1, 0 or a gw_result. */
int gw_vring_linger(struct gw_vring *ring, uint32_t looks);

/* Chains of a device-readable queue, copied to a fresh slab; how many records (0 is possible although chains were taken
 * and dropped), or a gw_result. Chains before a broken one are delivered; the next call then reports it. */
int gw_vring_pop(struct gw_vring *ring, uint32_t budget, uint64_t max_bytes, uint64_t max_chain, struct gw_burst *burst);
void gw_slab_free(void *slab);

/* Copy frames into a device-writable queue; how many were accepted (dropped ones included), or a gw_result. words begins
 * with the number of parts of each frame; then, for each of the `parts` parts, comes its length: its bytes are the next
 * ones of blob or, with GW_PART_EXTERNAL, at the next pointer of external. */
int gw_vring_push(struct gw_vring *ring, int mode, uint32_t at, uint32_t header_size, const uint32_t *words,
                  uint32_t frames, uint32_t parts, const uint8_t *blob, uint64_t blob_size,
                  const void *const *external, uint32_t external_count);

/* The same for one frame of one part, with five arguments to convert instead of eleven. */
int gw_vring_push_one(struct gw_vring *ring, int mode, uint32_t at, const uint8_t *frame, uint32_t length);

/* After a GW_PUSH_SPLIT that accepted fewer than all: bytes of payload of the next packet that found room. The rest of
 * it, with its header, is to be pushed again. */
uint64_t gw_vring_partial(const struct gw_vring *ring);

/* Push a volley: `count` superframes of one flow that follow each other in its stream, each a header and the next `size`
 * bytes of the payload, the last one `last_size`. `headers`: virtio_net_hdr to TCP, header_size <= GW_VOLLEY_HEADER_MAX
 * bytes of all but the last one, then those of the last one; at number_at of each comes, as be32, `number` and what
 * payload went before. The payload is `parts` stretches of memory. `mode` (not GW_PUSH_SPLIT) and `at` as in gw_vring_push.
 * How many were accepted, or a gw_result. None is dropped: what does not fit stays the caller's. */
int gw_vring_volley(struct gw_vring *ring, int mode, uint32_t at, const uint8_t *headers, uint32_t header_size,
                   uint32_t number_at, uint32_t number, uint32_t size, uint32_t last_size, uint32_t count,
                   const uint32_t *lengths, const void *const *payload, uint32_t parts);

/* Receive up to `limit` bytes from a socket, without waiting, straight into a device-writable queue: as GW_PUSH_SPLIT
 * spreads a packet, with at most `most` bytes of payload behind each copy of the header. How many chains were used, or a
 * gw_result; *got is the number of bytes, 0 at the end of the stream, or a negative errno: -ENOBUFS without room. */
int gw_vring_receive(struct gw_vring *ring, const uint8_t *header, uint32_t header_size, uint32_t at, uint32_t most,
                     int socket, uint64_t limit, int64_t *got);

/* The header of the vsock packet in the next chain of a device-readable queue, 44 bytes, not taken: 1, 0 if there is none
 * (or none that makes sense), or a gw_result. */
int gw_vring_peek(struct gw_vring *ring, uint8_t *header);

struct gw_forward {
    const uint8_t *header; /* packets are taken as long as addresses, type and op are those of this one, ... */
    uint64_t limit;        /* ... together they have no more payload than this, ... */
    uint64_t enough;       /* ... and until they have this much */
    uint32_t most;         /* payload of one packet */
    int socket;
    uint8_t *rest;         /* `most` bytes: what the socket did not take of a packet that is taken */
    int64_t sent;          /* answer: bytes the socket took, or a negative errno */
    uint32_t rest_size, buf_alloc, fwd_cnt; /* and the credit numbers of the last packet taken */
};

/* Send the payload of vsock packets to a socket, without waiting, straight from guest memory (forward.c). How many chains
 * were taken, or a gw_result. */
int gw_vring_forward(struct gw_vring *ring, struct gw_forward *asked);

/* Return up to budget chains without looking at them; how many, or a gw_result. */
int gw_vring_discard(struct gw_vring *ring, uint32_t budget);

/* Commit a fault on up to `count` entries or available chains; how many, or a gw_result. */
int gw_vring_fault(struct gw_vring *ring, int kind, uint32_t count, uint32_t value);

/* 0 or a gw_result. */
int gw_vring_suppress(struct gw_vring *ring);

/* Empty the kick descriptor, ask for a kick when more than beyond chains are available; 1 if they are, 0, or a gw_result. */
int gw_vring_arm(struct gw_vring *ring, uint32_t beyond);

/* Empty the kick descriptor: 1 if it was signalled. */
int gw_vring_drain_kick(struct gw_vring *ring);

/* Calls that can wait (a chain whose sender can do without it, a frame nobody waits for) are owed for so many looks that
 * find nothing to do. One takes a microsecond, or 5 to 15 with the lingering before it: half a millisecond at most. */
enum { GW_OWED_LOOKS = 32 };

/* So many have been in vain; who is about to sleep says GW_OWED_LOOKS. Looks of gw_vring_pop count by themselves, and
 * gw_vring_arm and gw_vring_stop make the call. */
void gw_vring_elapse(struct gw_vring *ring, uint32_t looks);

/* Write the call descriptor, whatever the guest's suppression says. */
void gw_vring_signal(struct gw_vring *ring);
void gw_event_signal(int fd);

const char *gw_vring_strerror(int result);
/* The number that was wrong in the last gw_result of this ring below GW_BROKEN. */
uint64_t gw_vring_error_value(const struct gw_vring *ring);
const struct gw_counters *gw_vring_counters(const struct gw_vring *ring);
/* cdef end */

#endif
