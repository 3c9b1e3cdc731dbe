/* SPDX-License-Identifier: MPL-2.0 */
/* Guest memory as C sees it: regions, translation of guest-physical addresses, and the dirty log.
 *
 * A table is built once (by memory.py, which checks it: no overlap, no overflow, sorted by gpa) and never changes while
 * a ring points at it. What is looked up in it are the guest's numbers and may be anything.
 */
#ifndef GW_MEMORY_H
#define GW_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
#define GW_REGIONS_MAX 64

struct gw_region {
    uint64_t gpa;  /* guest-physical address of the first byte */
    uint64_t size; /* bytes, not 0; gpa + size and uva + size do not overflow */
    uint64_t uva;  /* its address in the front-end */
    uint8_t *host; /* its address here */
};

struct gw_memory {
    uint32_t count;
    uint32_t unsealed; /* not 0: some region's file may be truncated while mapped */
    struct gw_region region[GW_REGIONS_MAX];
};

struct gw_log {
    uint8_t *bits; /* bit p%8 of byte p/8 stands for page p of 4 KiB */
    uint64_t size; /* bytes */
    uint32_t unsealed;
};

/* mmap shared, readable and writable; NULL and errno if that fails. */
uint8_t *gw_map(int fd, uint64_t length, uint64_t offset);
void gw_unmap(uint8_t *start, uint64_t length);
/* cdef end */

#define GW_LOG_PAGE_SHIFT 12

/* The region that holds gpa, or NULL. *hint is the slot that held the last one: drivers reuse neighbours. */
static inline const struct gw_region *gw_find(const struct gw_memory *memory, uint64_t gpa, uint32_t *hint) {
    const struct gw_region *region = &memory->region[*hint];
    if (gpa - region->gpa < region->size) /* unsigned: also false below the region */
        return region;
    uint32_t low = 0, high = memory->count;
    while (low < high) { /* the last region that begins at or below gpa */
        uint32_t middle = (low + high) / 2;
        if (memory->region[middle].gpa <= gpa)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    region = &memory->region[low - 1];
    if (gpa - region->gpa >= region->size)
        return NULL;
    *hint = low - 1;
    return region;
}

/* Where [uva, uva+length) is mapped, if it lies inside one region; NULL otherwise. Sets *gpa. */
uint8_t *gw_host_of_uva(const struct gw_memory *memory, uint64_t uva, uint64_t length, uint64_t *gpa);

/* Mark the pages of [gpa, gpa+length) as written. Pages beyond the log's end are not marked (CVE-2020-10722). Call it
 * after the write: a page marked before could be cleared and sent by the front-end before our bytes are in it. */
void gw_log_mark(const struct gw_log *log, uint64_t gpa, uint64_t length);

#endif
