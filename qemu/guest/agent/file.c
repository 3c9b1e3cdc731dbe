/* Builtins @put and @get: a file's bytes through the command's own standard input and output, so that they share its
 * flow control, its exit status and its error text, and need no program in the guest. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failed(const char *what, const char *path)
{
    dprintf(2, "guestwire: cannot %s %s: %s\n", what, path, strerror(errno));
    return 1;
}

int copy_stream(int from, int to)
{
    static char buffer[65536];
    for (;;) {
        ssize_t n = read(from, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return (int)n;
        for (ssize_t at = 0; at < n;) {
            ssize_t written = write(to, buffer + at, (size_t)(n - at));
            if (written < 0 && errno != EINTR)
                return -1;
            at += written < 0 ? 0 : written;
        }
    }
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
}

/* @put PATH OCTAL-MODE: standard input becomes PATH, whole or not at all. */
int builtin_put(int argc, char **argv)
{
    char temporary[4096];
    if (argc != 3 || argv[1][0] == 0) {
        dprintf(2, "usage: @put PATH MODE\n");
        return 2;
    }
    make_parents(argv[1]);
    if (snprintf(temporary, sizeof temporary, "%s.guestwire-%d", argv[1], (int)getpid()) >= (int)sizeof temporary) {
        errno = ENAMETOOLONG;
        return failed("write", argv[1]);
    }
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return failed("create", argv[1]);
    if (copy_stream(0, fd) != 0 || fchmod(fd, (mode_t)strtoul(argv[2], NULL, 8) & 07777) != 0 || close(fd) != 0 ||
        rename(temporary, argv[1]) != 0) {
        int rc = failed("write", argv[1]);
        unlink(temporary);
        return rc;
    }
    return 0;
}

/* @get PATH: PATH goes to standard output. */
int builtin_get(int argc, char **argv)
{
    if (argc != 2) {
        dprintf(2, "usage: @get PATH\n");
        return 2;
    }
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return failed("open", argv[1]);
    return copy_stream(fd, 1) == 0 ? 0 : failed("read", argv[1]);
}
