/* SPDX-License-Identifier: MPL-2.0 */
/* Receive offload: neighbours of one flow in a burst become one superframe, as if the guest had not cut it up. */
#ifndef GUESTWIRE_GRO_H
#define GUESTWIRE_GRO_H

#include "vnet.h"

/* cdef begin */
enum {
    GRO_MAX_DATAGRAMS = 64, /* of one UDP superframe: Linux's UDP_GRO_CNT_MAX */
};
/* cdef end */

/* Joins what can be joined of `count` records with offsets into slab (chunk 0), in their order; returns how many are
 * left. Payload moves within the slab and headers there are rewritten, so it must be nobody else's yet. */
size_t gro_join(uint8_t *slab, struct vnet_record *records, size_t count);

#endif
