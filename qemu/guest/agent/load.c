/* Builtin @load: bench load, made inside the guest.
 *
 *   @load MODE FAMILY ADDRESS PORT [KEY=VALUE...]
 *
 *   MODE     send   write until seconds or bytes are used up, shut down, wait for the peer to close
 *            recv   read until end of stream or seconds
 *            rr     one connection, request and response in turn
 *            crr    connect, request, response, close, over and over
 *            echo   serve rr and crr: answer every `size` bytes by `response` bytes, on many connections at once
 *   FAMILY   tcp, udp (send, recv and rr), vsock or seqpacket (vsock with a message for each write); ADDRESS is a CID
 *            for the last two
 *   ADDRESS  an address to connect to, or "listen" (send, recv and echo): then {"listening": true} is printed first
 *   KEY      seconds bytes count size response timeout
 *
 * The result is one JSON line on standard output. Bulk seconds of `send` include the peer's close, so what is still
 * buffered is not counted as delivered; those of `recv` run from the first byte to the last. Nobody closes UDP: `send`
 * reports what it sent; `recv` sends a byte to be known by, and an empty datagram or `timeout` of silence ends it.
 */
#define _GNU_SOURCE
#include "load.h"
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_SIZE (16u << 20)   /* bytes of one write, request or response */
#define MAX_CONNECTIONS 128    /* that echo serves at once */

static uint8_t *buffer; /* MAX of size and response, filled with a pattern */

static int bulk_report(const struct load *load, uint64_t bytes, double seconds)
{
    printf("{\"mode\": \"%s\", \"family\": \"%s\", \"bytes\": %llu, \"seconds\": %.6f, \"gbps\": %.4f}\n", load->mode,
           load->family, (unsigned long long)bytes, seconds, seconds > 0 ? (double)bytes * 8e-9 / seconds : 0.0);
    return 0;
}

static int run_send(const struct load *load)
{
    int fd = load_peer(load);
    if (fd < 0)
        return 1;
    uint64_t sent = 0;
    double start = load_now();
    bool datagrams = load_datagrams(load);
    while ((load->bytes == 0 || sent < load->bytes) && (load->seconds <= 0 || load_now() - start < load->seconds)) {
        size_t size = load->bytes != 0 && load->bytes - sent < load->size ? (size_t)(load->bytes - sent) : load->size;
        ssize_t n = send(fd, buffer, size, MSG_NOSIGNAL);
        if (n < 0 && (errno == EINTR || (datagrams && (errno == ECONNREFUSED || errno == ENOBUFS))))
            continue;
        if (n < 0)
            return load_complain("send");
        sent += (uint64_t)n;
    }
    shutdown(fd, SHUT_WR);
    for (ssize_t n; !datagrams && (n = recv(fd, buffer, load->size, 0)) != 0;)
        if (n < 0 && errno != EINTR)
            return load_complain("waiting for the peer to close");
    double seconds = load_now() - start;
    close(fd);
    return bulk_report(load, sent, seconds);
}

static int run_recv(const struct load *load)
{
    int fd = load_peer(load);
    if (fd < 0)
        return 1;
    uint64_t received = 0;
    double first = 0, last = 0;
    bool datagrams = load_datagrams(load);
    if (datagrams && send(fd, buffer, 1, MSG_NOSIGNAL) < 0)
        return load_complain("send");
    for (;;) {
        ssize_t n = recv(fd, buffer, load->size, 0);
        if (n < 0 && datagrams && received != 0 && (errno == EAGAIN || errno == ECONNREFUSED))
            break;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return load_complain("recv");
        if (n == 0)
            break;
        last = load_now();
        if (received == 0)
            first = last;
        received += (uint64_t)n;
        if ((load->seconds > 0 && last - first >= load->seconds) || (load->bytes != 0 && received >= load->bytes))
            break;
    }
    close(fd);
    return bulk_report(load, received, last - first);
}

/* One transaction; what it took goes to samples. 0, or 1 with the reason said. */
static int transact(const struct load *load, int *fd, struct samples *samples)
{
    double start = load_now();
    if (*fd < 0 && (*fd = load_connect(load)) < 0)
        return 1;
    if (load_write_all(*fd, buffer, load->size) != 0)
        return load_complain("sending a request");
    if (load_read_all(*fd, buffer, load->response) != 0)
        return load_complain("waiting for a response");
    if (load->mode[0] == 'c') {
        close(*fd);
        *fd = -1;
    }
    if (!samples_add(samples, load_now() - start)) {
        errno = ENOMEM;
        return load_complain("too many samples");
    }
    return 0;
}

static int run_transactions(const struct load *load)
{
    struct samples samples = {0};
    int fd = load->mode[0] == 'c' ? -1 : load_connect(load);
    if (load->mode[0] != 'c' && fd < 0)
        return 1;
    double start = load_now();
    while ((load->count == 0 || samples.used < load->count) &&
           (load->seconds <= 0 || load_now() - start < load->seconds))
        if (transact(load, &fd, &samples) != 0) {
            free(samples.us);
            return 1;
        }
    double seconds = load_now() - start;
    if (fd >= 0)
        close(fd);
    samples_report(&samples, load, seconds);
    return 0;
}

/* Echo's view of one connection: bytes of the request under way that have arrived. */
struct served {
    int fd;
    size_t have;
};

/* False when the connection is over. */
static bool serve_request(const struct load *load, struct served *served)
{
    ssize_t n = recv(served->fd, buffer, load->size - served->have, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0)
        return false;
    served->have += (size_t)n;
    if (served->have < load->size)
        return true;
    served->have = 0;
    return load_write_all(served->fd, buffer, load->response) == 0;
}

static int run_echo(const struct load *load)
{
    struct served served[MAX_CONNECTIONS];
    struct pollfd polled[MAX_CONNECTIONS + 1];
    int open_count = 0;
    uint64_t accepted = 0;
    int listener = load_listen(load);
    if (listener < 0)
        return 1;
    double start = load_now();
    while (load->count == 0 || accepted < load->count || open_count != 0) {
        double left = load->seconds > 0 ? load->seconds - (load_now() - start) : 1;
        if (left <= 0)
            break;
        bool wanted = open_count < MAX_CONNECTIONS && (load->count == 0 || accepted < load->count);
        polled[0] = (struct pollfd){.fd = wanted ? listener : -1, .events = POLLIN};
        for (int i = 0; i < open_count; i++)
            polled[i + 1] = (struct pollfd){.fd = served[i].fd, .events = POLLIN};
        if (poll(polled, (nfds_t)open_count + 1, (int)(left * 1000) + 1) < 0 && errno != EINTR)
            return load_complain("poll");
        for (int i = open_count - 1; i >= 0; i--) /* backwards: closing moves the last one into the gap */
            if (polled[i + 1].revents != 0 && !serve_request(load, &served[i])) {
                close(served[i].fd);
                served[i] = served[--open_count];
            }
        if (polled[0].revents != 0) {
            int fd = load_accept(load, listener);
            if (fd >= 0) {
                served[open_count++] = (struct served){.fd = fd};
                accepted++;
            }
        }
    }
    printf("{\"mode\": \"echo\", \"family\": \"%s\", \"connections\": %llu}\n", load->family,
           (unsigned long long)accepted);
    return 0;
}

/* False when KEY=VALUE is not known or not a number in range. */
static bool set_option(struct load *load, const char *option)
{
    char *end;
    const char *equals = strchr(option, '=');
    size_t key = equals == NULL ? 0 : (size_t)(equals - option);
    double value = equals == NULL ? -1 : strtod(equals + 1, &end);
    if (value < 0 || value > 1e15 || *end != 0 || end == equals + 1)
        return false;
#define KEY(name) (key == sizeof name - 1 && strncmp(option, name, key) == 0)
    if (KEY("seconds"))
        load->seconds = value;
    else if (KEY("timeout") && value >= 0.001 && value < 1e6)
        load->timeout = value;
    else if (KEY("bytes"))
        load->bytes = (uint64_t)value;
    else if (KEY("count"))
        load->count = (uint64_t)value;
    else if (KEY("size") && value >= 1 && value <= MAX_SIZE)
        load->size = (size_t)value;
    else if (KEY("response") && value >= 1 && value <= MAX_SIZE)
        load->response = (size_t)value;
    else
        return false;
#undef KEY
    return true;
}

static int usage(const char *what)
{
    fprintf(stderr,
            "guestwire: load: %s\n"
            "usage: @load send|recv|rr|crr|echo tcp|udp|vsock|seqpacket ADDRESS|listen PORT "
            "[seconds=S] [bytes=N] [count=N] [size=N] [response=N] [timeout=S]\n",
            what);
    return 2;
}

int builtin_load(int argc, char **argv)
{
    if (argc < 5)
        return usage("too few arguments");
    struct load load = {.mode = argv[1], .family = argv[2], .address = argv[3], .port = argv[4], .timeout = 30};
    bool bulk = strcmp(load.mode, "send") == 0 || strcmp(load.mode, "recv") == 0;
    bool echo = strcmp(load.mode, "echo") == 0;
    load.listen = strcmp(load.address, "listen") == 0;
    load.size = bulk ? 131072 : 1; /* 128 KiB writes: what iperf3 does */
    load.response = 1;
    if (!bulk && !echo && strcmp(load.mode, "rr") != 0 && strcmp(load.mode, "crr") != 0)
        return usage("unknown mode");
    if (strcmp(load.family, "tcp") != 0 && strcmp(load.family, "udp") != 0 && strcmp(load.family, "vsock") != 0 &&
        strcmp(load.family, "seqpacket") != 0)
        return usage("unknown family");
    if (load_datagrams(&load) && (load.listen || strcmp(load.mode, "crr") == 0))
        return usage("UDP does not listen or connect");
    if (echo ? !load.listen : (load.listen && !bulk))
        return usage("echo listens; rr and crr connect");
    for (int i = 5; i < argc; i++)
        if (!set_option(&load, argv[i]))
            return usage(argv[i]);
    if (load.seconds <= 0 && load.bytes == 0 && load.count == 0 && !echo && strcmp(load.mode, "recv") != 0)
        return usage("say when to stop: seconds=, bytes= or count=");
    size_t size = load.size > load.response ? load.size : load.response;
    buffer = malloc(size);
    if (buffer == NULL)
        return load_complain("buffer");
    for (size_t i = 0; i < size; i++)
        buffer[i] = (uint8_t)(i * 131 + (i >> 8));
    int rc = bulk ? (load.mode[0] == 's' ? run_send(&load) : run_recv(&load)) : echo ? run_echo(&load)
                                                                                   : run_transactions(&load);
    free(buffer);
    return rc;
}
