/* SPDX-License-Identifier: MPL-2.0 */
/* From a descriptor index to checked pieces of memory: the rules 3 to 9 of the ring reference.
 *
 * The guest can change a descriptor while we look at it. So each one is copied to a private struct exactly once, with
 * loads the compiler may not repeat, and everything is decided on the copy; `next` is never read again afterwards.
 */
#include "ring.h"

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

#define DESC_SIZE 16

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static struct descriptor unpack(uint64_t low, uint64_t high) {
    return (struct descriptor){low, (uint32_t)high, (uint16_t)(high >> 32), (uint16_t)(high >> 48)};
}

static struct descriptor fetch_direct(const struct gw_vring *ring, uint32_t index) {
    _Atomic uint64_t *at = (_Atomic uint64_t *)(void *)(ring->desc + (size_t)DESC_SIZE * index);
    return unpack(atomic_load_explicit(at, memory_order_relaxed), atomic_load_explicit(at + 1, memory_order_relaxed));
}

/* An indirect table has no alignment rule and may cross regions: byte by byte unless it is the usual case. */
static int fetch_indirect(struct gw_vring *ring, uint64_t gpa, struct descriptor *descriptor) {
    typedef volatile uint64_t __attribute__((aligned(1), may_alias)) unaligned;
    const struct gw_region *region = gw_find(ring->memory, gpa, &ring->hint);
    if (region == NULL)
        return gw_fail(ring, GW_BROKEN_ADDRESS, gpa);
    uint64_t inside = gpa - region->gpa;
    if (region->size - inside >= DESC_SIZE) {
        unaligned *at = (unaligned *)(void *)(region->host + inside);
        uint64_t low = at[0];
        *descriptor = unpack(low, at[1]);
        return 0;
    }
    uint64_t half[2] = {0, 0};
    for (uint32_t i = 0; i < DESC_SIZE; i++) {
        region = gw_find(ring->memory, gpa + i, &ring->hint);
        if (region == NULL)
            return gw_fail(ring, GW_BROKEN_ADDRESS, gpa + i);
        uint64_t byte = *(volatile uint8_t *)(region->host + (gpa + i - region->gpa));
        half[i / 8] |= byte << (8 * (i % 8));
    }
    *descriptor = unpack(half[0], half[1]);
    return 0;
}

/* Rule 7: the buffer may span adjacent regions, one piece each, but not touch a hole. An empty buffer touches nothing,
 * whatever its address (CVE-2020-10725). */
static int add_pieces(struct gw_vring *ring, uint64_t gpa, uint32_t length, const struct gw_chain *chain) {
    if (length > UINT64_MAX - gpa)
        return gw_fail(ring, GW_BROKEN_ADDRESS, gpa);
    while (length > 0) {
        const struct gw_region *region = gw_find(ring->memory, gpa, &ring->hint);
        if (region == NULL)
            return gw_fail(ring, GW_BROKEN_ADDRESS, gpa);
        if (ring->piece_count - chain->first >= gw_chain_pieces_max(ring))
            return gw_fail(ring, GW_BROKEN_PIECES, gw_chain_pieces_max(ring));
        uint64_t inside = gpa - region->gpa;
        uint64_t left = region->size - inside;
        uint32_t part = length < left ? length : (uint32_t)left;
        ring->pieces[ring->piece_count++] = (struct gw_piece){region->host + inside, gpa, part};
        gpa += part;
        length -= part;
    }
    return 0;
}

int gw_chain_walk(struct gw_vring *ring, uint16_t head, bool writable, struct gw_chain *chain) {
    *chain = (struct gw_chain){.head = head, .first = ring->piece_count};
    if (head >= ring->num)
        return gw_fail(ring, GW_BROKEN_HEAD, head);
    uint32_t index = head;
    uint32_t table_length = ring->num;
    uint64_t table = 0;
    bool inside = false;     /* walking an indirect table */
    bool written = false;    /* a device-writable buffer came before */
    uint32_t buffers = 0;
    for (;;) {
        struct descriptor descriptor;
        ring->work++;
        if (!inside)
            descriptor = fetch_direct(ring, index);
        else {
            int result = fetch_indirect(ring, table + (uint64_t)DESC_SIZE * index, &descriptor);
            if (result < 0)
                return result;
        }
        if (descriptor.flags & INDIRECT) {
            if (!ring->indirect)
                return gw_fail(ring, GW_BROKEN_INDIRECT_REFUSED, index);
            if (inside)
                return gw_fail(ring, GW_BROKEN_INDIRECT_NESTED, index);
            if (descriptor.flags & NEXT)
                return gw_fail(ring, GW_BROKEN_INDIRECT_NEXT, index);
            if (descriptor.length == 0 || descriptor.length % DESC_SIZE || descriptor.length / DESC_SIZE > ring->num)
                return gw_fail(ring, GW_BROKEN_INDIRECT_LENGTH, descriptor.length);
            if (descriptor.length > UINT64_MAX - descriptor.address)
                return gw_fail(ring, GW_BROKEN_ADDRESS, descriptor.address);
            /* Its WRITE flag means nothing and is ignored (virtio 1.3 section 2.7.5.3.2). */
            inside = true;
            table = descriptor.address;
            table_length = descriptor.length / DESC_SIZE;
            index = 0;
            continue;
        }
        /* Rule 4, also inside a table: a loop is a chain longer than the ring. */
        if (++buffers > ring->num)
            return gw_fail(ring, GW_BROKEN_LOOP, head);
        bool device_writes = descriptor.flags & WRITE;
        if (written && !device_writes)
            return gw_fail(ring, GW_BROKEN_ORDER, index);
        written = device_writes;
        if (device_writes != writable)
            return gw_fail(ring, device_writes ? GW_BROKEN_WRITABLE : GW_BROKEN_READABLE, index);
        chain->bytes += descriptor.length;
        if (chain->bytes > UINT32_MAX)
            return gw_fail(ring, GW_BROKEN_LENGTH, chain->bytes);
        int result = add_pieces(ring, descriptor.address, descriptor.length, chain);
        if (result < 0)
            return result;
        if (!(descriptor.flags & NEXT))
            break;
        index = descriptor.next;
        if (index >= table_length)
            return gw_fail(ring, GW_BROKEN_NEXT, index);
    }
    chain->end = ring->piece_count;
    return 0;
}
