/* A root on a disk: found, mounted and made the guest's, with the agent going on as a process of it.
 *
 * With the word guestwire.root=disk on the kernel's command line the agent looks at every partition and disk for a file
 * system that has an init, mounts it, and forks. Process 1 changes into it and becomes its init, systemd say, which
 * needs to know nothing of us; the child changes its root as well and serves the port. What it needs of ours is in its
 * memory by then: the disk is not written to.
 *
 * The modules of a file system are named in AGENT_MODULES_FILE.NAME, and loaded when a superblock says they are needed. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEW_ROOT "/.guestwire/root"
#define MAX_DEVICES 32
#define NAME_BYTES 32
#define WAIT_STEPS 500 /* of 10 ms, for the disk to appear */

static const char *const inits[] = {"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"};
static const char *found_init;

struct magic {
    const char *name;
    off_t offset;
    const char *bytes;
    size_t size;
};

static const struct magic magics[] = {
    {"ext4", 1080, "\x53\xef", 2},       /* fs/ext4/ext4.h: s_magic */
    {"xfs", 0, "XFSB", 4},               /* fs/xfs/libxfs/xfs_format.h */
    {"btrfs", 65600, "_BHRfS_M", 8},     /* include/uapi/linux/btrfs_tree.h */
    {"squashfs", 0, "hsqs", 4},          /* fs/squashfs/squashfs_fs.h */
    {"erofs", 1024, "\xe2\xe1\xf5\xe0", 4}, /* fs/erofs/erofs_fs.h */
};

bool root_wanted(void)
{
    char line[4096];
    FILE *file = fopen("/proc/cmdline", "re");
    bool wanted = file != NULL && fgets(line, sizeof line, file) != NULL && strstr(line, "guestwire.root=disk") != NULL;
    if (file != NULL)
        fclose(file);
    return wanted;
}

static const char *file_system_of(const char *device)
{
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    const char *name = NULL;
    for (size_t i = 0; fd >= 0 && name == NULL && i < sizeof magics / sizeof magics[0]; i++) {
        char bytes[8];
        if (pread(fd, bytes, magics[i].size, magics[i].offset) == (ssize_t)magics[i].size &&
            memcmp(bytes, magics[i].bytes, magics[i].size) == 0)
            name = magics[i].name;
    }
    if (fd >= 0)
        close(fd);
    return name;
}

/* Whether what is mounted at NEW_ROOT has an init that can be run. A link is looked at as a link: it may be absolute. */
static bool has_init(void)
{
    for (size_t i = 0; i < sizeof inits / sizeof inits[0]; i++) {
        char path[128];
        struct stat status;
        snprintf(path, sizeof path, NEW_ROOT "%s", inits[i]);
        if (lstat(path, &status) == 0 && (S_ISLNK(status.st_mode) || (status.st_mode & 0111) != 0)) {
            found_init = inits[i];
            return true;
        }
    }
    return false;
}

static bool mount_device(const char *device)
{
    char modules[128];
    const char *type = file_system_of(device);
    if (type == NULL)
        return false;
    snprintf(modules, sizeof modules, AGENT_MODULES_FILE ".%s", type);
    boot_load_modules(modules);
    if (mount(device, NEW_ROOT, type, 0, NULL) != 0 && mount(device, NEW_ROOT, type, MS_RDONLY, NULL) != 0) {
        say("cannot mount %s as %s: %s", device, type, strerror(errno));
        return false;
    }
    if (has_init())
        return true;
    umount2(NEW_ROOT, 0);
    return false;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Block devices by name, so that the same disk gives the same root each time; what lives in memory is left out. */
static size_t list_devices(char names[MAX_DEVICES][NAME_BYTES])
{
    size_t n = 0;
    const struct dirent *entry;
    DIR *dir = opendir("/sys/class/block");
    while (dir != NULL && n < MAX_DEVICES && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.' && strncmp(entry->d_name, "loop", 4) != 0 && strncmp(entry->d_name, "ram", 3) != 0 &&
            strlen(entry->d_name) < NAME_BYTES)
            strcpy(names[n++], entry->d_name);
    if (dir != NULL)
        closedir(dir);
    qsort(names, n, NAME_BYTES, by_name);
    return n;
}

bool root_mount(void)
{
    char names[MAX_DEVICES][NAME_BYTES];
    mkdir(NEW_ROOT, 0755);
    size_t n = 0;
    for (int step = 0; (n = list_devices(names)) == 0 && step < WAIT_STEPS; step++)
        usleep(10 * 1000);
    for (size_t i = 0; i < n; i++) {
        char device[NAME_BYTES + 8];
        snprintf(device, sizeof device, "/dev/%.31s", names[i]);
        if (mount_device(device)) {
            say("root is %s, init is %s", device, found_init);
            return true;
        }
    }
    boot_problem("none of the %zu block devices has a file system with an init", n);
    return false;
}

static void carry(const char *what)
{
    char target[64];
    snprintf(target, sizeof target, NEW_ROOT "%s", what);
    if (mount(what, target, NULL, MS_MOVE, NULL) != 0)
        boot_problem("cannot move %s into the disk's root: %s", what, strerror(errno));
}

void root_enter(void)
{
    carry("/dev");
    carry("/proc");
    carry("/sys");
    if (chdir(NEW_ROOT) != 0)
        boot_problem("cannot enter the disk's root: %s", strerror(errno));
    int started[2] = {-1, -1};
    if (pipe2(started, O_CLOEXEC) != 0)
        boot_problem("cannot make a pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0)
        boot_problem("cannot fork: %s", strerror(errno));
    if (child > 0) { /* process 1 */
        char *const arguments[] = {(char *)(uintptr_t)found_init, NULL};
        if (mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0)
            execv(found_init, arguments);
        say("cannot run %s: %s", found_init, strerror(errno));
        _exit(1); /* the kernel panics, and says so */
    }
    char none;
    close(started[1]);
    while (read(started[0], &none, 1) < 0 && errno == EINTR)
        ; /* its end: process 1 has become the init */
    close(started[0]);
    setsid();
    if (chroot(".") != 0 || chdir("/") != 0)
        boot_problem("cannot change into the disk's root: %s", strerror(errno));
}
