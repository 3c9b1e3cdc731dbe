/* Builtins for directories of the host that the guest mounts: @insmod, @mount, @umount. They need no program and no file
 * of the guest's, so they work in any root.
 *
 *   @insmod                                the module is on standard input; one that is loaded already is fine
 *   @mount TYPE SOURCE TARGET ro|rw DATA   TARGET is made, with its parents, if it is not there; TYPE may be bind
 *   @umount TARGET */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_MODULE_BYTES (64u << 20)

static int complain(const char *what)
{
    fprintf(stderr, "guestwire: %s: %s\n", what, strerror(errno));
    return 1;
}

int builtin_insmod(void)
{
    size_t size = 0, capacity = 0;
    char *module = NULL;
    for (;;) {
        if (size == capacity) {
            capacity = capacity == 0 ? 1u << 20 : capacity * 2;
            char *more = capacity > MAX_MODULE_BYTES ? NULL : realloc(module, capacity);
            if (more == NULL) {
                free(module);
                errno = ENOMEM;
                return complain("reading the module");
            }
            module = more;
        }
        ssize_t n = read(0, module + size, capacity - size);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR) {
            free(module);
            return complain("reading the module");
        }
        size += n < 0 ? 0 : (size_t)n;
    }
    long result = syscall(SYS_init_module, module, (unsigned long)size, "");
    free(module);
    return result == 0 || errno == EEXIST ? 0 : complain("loading the module");
}

static bool make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        bool made = mkdir(path, 0755) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made)
            return false;
    }
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

int builtin_mount(int argc, char **argv)
{
    if (argc != 6 || argv[3][0] != '/' || strlen(argv[3]) >= PATH_MAX) {
        dprintf(2, "usage: @mount TYPE SOURCE /TARGET ro|rw DATA\n");
        return 2;
    }
    unsigned long flags = strcmp(argv[4], "ro") == 0 ? MS_RDONLY : 0;
    if (!make_directories(argv[3]))
        return complain(argv[3]);
    bool done;
    if (strcmp(argv[1], "bind") == 0) /* mount(2): a bind mount takes its flags from being mounted again */
        done = mount(argv[2], argv[3], NULL, MS_BIND, NULL) == 0 &&
               (flags == 0 || mount(NULL, argv[3], NULL, MS_REMOUNT | MS_BIND | flags, NULL) == 0);
    else
        done = mount(argv[2], argv[3], argv[1], flags, argv[5]) == 0;
    return done ? 0 : complain("mounting");
}

int builtin_umount(int argc, char **argv)
{
    if (argc != 2) {
        dprintf(2, "usage: @umount TARGET\n");
        return 2;
    }
    return umount2(argv[1], 0) == 0 ? 0 : complain("unmounting");
}
