/* SPDX-License-Identifier: MPL-2.0 */
/* The driver's side of a split virtqueue (virtio 1.3 section 2.7): what a guest does, for a guest without QEMU. */
#ifndef GUESTWIRE_VDRIVER_H
#define GUESTWIRE_VDRIVER_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
enum {
    VDRV_PIECES = 32, /* descriptors of one chain at most */
};

/* The driver's private note about one descriptor: next free one, or the chain that starts here. */
struct vdrv_slot {
    uint16_t next;
    uint16_t count;  /* ring descriptors of the chain in flight; 0: none starts here */
    uint32_t buffer; /* the pool's buffer it carries */
};

enum vdrv_fault {
    VDRV_SOUND,
    VDRV_USED_INDEX,   /* the device moved used.idx by more than was in flight */
    VDRV_USED_ID,      /* a used entry names no chain in flight */
    VDRV_USED_LENGTH,  /* the device claims to have written more than the buffer holds */
    VDRV_NUM_BUFFERS,  /* a frame announced more buffers than were published with it, or none */
};

struct vdrv_ring {
    uint8_t *desc, *avail, *used; /* in guest memory */
    struct vdrv_slot *slots;      /* num of them, private */
    uint8_t *tables;              /* indirect tables in guest memory, VDRV_PIECES descriptors for each of num */
    uint64_t tables_gpa;
    uint16_t num;
    uint16_t avail_idx;  /* next to fill */
    uint16_t published;  /* what avail.idx in guest memory says */
    uint16_t last_used;  /* next used entry to look at */
    uint16_t free_head, nfree;
    uint8_t event_idx, indirect, writable, npieces;
    uint32_t piece[VDRV_PIECES]; /* sizes of the leading descriptors of every chain; the rest goes in one more */
    uint32_t fault;              /* enum vdrv_fault: the device broke a rule; nothing moves any more */
};

/* Equal buffers side by side in guest memory, the free ones on a stack: the last used is the next used, cache-hot. */
struct vdrv_pool {
    uint8_t *memory;
    uint64_t gpa;
    uint32_t size, count;
    uint32_t *free, nfree;
};

/* A message to send: header and data lie anywhere in the process and are copied one behind the other. */
struct vdrv_message {
    const uint8_t *header, *data;
    uint32_t header_length, data_length;
};

struct vdrv_received {
    uint32_t offset, length, buffers;
};

void vdrv_init(struct vdrv_ring *ring);
void vdrv_pool_init(struct vdrv_pool *pool);

/* One chain over [gpa, gpa + length), cut as ring->piece says. 0, or -1: no descriptors left. */
int vdrv_add(struct vdrv_ring *ring, uint64_t gpa, uint32_t length, uint32_t buffer);
/* Makes everything added visible. 1: the device wants a kick. */
int vdrv_publish(struct vdrv_ring *ring);
/* Used entries waiting. */
uint32_t vdrv_pending(struct vdrv_ring *ring);
/* The same; looks up to `looks` times more, a pause of the processor before each, until there are `enough`. */
uint32_t vdrv_linger(struct vdrv_ring *ring, uint32_t enough, uint32_t looks);
/* Ask for no interrupt; ask for one once `after` more chains are used. 1: so many are there already. */
void vdrv_suppress(struct vdrv_ring *ring);
int vdrv_arm(struct vdrv_ring *ring, uint32_t after);
/* Takes back used chains of a queue to the device. Returns how many. */
uint32_t vdrv_reclaim(struct vdrv_ring *ring, struct vdrv_pool *pool);

/* Copies messages into free buffers and adds them; not yet published. Returns how many found room. */
uint32_t vdrv_send(struct vdrv_ring *ring, struct vdrv_pool *pool, const struct vdrv_message *messages, uint32_t n);
/* Adds every free buffer for the device to write to; not yet published. Returns how many. */
uint32_t vdrv_post(struct vdrv_ring *ring, struct vdrv_pool *pool);
/* Takes up to n messages the device wrote, copies each into out (size bytes) and frees its buffers. merge >= 0: the
 * offset of the little-endian 16-bit count of buffers the message fills. Stops early when out is full. */
uint32_t vdrv_receive(struct vdrv_ring *ring, struct vdrv_pool *pool, uint8_t *out, size_t size,
                      struct vdrv_received *records, uint32_t n, int merge);

/* For hostile tests that write rings by hand: release store and acquire load of a 16-bit index at p. */
void vdrv_store16(uint8_t *p, uint16_t value);
uint16_t vdrv_load16(const uint8_t *p);
/* cdef end */

/* Makes everything added visible, and writes to the eventfd `kick` if the device wants it. 1: it did. */
int vdrv_show(struct vdrv_ring *ring, int kick);

#endif
