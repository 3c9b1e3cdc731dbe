/* What block devices there are, and what is on them: a file system of which kind, with which names.
 *
 * There is no udev and no blkid here, so superblocks and partition tables are read directly. Everything in them is
 * compared with what was asked for and printed, nothing is followed. */
#define _GNU_SOURCE
#include "agent.h"
#include "disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define SECTOR 512 /* bytes: virtio-blk's, unless the disk says otherwise, which QEMU's does not */
#define GPT_ENTRIES_LIMIT 4096u

struct layout {
    const char *name;
    off_t magic_at;
    const char *magic;
    size_t magic_size;
    off_t uuid_at, label_at; /* 0: it has none */
    size_t label_size;
};

static const struct layout layouts[] = {
    {"ext4", 1080, "\x53\xef", 2, 1128, 1144, 16},          /* fs/ext4/ext4.h: struct ext4_super_block at 1024 */
    {"xfs", 0, "XFSB", 4, 32, 108, 12},                     /* fs/xfs/libxfs/xfs_format.h: struct xfs_dsb */
    {"btrfs", 65600, "_BHRfS_M", 8, 65568, 65835, 128},     /* include/uapi/linux/btrfs_tree.h, at 65536 */
    {"squashfs", 0, "hsqs", 4, 0, 0, 0},                    /* fs/squashfs/squashfs_fs.h */
    {"erofs", 1024, "\xe2\xe1\xf5\xe0", 4, 1072, 1088, 16}, /* fs/erofs/erofs_fs.h: struct erofs_super_block at 1024 */
};

static bool read_at(int fd, void *bytes, size_t size, off_t offset)
{
    return fd >= 0 && pread(fd, bytes, size, offset) == (ssize_t)size;
}

/* Sixteen bytes in the order they stand in: RFC 4122. */
static void print_uuid(char *text, const uint8_t *b)
{
    sprintf(text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5],
            b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* A GUID of a partition table has its first three numbers little-endian (UEFI 2.10, appendix A). */
static void print_guid(char *text, const uint8_t *b)
{
    const uint8_t swapped[16] = {b[3], b[2], b[1], b[0], b[5],  b[4],  b[7],  b[6],
                                 b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]};
    print_uuid(text, swapped);
}

static void read_superblock(struct disk *disk, int fd)
{
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        const struct layout *layout = &layouts[i];
        uint8_t bytes[16];
        if (!read_at(fd, bytes, layout->magic_size, layout->magic_at) ||
            memcmp(bytes, layout->magic, layout->magic_size) != 0)
            continue;
        disk->type = layout->name;
        if (layout->uuid_at != 0 && read_at(fd, bytes, 16, layout->uuid_at))
            print_uuid(disk->uuid, bytes);
        if (layout->label_at != 0 && !read_at(fd, disk->label, layout->label_size, layout->label_at))
            disk->label[0] = 0;
        return;
    }
}

/* A line of a file in sysfs, "" if there is none. */
static void read_line(char *text, size_t size, const char *name, const char *file)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/class/block/%s/%s", name, file);
    FILE *stream = fopen(path, "re");
    if (stream == NULL || fgets(text, (int)size, stream) == NULL)
        text[0] = 0;
    text[strcspn(text, "\n")] = 0;
    if (stream != NULL)
        fclose(stream);
}

static void read_partition_label(struct disk *disk)
{
    char path[128], line[192];
    snprintf(path, sizeof path, "/sys/class/block/%s/uevent", disk->name);
    FILE *stream = fopen(path, "re");
    while (stream != NULL && fgets(line, sizeof line, stream) != NULL)
        if (strncmp(line, "PARTNAME=", 9) == 0) {
            line[strcspn(line, "\n")] = 0;
            snprintf(disk->partition_label, sizeof disk->partition_label, "%.*s", DISK_LABEL - 1, line + 9);
        }
    if (stream != NULL)
        fclose(stream);
}

/* The partition's own number in the table of the disk it is on, as PARTUUID names it. */
static void read_partition_uuid(struct disk *disk, unsigned number)
{
    char link[128], path[512] = {0}, device[64];
    uint8_t sector[SECTOR], entry[128];
    snprintf(link, sizeof link, "/sys/class/block/%s", disk->name);
    if (readlink(link, path, sizeof path - 1) <= 0) /* ".../block/vda/vda1" */
        return;
    char *end = strrchr(path, '/');
    if (end == NULL)
        return;
    *end = 0;
    const char *parent = strrchr(path, '/');
    snprintf(device, sizeof device, "/dev/%.31s", parent == NULL ? path : parent + 1);
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (read_at(fd, sector, SECTOR, SECTOR) && memcmp(sector, "EFI PART", 8) == 0) {
        uint64_t first = get_le64(sector + 72); /* UEFI 2.10, 5.3.2: where entries start, how many, of what size */
        uint32_t count = get_le32(sector + 80), size = get_le32(sector + 84);
        if (number <= count && count <= GPT_ENTRIES_LIMIT && size >= sizeof entry && size <= 4096 && first < 1u << 30 &&
            read_at(fd, entry, sizeof entry, (off_t)(first * SECTOR + (uint64_t)(number - 1) * size)))
            print_guid(disk->partition_uuid, entry + 16);
    } else if (read_at(fd, sector, SECTOR, 0) && sector[510] == 0x55 && sector[511] == 0xaa) {
        sprintf(disk->partition_uuid, "%08x-%02x", get_le32(sector + 440), number & 0xff); /* block/partitions/msdos.c */
    }
    if (fd >= 0)
        close(fd);
}

static void look_at(struct disk *disk)
{
    char number[16];
    snprintf(disk->device, sizeof disk->device, "/dev/%s", disk->name);
    int fd = open(disk->device, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        read_superblock(disk, fd);
        close(fd);
    }
    read_line(disk->serial, sizeof disk->serial, disk->name, "serial");
    read_line(number, sizeof number, disk->name, "partition");
    disk->partition = (unsigned)atoi(number);
    if (disk->partition != 0) {
        read_partition_label(disk);
        read_partition_uuid(disk, disk->partition);
    }
}

static int by_name(const void *a, const void *b)
{
    return strverscmp(((const struct disk *)a)->name, ((const struct disk *)b)->name);
}

size_t disk_list(struct disk *disks, size_t room)
{
    size_t n = 0;
    const struct dirent *entry;
    DIR *dir = opendir("/sys/class/block");
    while (dir != NULL && n < room && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.' || strncmp(entry->d_name, "loop", 4) == 0 || strncmp(entry->d_name, "ram", 3) == 0 ||
            strlen(entry->d_name) >= sizeof disks->name)
            continue;
        memset(&disks[n], 0, sizeof disks[n]);
        strcpy(disks[n++].name, entry->d_name);
    }
    if (dir != NULL)
        closedir(dir);
    for (size_t i = 0; i < n; i++)
        look_at(&disks[i]);
    qsort(disks, n, sizeof *disks, by_name);
    return n;
}

static bool named(const char *wanted, const char *kind, const char *value)
{
    size_t size = strlen(kind);
    return value[0] != 0 && strncmp(wanted, kind, size) == 0 && strcasecmp(wanted + size, value) == 0;
}

bool disk_is(const struct disk *disk, const char *wanted)
{
    return strcmp(wanted, disk->device) == 0 || named(wanted, "LABEL=", disk->label) || named(wanted, "UUID=", disk->uuid) ||
           named(wanted, "PARTLABEL=", disk->partition_label) || named(wanted, "PARTUUID=", disk->partition_uuid);
}
