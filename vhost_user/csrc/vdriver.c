/* SPDX-License-Identifier: MPL-2.0 */
/* Theory of operation
 *
 * The mirror image of a device's ring code: free descriptors on a private list, chains written to the descriptor
 * table (or to an indirect table), heads put in the available ring, one release store of avail.idx per burst, used
 * entries taken back after one acquire load of used.idx. Virtio 1.3 section 2.7 throughout.
 *
 * The device is under test, so it is not trusted either: a used entry that names no chain in flight, or claims more
 * bytes than the buffer holds, sets `fault` and stops the ring; a test then fails naming the rule.
 *
 * Guest memory is little-endian; so is every host vhost-user is used on here (vhost-user speaks host order). */
#include "vdriver.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "relax.h"

enum {
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    AVAIL_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
    IDX = 2,  /* offset of idx in the available and the used ring */
    RING = 4, /* offset of the entries in both */
};

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

static inline uint16_t load_acquire(const uint8_t *p) {
    return atomic_load_explicit((const _Atomic uint16_t *)(const void *)p, memory_order_acquire);
}

static inline void store_release(uint8_t *p, uint16_t value) {
    atomic_store_explicit((_Atomic uint16_t *)(void *)p, value, memory_order_release);
}

static inline void store_relaxed(uint8_t *p, uint16_t value) {
    atomic_store_explicit((_Atomic uint16_t *)(void *)p, value, memory_order_relaxed);
}

void vdrv_store16(uint8_t *p, uint16_t value) {
    store_release(p, value);
}

uint16_t vdrv_load16(const uint8_t *p) {
    return load_acquire(p);
}

/* used_event sits behind the available entries, avail_event behind the used ones (2.7.6, 2.7.8). */
static inline uint8_t *used_event(const struct vdrv_ring *ring) {
    return ring->avail + RING + 2 * (size_t)ring->num;
}

static inline const uint8_t *avail_event(const struct vdrv_ring *ring) {
    return ring->used + RING + 8 * (size_t)ring->num;
}

void vdrv_init(struct vdrv_ring *ring) {
    for (uint32_t i = 0; i < ring->num; i++)
        ring->slots[i] = (struct vdrv_slot){.next = (uint16_t)(i + 1)};
    ring->free_head = 0;
    ring->nfree = ring->num;
    ring->avail_idx = ring->published = ring->last_used = 0;
    ring->fault = VDRV_SOUND;
}

void vdrv_pool_init(struct vdrv_pool *pool) {
    for (uint32_t i = 0; i < pool->count; i++)
        pool->free[i] = pool->count - 1 - i;
    pool->nfree = pool->count;
}

/* Cuts [gpa, gpa + length) into at most VDRV_PIECES descriptors. */
static uint32_t cut(const struct vdrv_ring *ring, uint64_t gpa, uint32_t length, struct desc *out) {
    uint32_t n = 0;
    uint16_t flags = ring->writable ? DESC_WRITE : 0;
    for (; n < ring->npieces && n < VDRV_PIECES - 1 && length > ring->piece[n]; n++) {
        out[n] = (struct desc){.addr = gpa, .len = ring->piece[n], .flags = flags | DESC_NEXT};
        gpa += ring->piece[n];
        length -= ring->piece[n];
    }
    out[n] = (struct desc){.addr = gpa, .len = length, .flags = flags};
    return n + 1;
}

int vdrv_add(struct vdrv_ring *ring, uint64_t gpa, uint32_t length, uint32_t buffer) {
    struct desc chain[VDRV_PIECES];
    uint32_t n = cut(ring, gpa, length, chain);
    int indirect = ring->indirect && n > 1;
    uint16_t count = indirect ? 1 : (uint16_t)n;
    if (ring->nfree < count)
        return -1;
    uint16_t head = ring->free_head;
    if (indirect) {
        size_t at = (size_t)head * VDRV_PIECES * sizeof(struct desc);
        for (uint32_t i = 0; i < n; i++)
            chain[i].next = (uint16_t)(i + 1 < n ? i + 1 : 0);
        memcpy(ring->tables + at, chain, n * sizeof(struct desc));
        chain[0] = (struct desc){.addr = ring->tables_gpa + at,
                                 .len = n * (uint32_t)sizeof(struct desc), .flags = DESC_INDIRECT};
    }
    uint16_t slot = head;
    for (uint16_t i = 0; i < count; i++) {
        uint16_t next = ring->slots[slot].next;
        chain[i].next = i + 1 < count ? next : 0;
        memcpy(ring->desc + 16 * (size_t)slot, &chain[i], sizeof(struct desc));
        if (i + 1 == count)
            ring->free_head = next;
        else
            slot = next;
    }
    ring->nfree -= count;
    ring->slots[head].count = count;
    ring->slots[head].buffer = buffer;
    memcpy(ring->avail + RING + 2 * (size_t)(ring->avail_idx & (ring->num - 1)), &head, 2);
    ring->avail_idx++;
    return 0;
}

int vdrv_publish(struct vdrv_ring *ring) {
    uint16_t old = ring->published, new = ring->avail_idx;
    if (old == new)
        return 0;
    store_release(ring->avail + IDX, new);
    ring->published = new;
    atomic_thread_fence(memory_order_seq_cst); /* idx out before the device's wish is read (2.7.13.4.1) */
    if (ring->event_idx) {
        uint16_t event = load_acquire(avail_event(ring));
        return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
    }
    return !(load_acquire(ring->used) & USED_NO_NOTIFY);
}

int vdrv_show(struct vdrv_ring *ring, int kick) {
    static const uint64_t one = 1;
    if (!vdrv_publish(ring))
        return 0;
    /* The descriptor is non-blocking: a full counter is still readable, so nothing is lost. */
    ssize_t written = write(kick, &one, sizeof one);
    (void)written;
    return 1;
}

uint32_t vdrv_pending(struct vdrv_ring *ring) {
    uint16_t n = (uint16_t)(load_acquire(ring->used + IDX) - ring->last_used);
    if (n > (uint16_t)(ring->published - ring->last_used))
        ring->fault = VDRV_USED_INDEX;
    return ring->fault ? 0 : n;
}

uint32_t vdrv_linger(struct vdrv_ring *ring, uint32_t enough, uint32_t looks) {
    uint32_t n = vdrv_pending(ring);
    for (; n < enough && looks > 0 && !ring->fault; looks--) {
        gw_relax();
        n = vdrv_pending(ring);
    }
    return n;
}

void vdrv_suppress(struct vdrv_ring *ring) {
    if (ring->event_idx)
        store_relaxed(used_event(ring), (uint16_t)(ring->last_used - 1));
    else
        store_relaxed(ring->avail, AVAIL_NO_INTERRUPT);
}

int vdrv_arm(struct vdrv_ring *ring, uint32_t after) {
    if (ring->event_idx)
        store_relaxed(used_event(ring), (uint16_t)(ring->last_used + after - 1));
    else
        store_relaxed(ring->avail, 0);
    atomic_thread_fence(memory_order_seq_cst); /* the wish out before used.idx is read again (2.7.7) */
    return vdrv_pending(ring) >= after;
}

/* The entry `ahead` places behind last_used; NULL when it names no chain in flight. */
static struct vdrv_slot *used_entry(struct vdrv_ring *ring, uint32_t ahead, uint32_t *head, uint32_t *length) {
    const uint8_t *p = ring->used + RING + 8 * (size_t)((ring->last_used + ahead) & (ring->num - 1u));
    memcpy(head, p, 4);
    memcpy(length, p + 4, 4);
    if (*head >= ring->num || ring->slots[*head].count == 0) {
        ring->fault = VDRV_USED_ID;
        return NULL;
    }
    return &ring->slots[*head];
}

/* The chain's descriptors go back to the front of the free list. */
static void release(struct vdrv_ring *ring, uint32_t head) {
    struct vdrv_slot *slot = &ring->slots[head];
    uint16_t last = (uint16_t)head;
    for (uint16_t i = 1; i < slot->count; i++)
        last = ring->slots[last].next;
    ring->slots[last].next = ring->free_head;
    ring->free_head = (uint16_t)head;
    ring->nfree += slot->count;
    slot->count = 0;
}

uint32_t vdrv_reclaim(struct vdrv_ring *ring, struct vdrv_pool *pool) {
    uint32_t n = vdrv_pending(ring), done = 0;
    for (; done < n; done++) {
        uint32_t head, length;
        struct vdrv_slot *slot = used_entry(ring, 0, &head, &length);
        if (slot == NULL)
            break;
        pool->free[pool->nfree++] = slot->buffer;
        release(ring, head);
        ring->last_used++;
    }
    return done;
}

uint32_t vdrv_send(struct vdrv_ring *ring, struct vdrv_pool *pool, const struct vdrv_message *messages, uint32_t n) {
    uint32_t sent = 0;
    vdrv_reclaim(ring, pool);
    for (; sent < n && pool->nfree > 0 && !ring->fault; sent++) {
        const struct vdrv_message *m = &messages[sent];
        if ((uint64_t)m->header_length + m->data_length > pool->size)
            break;
        uint32_t buffer = pool->free[pool->nfree - 1];
        size_t at = (size_t)buffer * pool->size;
        if (m->header_length > 0)
            memcpy(pool->memory + at, m->header, m->header_length);
        if (m->data_length > 0)
            gw_copy(pool->memory + at + m->header_length, m->data, m->data_length);
        if (vdrv_add(ring, pool->gpa + at, m->header_length + m->data_length, buffer) < 0)
            break;
        pool->nfree--;
    }
    return sent;
}

uint32_t vdrv_post(struct vdrv_ring *ring, struct vdrv_pool *pool) {
    uint32_t posted = 0;
    while (pool->nfree > 0 && !ring->fault) {
        uint32_t buffer = pool->free[pool->nfree - 1];
        if (vdrv_add(ring, pool->gpa + (uint64_t)buffer * pool->size, pool->size, buffer) < 0)
            break;
        pool->nfree--;
        posted++;
    }
    return posted;
}

uint32_t vdrv_receive(struct vdrv_ring *ring, struct vdrv_pool *pool, uint8_t *out, size_t size,
                      struct vdrv_received *records, uint32_t n, int merge) {
    uint32_t pending = vdrv_pending(ring), count = 0;
    size_t fill = 0;
    while (count < n && pending > 0) {
        uint32_t buffers = 1, head, length;
        struct vdrv_slot *slot = used_entry(ring, 0, &head, &length);
        if (slot == NULL)
            break;
        if (merge >= 0 && length >= (uint32_t)merge + 2) {
            const uint8_t *p = pool->memory + (size_t)slot->buffer * pool->size + merge;
            buffers = (uint32_t)p[0] | (uint32_t)p[1] << 8;
        }
        if (buffers == 0 || buffers > pending) {
            ring->fault = VDRV_NUM_BUFFERS; /* all buffers of a frame are published by one store of idx */
            break;
        }
        size_t end = fill;
        for (uint32_t i = 0; i < buffers; i++) {
            slot = used_entry(ring, i, &head, &length);
            if (slot == NULL)
                return count;
            if (length > pool->size) {
                ring->fault = VDRV_USED_LENGTH;
                return count;
            }
            end += length;
        }
        if (end > size)
            break;
        records[count] = (struct vdrv_received){.offset = (uint32_t)fill, .length = (uint32_t)(end - fill),
                                                .buffers = buffers};
        for (uint32_t i = 0; i < buffers; i++) {
            slot = used_entry(ring, 0, &head, &length);
            if (slot == NULL)
                return count; /* the same chain named twice */
            if (length > size - fill) { /* the device changed an entry it had published */
                ring->fault = VDRV_USED_LENGTH;
                return count;
            }
            gw_copy(out + fill, pool->memory + (size_t)slot->buffer * pool->size, length);
            fill += length;
            pool->free[pool->nfree++] = slot->buffer;
            release(ring, head);
            ring->last_used++;
        }
        pending -= buffers;
        count++;
    }
    return count;
}
