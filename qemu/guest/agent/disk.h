/* Block devices as root.c chooses among them. */
#ifndef GUESTWIRE_DISK_H
#define GUESTWIRE_DISK_H

#include <stdbool.h>
#include <stddef.h>

#define DISK_NAME 32
#define DISK_LABEL 128
#define DISK_UUID 37

struct disk {
    char name[DISK_NAME];       /* "vda1" */
    char device[DISK_NAME + 8]; /* "/dev/vda1" */
    char serial[32];            /* what QEMU calls the drive; "" for a partition */
    const char *type;           /* the file system on it; NULL: none that is known */
    char label[DISK_LABEL + 1], uuid[DISK_UUID];
    unsigned partition; /* its number in the table; 0: a whole disk */
    char partition_label[DISK_LABEL], partition_uuid[DISK_UUID];
};

/* Those there are now, in the order of their names (vda1, vda2, vda10), so that the same disk gives the same root each
 * time; what lives in memory is left out. */
size_t disk_list(struct disk *disks, size_t room);

/* Whether it is what `root=` names: /dev/NAME, or LABEL=, UUID=, PARTLABEL=, PARTUUID= (not minding case). */
bool disk_is(const struct disk *disk, const char *wanted);

#endif
