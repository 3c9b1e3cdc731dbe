/* Builtin @pipe: one connection joined to the command's own standard input and output; each direction ends by itself.
 *
 *   @pipe FAMILY ADDRESS PORT
 *
 * FAMILY, ADDRESS and PORT as for @load; with "listen", {"listening": true} and a line end come before the peer's bytes.
 * Standard input's end is passed on as a half-close, and the command ends when the peer has closed as well: what
 * socat does, where a guest has none. */
#define _GNU_SOURCE
#include "agent.h"
#include "load.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define SETUP_SECONDS 30

int builtin_pipe(int argc, char **argv)
{
    if (argc != 4 || (strcmp(argv[1], "tcp") != 0 && strcmp(argv[1], "vsock") != 0)) {
        dprintf(2, "usage: @pipe tcp|vsock ADDRESS|listen PORT\n");
        return 2;
    }
    struct load load = {.mode = "pipe", .family = argv[1], .address = argv[2], .port = argv[3],
                        .timeout = SETUP_SECONDS, .listen = strcmp(argv[2], "listen") == 0};
    int fd = load_peer(&load);
    if (fd < 0)
        return 1;
    struct timeval none = {0}; /* a pipe may be silent for as long as it likes */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
    signal(SIGPIPE, SIG_IGN);
    pid_t reader = fork(); /* one process for each direction: neither can hold up the other */
    if (reader < 0)
        return load_complain("fork");
    if (reader == 0)
        _exit(copy_stream(fd, 1) == 0 ? 0 : load_complain("from the peer"));
    int rc = copy_stream(0, fd) == 0 ? 0 : load_complain("to the peer");
    shutdown(fd, SHUT_WR);
    close(1); /* the reader's copy is the last one: who reads our output sees its end in time */
    int status;
    if (waitpid(reader, &status, 0) != reader || status != 0)
        rc = 1;
    return rc;
}
