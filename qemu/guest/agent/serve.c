/* The loop: port in, port out, children's pipes, SIGCHLD. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_SEED 512u
#define INPUT_CAPACITY (2u * (FRAME_HEADER + FRAME_MAX_PAYLOAD))
#define REPLY_ROOM 8192u /* no single request is answered by more than this; requests wait while less is free */

static uint8_t input[INPUT_CAPACITY];
static size_t input_size;

static void hello(const struct frame *frame)
{
    uint8_t payload[4096];
    if (frame->length != 8 || get_le32(frame->payload) != AGENT_VERSION) {
        out_error(frame->id, "this agent speaks version %u only", AGENT_VERSION);
        return;
    }
    put_le32(payload, AGENT_VERSION);
    put_le32(payload + 4, 0);
    size_t n = boot_report((char *)payload + 8, sizeof payload - 8);
    out_frame(FRAME_HELLO, frame->id, payload, 8 + n);
}

static void seed(const struct frame *frame)
{
    union {
        struct rand_pool_info info;
        uint8_t bytes[sizeof(struct rand_pool_info) + MAX_SEED];
    } pool;
    if (frame->length == 0 || frame->length > MAX_SEED) {
        out_error(frame->id, "SEED takes 1 to %u bytes", MAX_SEED);
        return;
    }
    memset(&pool, 0, sizeof pool);
    pool.info.entropy_count = (int)frame->length * 8;
    pool.info.buf_size = (int)frame->length;
    memcpy(pool.bytes + offsetof(struct rand_pool_info, buf), frame->payload, frame->length);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    int error = fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) != 0 ? errno : 0;
    /* A pool that is full already feeds the generator minutes later only: a guest that continues a saved one would draw
     * the same numbers as every other until then. ENODATA: the generator is not ready, and takes it as its first seed. */
    if (error == 0)
        ioctl(fd, RNDRESEEDCRNG);
    if (fd >= 0)
        close(fd);
    out_done(frame->id, error);
}

static void set_time(const struct frame *frame)
{
    if (frame->length != 8) {
        out_error(frame->id, "TIME takes 8 bytes");
        return;
    }
    uint64_t ns = get_le64(frame->payload);
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    /* Only in a guest: a test on the host, perhaps as root, is not to change the host's clock. */
    int error = !is_guest ? EPERM : clock_settime(CLOCK_REALTIME, &t) != 0 ? errno : 0;
    out_done(frame->id, error);
}

/* -1: go on; otherwise serve()'s result. */
static int dispatch(const struct frame *frame)
{
    switch (frame->type) {
    case FRAME_HELLO: hello(frame); break;
    case FRAME_RUN: command_run(frame); break;
    case FRAME_STDIN: command_stdin(frame); break;
    case FRAME_CREDIT: command_credit(frame); break;
    case FRAME_KILL: command_kill(frame); break;
    case FRAME_SEED: seed(frame); break;
    case FRAME_TIME: set_time(frame); break;
    case FRAME_POWEROFF: return 0;
    default: break; /* frame_parse() let nothing else through */
    }
    return -1;
}

static int take_input(void)
{
    size_t at = 0;
    int result = -1;
    while (result < 0 && out_room() >= REPLY_ROOM) {
        struct frame frame;
        size_t used = 0;
        const char *why = "";
        int got = frame_parse(input + at, input_size - at, &frame, &used, &why);
        if (got == 0)
            break;
        if (got < 0) {
            say("framing error: %s", why);
            out_error(0, "framing error: %s", why);
            result = 2;
            break;
        }
        result = dispatch(&frame);
        at += used;
    }
    memmove(input, input + at, input_size - at);
    input_size -= at;
    return result;
}

/* False when the other side is gone for good. A virtio port without a connected host reads as end of file too
 * (virtio_console.c fills no buffer), so end of file before the first byte only means "not yet". */
static bool read_port(int fd, bool *spoken)
{
    ssize_t n = read(fd, input + input_size, sizeof input - input_size);
    if (n > 0) {
        input_size += (size_t)n;
        *spoken = true;
    } else if (n == 0) {
        if (*spoken)
            return false;
        struct timespec wait = {.tv_nsec = 5 * 1000 * 1000};
        nanosleep(&wait, NULL);
    }
    return n >= 0 || errno == EAGAIN || errno == EINTR;
}

/* False when the other side is gone for good. */
static bool write_port(int fd)
{
    const uint8_t *bytes;
    size_t size;
    while ((size = out_pending(&bytes)) != 0) {
        ssize_t n = write(fd, bytes, size);
        if (n <= 0)
            return n == 0 || errno == EAGAIN || errno == EINTR;
        out_consume((size_t)n);
    }
    return true;
}

static void flush_port(int fd)
{
    const uint8_t *bytes;
    for (int i = 0; i < 20 && out_pending(&bytes) != 0; i++) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        poll(&p, 1, 50);
        if (!write_port(fd))
            return;
    }
}

static nfds_t add(struct pollfd *polled, nfds_t n, int fd, short events)
{
    polled[n] = (struct pollfd){.fd = fd, .events = events};
    return n + 1;
}

static nfds_t what_to_poll(struct pollfd *polled, int fd, int signals)
{
    const uint8_t *bytes;
    bool hungry = out_room() >= REPLY_ROOM && input_size < sizeof input;
    bool room = out_room() >= OUT_RESERVE + FRAME_HEADER + DATA_CHUNK;
    nfds_t n = add(polled, 0, fd, (short)((hungry ? POLLIN : 0) | (out_pending(&bytes) != 0 ? POLLOUT : 0)));
    n = add(polled, n, signals, POLLIN);
    for (size_t i = 0; i < MAX_COMMANDS; i++) {
        const struct command *c = &commands[i];
        if (c->id == 0)
            continue;
        if (c->fd[0] >= 0 && c->input_size != 0)
            n = add(polled, n, c->fd[0], POLLOUT);
        for (int s = 1; s <= 2; s++)
            if (c->fd[s] >= 0 && c->credit[s] != 0 && room)
                n = add(polled, n, c->fd[s], POLLIN);
    }
    return n;
}

/* True while a command that ended still has output to hand over: poll must not sleep on pipes that stay silent. */
static bool draining(void)
{
    if (out_room() < OUT_RESERVE + FRAME_HEADER + DATA_CHUNK)
        return false; /* the port's POLLOUT will wake us */
    for (size_t i = 0; i < MAX_COMMANDS; i++)
        for (int s = 1; s <= 2; s++)
            if (commands[i].id != 0 && commands[i].reaped && commands[i].fd[s] >= 0 && commands[i].credit[s] != 0)
                return true;
    return false;
}

static void service_commands(void)
{
    static size_t first; /* rotates, so that one chatty command cannot starve the others of the queue */
    first = (first + 1) % MAX_COMMANDS;
    for (size_t i = 0; i < MAX_COMMANDS; i++) {
        struct command *c = &commands[(first + i) % MAX_COMMANDS];
        if (c->id == 0)
            continue;
        command_feed(c);
        command_drain(c, 1);
        command_drain(c, 2);
        command_settle(c);
    }
}

int serve(int fd)
{
    struct pollfd polled[2 + 3 * MAX_COMMANDS];
    sigset_t mask;
    bool spoken = false;
    int result = -1;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (result < 0) {
        nfds_t n = what_to_poll(polled, fd, signals);
        if (poll(polled, n, draining() ? 0 : -1) < 0 && errno != EINTR)
            break;
        if ((polled[0].revents & (POLLIN | POLLHUP | POLLERR)) && input_size < sizeof input && !read_port(fd, &spoken))
            result = 1;
        if (polled[1].revents) {
            struct signalfd_siginfo drop;
            while (read(signals, &drop, sizeof drop) > 0)
                ;
        }
        command_reap();
        int said = take_input();
        if (said >= 0)
            result = said;
        service_commands();
        if (!write_port(fd) && result < 0)
            result = 1;
    }
    command_kill_all();
    flush_port(fd);
    close(signals);
    return result < 0 ? 1 : result;
}
