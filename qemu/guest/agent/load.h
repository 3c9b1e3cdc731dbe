/* The load generator's inside: what load.c (the modes) and load_net.c (sockets, statistics) share. */
#ifndef GUESTWIRE_LOAD_H
#define GUESTWIRE_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct load {
    const char *mode, *family, *address, *port;
    bool listen;
    double seconds;     /* stop after this long */
    uint64_t bytes;     /* or after this many bytes (bulk) */
    uint64_t count;     /* or after this many transactions or connections */
    size_t size;        /* bytes per write (bulk) or per request */
    size_t response;    /* bytes per response */
    double timeout;     /* no single wait is longer, seconds */
};

double load_now(void);                              /* seconds, monotonic */
int load_connect(const struct load *load);          /* connected socket, or -1 with the reason on standard error */
int load_listen(const struct load *load);           /* listening socket; says {"listening": true} on standard output */
int load_accept(const struct load *load, int fd);   /* one connection, or -1 */
int load_peer(const struct load *load);             /* connect or listen+accept, as the load says */
int load_write_all(int fd, const void *bytes, size_t size);
int load_read_all(int fd, void *bytes, size_t size); /* 0; 1 at end of stream before the first byte; -1 */
bool load_datagrams(const struct load *load);      /* UDP */
int load_complain(const char *what);                /* errno to standard error; returns 1 */

struct samples {
    float *us;
    size_t used, capacity;
};
bool samples_add(struct samples *samples, double seconds);
void samples_report(struct samples *samples, const struct load *load, double seconds); /* one JSON line */

#endif
