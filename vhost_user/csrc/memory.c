/* SPDX-License-Identifier: MPL-2.0 */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

uint8_t *gw_map(int fd, uint64_t length, uint64_t offset) {
    if (length > SIZE_MAX || offset > INT64_MAX) {
        errno = EOVERFLOW;
        return NULL;
    }
    void *start = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
    if (start == MAP_FAILED)
        return NULL;
    /* A core dump of ours should not hold the guest's memory. Best effort: the mapping works without. */
    (void)madvise(start, (size_t)length, MADV_DONTDUMP);
    return start;
}

void gw_unmap(uint8_t *start, uint64_t length) { (void)munmap(start, (size_t)length); }

uint8_t *gw_host_of_uva(const struct gw_memory *memory, uint64_t uva, uint64_t length, uint64_t *gpa) {
    for (uint32_t slot = 0; slot < memory->count; slot++) {
        const struct gw_region *region = &memory->region[slot];
        uint64_t inside = uva - region->uva;
        if (inside < region->size && length <= region->size - inside) {
            *gpa = region->gpa + inside;
            return region->host + inside;
        }
    }
    return NULL;
}

void gw_log_mark(const struct gw_log *log, uint64_t gpa, uint64_t length) {
    if (length == 0 || gpa > UINT64_MAX - (length - 1))
        return;
    uint64_t last = (gpa + (length - 1)) >> GW_LOG_PAGE_SHIFT;
    for (uint64_t page = gpa >> GW_LOG_PAGE_SHIFT; page <= last && page / 8 < log->size; page++)
        atomic_fetch_or_explicit((_Atomic uint8_t *)&log->bits[page / 8], (uint8_t)(1u << (page % 8)),
                                 memory_order_release);
}
