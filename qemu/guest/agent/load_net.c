/* The load generator's sockets and statistics. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define MAX_SAMPLES 1000000u

double load_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int load_complain(const char *what)
{
    fprintf(stderr, "guestwire: load: %s: %s\n", what, strerror(errno));
    return 1;
}

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_vm vm;
};

bool load_datagrams(const struct load *load)
{
    return strcmp(load->family, "udp") == 0;
}

static int make_socket(const struct load *load, int family)
{
    int type = load_datagrams(load) ? SOCK_DGRAM : strcmp(load->family, "seqpacket") == 0 ? SOCK_SEQPACKET : SOCK_STREAM;
    return socket(family, type | SOCK_CLOEXEC, 0);
}

/* The length of the address, or 0 when it makes no sense. */
static socklen_t resolve(const struct load *load, union address *address)
{
    unsigned long port = strtoul(load->port, NULL, 10);
    memset(address, 0, sizeof *address);
    if (strcmp(load->family, "tcp") != 0 && !load_datagrams(load)) {
        address->vm.svm_family = AF_VSOCK;
        address->vm.svm_cid = load->listen ? VMADDR_CID_ANY : (unsigned)strtoul(load->address, NULL, 10);
        address->vm.svm_port = (unsigned)port;
        if (!load->listen && address->vm.svm_cid > VMADDR_CID_HOST)
            address->vm.svm_flags = VMADDR_FLAG_TO_HOST; /* another guest: our host knows the way */
        return sizeof address->vm;
    }
    if (load->listen || inet_pton(AF_INET6, load->address, &address->in6.sin6_addr) == 1) {
        address->in6.sin6_family = AF_INET6; /* listening: dual stack */
        address->in6.sin6_port = htons((uint16_t)port);
        return sizeof address->in6;
    }
    if (inet_pton(AF_INET, load->address, &address->in.sin_addr) == 1) {
        address->in.sin_family = AF_INET;
        address->in.sin_port = htons((uint16_t)port);
        return sizeof address->in;
    }
    return 0;
}

static void set_timeouts(const struct load *load, int fd)
{
    struct timeval t = {.tv_sec = (time_t)load->timeout, .tv_usec = (suseconds_t)(load->timeout * 1e6) % 1000000};
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    if (strcmp(load->family, "tcp") == 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

int load_connect(const struct load *load)
{
    union address address;
    socklen_t size = resolve(load, &address);
    if (size == 0) {
        fprintf(stderr, "guestwire: load: not an address: %s\n", load->address);
        return -1;
    }
    int fd = make_socket(load, address.any.sa_family);
    if (fd < 0) {
        load_complain("socket");
        return -1;
    }
    set_timeouts(load, fd);
    if (connect(fd, &address.any, size) != 0) {
        load_complain("connect");
        close(fd);
        return -1;
    }
    return fd;
}

int load_listen(const struct load *load)
{
    union address address;
    socklen_t size = resolve(load, &address);
    int fd = make_socket(load, address.any.sa_family), one = 1;
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        set_timeouts(load, fd);
    }
    if (fd < 0 || bind(fd, &address.any, size) != 0 || listen(fd, 128) != 0) {
        load_complain("listen");
        if (fd >= 0)
            close(fd);
        return -1;
    }
    printf("{\"listening\": true}\n");
    fflush(stdout);
    return fd;
}

int load_accept(const struct load *load, int fd)
{
    int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        load_complain("accept");
    else
        set_timeouts(load, connection);
    return connection;
}

int load_peer(const struct load *load)
{
    if (!load->listen)
        return load_connect(load);
    int listener = load_listen(load);
    if (listener < 0)
        return -1;
    int fd = load_accept(load, listener);
    close(listener);
    return fd;
}

int load_write_all(int fd, const void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(fd, (const char *)bytes + at, size - at, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return -1;
        at += n < 0 ? 0 : (size_t)n;
    }
    return 0;
}

int load_read_all(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = recv(fd, (char *)bytes + at, size - at, 0);
        if (n == 0) {
            errno = ECONNRESET;
            return at == 0 ? 1 : -1;
        }
        if (n < 0 && errno != EINTR)
            return -1;
        at += n < 0 ? 0 : (size_t)n;
    }
    return 0;
}

bool samples_add(struct samples *samples, double seconds)
{
    if (samples->used == samples->capacity) {
        size_t capacity = samples->capacity == 0 ? 4096 : samples->capacity * 2;
        float *us = capacity > MAX_SAMPLES ? NULL : realloc(samples->us, capacity * sizeof *us);
        if (us == NULL)
            return false;
        samples->us = us;
        samples->capacity = capacity;
    }
    samples->us[samples->used++] = (float)(seconds * 1e6);
    return true;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* Nearest rank: the smallest sample that at least `share` of all are not above. */
static double percentile(const struct samples *samples, double share)
{
    size_t rank = (size_t)(share * (double)samples->used + 0.999999);
    return samples->us[rank == 0 ? 0 : rank - 1];
}

void samples_report(struct samples *samples, const struct load *load, double seconds)
{
    printf("{\"mode\": \"%s\", \"family\": \"%s\", \"count\": %zu, \"seconds\": %.6f", load->mode, load->family,
           samples->used, seconds);
    if (samples->used != 0) {
        qsort(samples->us, samples->used, sizeof *samples->us, ascending);
        printf(", \"min_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
               (double)samples->us[0], percentile(samples, 0.5), percentile(samples, 0.9), percentile(samples, 0.99),
               (double)samples->us[samples->used - 1]);
    }
    printf("}\n");
    free(samples->us);
    *samples = (struct samples){0};
}
