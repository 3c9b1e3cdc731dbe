/* SPDX-License-Identifier: MPL-2.0 */
/* Trains: frames of a burst that continue the one before them, so that one walk through the stack does for all. */
#ifndef GUESTWIRE_TRAIN_H
#define GUESTWIRE_TRAIN_H

#include "vnet.h"

/* Marks, with VNET_FOLLOWS in its flags, each of `count` records whose frame continues the one before it. Offsets are
 * into slab (chunk 0). */
void vnet_mark_followers(const uint8_t *slab, struct vnet_record *records, size_t count);

#endif
