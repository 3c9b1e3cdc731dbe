/* One running command: fork, pipes, credit, exit status.
 *
 * The end of a command is the end of its process, not of its pipes: what is in the pipes at that moment is drained and
 * sent, then EXIT. A daemon that the command left behind and that still holds a pipe does not keep anybody waiting.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUN_HEADER 12u       /* u32 output window, u16 argc, u16 envc, u16 flags, u16 zero; then cwd, argv, env */
#define RUN_CLEAR_ENV 1u     /* env replaces the default environment instead of adding to it */
#define RUN_NO_STDIN 2u      /* standard input is /dev/null */
#define MAX_STRINGS 4096u
#define MAX_FD 1024 /* the default RLIMIT_NOFILE; three for each of MAX_COMMANDS and a few more are in use */

struct command commands[MAX_COMMANDS];

uint64_t monotonic_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static struct command *find(uint32_t id)
{
    for (size_t i = 0; id != 0 && i < MAX_COMMANDS; i++)
        if (commands[i].id == id)
            return &commands[i];
    return NULL;
}

/* To the command's process group; just after fork the child may not have made it yet, then to the child itself. */
static void send_signal(const struct command *c, int signo)
{
    if (kill(-c->pid, signo) != 0)
        kill(c->pid, signo);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

struct run_request {
    uint32_t window;
    unsigned flags;
    const char *cwd;
    char **argv, **env; /* one allocation, NULL-terminated each; strings point into the frame */
};

/* NULL, or what is wrong with it. On success the caller frees request->argv. */
static const char *parse_run(const struct frame *frame, struct run_request *request)
{
    const uint8_t *p = frame->payload;
    if (frame->length <= RUN_HEADER)
        return "RUN is too short";
    size_t argc = get_le16(p + 4), envc = get_le16(p + 6);
    request->window = get_le32(p);
    request->flags = get_le16(p + 8);
    if (get_le16(p + 10) != 0 || (request->flags & ~(RUN_CLEAR_ENV | RUN_NO_STDIN)) != 0)
        return "RUN has unknown flags";
    if (argc == 0 || argc + envc > MAX_STRINGS)
        return "RUN has no or too many arguments";
    const char *text = (const char *)p + RUN_HEADER, *end = (const char *)p + frame->length;
    if (end[-1] != 0)
        return "RUN does not end with a NUL";
    char **strings = calloc(argc + envc + 2, sizeof *strings);
    if (strings == NULL)
        return "out of memory";
    request->cwd = text;
    text += strlen(text) + 1;
    for (size_t i = 0; i < argc + envc; i++) {
        if (text >= end) {
            free(strings);
            return "RUN has fewer strings than it says";
        }
        strings[i < argc ? i : i + 1] = (char *)(uintptr_t)text;
        text += strlen(text) + 1;
    }
    if (text != end) {
        free(strings);
        return "RUN has more strings than it says";
    }
    request->argv = strings;
    request->env = strings + argc + 1;
    return NULL;
}

static _Noreturn void child(const struct run_request *request, const int fd[3])
{
    sigset_t none;
    setsid(); /* its own process group, so that KILL reaches everything it starts */
    for (int i = 0; i < 3; i++)
        if (dup2(fd[i], i) < 0)
            _exit(126);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (request->flags & RUN_CLEAR_ENV)
        clearenv();
    for (char **e = request->env; *e != NULL; e++)
        putenv(*e);
    const char *name = request->argv[0];
    if (request->cwd[0] != 0 && chdir(request->cwd) != 0) {
        dprintf(2, "guestwire: cannot enter %s: %s\n", request->cwd, strerror(errno));
        _exit(126);
    }
    int argc = 0;
    while (request->argv[argc] != NULL)
        argc++;
    if (name[0] == '@') {
        int rc = 127;
        /* No exec, so close-on-exec does not help: a copy of our own end of stdin would keep its end from coming. */
        for (int i = 3; i < MAX_FD; i++)
            close(i);
        if (strcmp(name, "@put") == 0)
            rc = builtin_put(argc, request->argv);
        else if (strcmp(name, "@get") == 0)
            rc = builtin_get(argc, request->argv);
        else if (strcmp(name, "@load") == 0)
            rc = builtin_load(argc, request->argv);
        else if (strcmp(name, "@insmod") == 0)
            rc = builtin_insmod();
        else if (strcmp(name, "@mount") == 0)
            rc = builtin_mount(argc, request->argv);
        else if (strcmp(name, "@umount") == 0)
            rc = builtin_umount(argc, request->argv);
        else if (strcmp(name, "@pipe") == 0)
            rc = builtin_pipe(argc, request->argv);
        else
            dprintf(2, "guestwire: %s: no such builtin\n", name);
        fflush(NULL);
        _exit(rc);
    }
    execvp(name, request->argv);
    int error = errno;
    dprintf(2, "guestwire: cannot run %s: %s\n", name, strerror(error));
    _exit(error == ENOENT ? 127 : 126); /* as shells do */
}

/* pair[i] = {child's end, our end}. All close-on-exec, ours non-blocking. */
static bool make_pipes(int pair[3][2], bool no_stdin)
{
    memset(pair, -1, sizeof(int[3][2]));
    for (int i = 0; i < 3; i++) {
        int fd[2];
        if (i == 0 && no_stdin) {
            pair[0][0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
            if (pair[0][0] < 0)
                return false;
            continue;
        }
        if (pipe2(fd, O_CLOEXEC) != 0)
            return false;
        pair[i][0] = i == 0 ? fd[0] : fd[1];
        pair[i][1] = i == 0 ? fd[1] : fd[0];
        fcntl(pair[i][1], F_SETFL, O_NONBLOCK);
    }
    return true;
}

static void close_pipes(int pair[3][2], int end)
{
    for (int i = 0; i < 3; i++)
        close_fd(&pair[i][end]);
}

void command_run(const struct frame *frame)
{
    struct run_request request = {0};
    struct command *slot = NULL;
    int pair[3][2];
    for (size_t i = 0; i < MAX_COMMANDS && slot == NULL; i++)
        if (commands[i].id == 0)
            slot = &commands[i];
    if (frame->id == 0 || find(frame->id) != NULL) {
        out_error(frame->id, "RUN with an id that is 0 or in use");
        return;
    }
    if (slot == NULL) {
        out_error(frame->id, "%u commands are running already", MAX_COMMANDS);
        return;
    }
    const char *why = parse_run(frame, &request);
    if (why != NULL) {
        out_error(frame->id, "%s", why);
        return;
    }
    bool no_stdin = (request.flags & RUN_NO_STDIN) != 0;
    uint8_t *input = no_stdin ? NULL : malloc(STDIN_WINDOW);
    pid_t pid = -1;
    if (make_pipes(pair, no_stdin) && (no_stdin || input != NULL))
        pid = fork();
    if (pid == 0) {
        int theirs[3] = {pair[0][0], pair[1][0], pair[2][0]};
        child(&request, theirs);
    }
    int error = errno;
    free(request.argv);
    close_pipes(pair, 0);
    if (pid < 0) {
        close_pipes(pair, 1);
        free(input);
        out_error(frame->id, "cannot start a process: %s", strerror(error));
        return;
    }
    memset(slot, 0, sizeof *slot);
    slot->id = frame->id;
    slot->pid = pid;
    slot->input = input;
    slot->started_us = monotonic_us();
    slot->ended[0] = no_stdin;
    for (int i = 0; i < 3; i++) {
        slot->fd[i] = pair[i][1];
        slot->credit[i] = i == 0 ? 0 : request.window;
    }
    uint8_t payload[4];
    put_le32(payload, (uint32_t)pid);
    out_frame(FRAME_STARTED, frame->id, payload, sizeof payload);
}

void command_stdin(const struct frame *frame)
{
    struct command *c = find(frame->id);
    if (c == NULL || c->reaped)
        return; /* input crossing the command's exit on the wire is nobody's mistake */
    if (c->ended[0] || c->input_size + c->credit[0] + frame->length > STDIN_WINDOW) {
        out_error(frame->id, c->ended[0] ? "input after its end" : "input beyond the window");
        send_signal(c, SIGKILL);
        return;
    }
    if (frame->length == 0)
        c->ended[0] = true;
    else if (c->fd[0] < 0)
        c->credit[0] += frame->length; /* nobody reads it any more: window straight back */
    else {
        memmove(c->input, c->input + c->input_start, c->input_size);
        c->input_start = 0;
        memcpy(c->input + c->input_size, frame->payload, frame->length);
        c->input_size += frame->length;
    }
    command_feed(c);
}

void command_credit(const struct frame *frame)
{
    struct command *c = find(frame->id);
    uint32_t stream = frame->length == 8 ? get_le32(frame->payload) : 0;
    if (stream != 1 && stream != 2) {
        out_error(frame->id, "malformed CREDIT");
        return;
    }
    if (c == NULL)
        return;
    uint32_t more = get_le32(frame->payload + 4);
    c->credit[stream] = more > UINT32_MAX - c->credit[stream] ? UINT32_MAX : c->credit[stream] + more;
}

void command_kill(const struct frame *frame)
{
    struct command *c = find(frame->id);
    uint32_t signo = frame->length == 4 ? get_le32(frame->payload) : 0;
    if (signo < 1 || signo > 64) {
        out_error(frame->id, "malformed KILL");
        return;
    }
    if (c != NULL && !c->reaped)
        send_signal(c, (int)signo);
}

void command_reap(void)
{
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        for (size_t i = 0; i < MAX_COMMANDS; i++) {
            struct command *c = &commands[i];
            if (c->id == 0 || c->pid != pid || c->reaped)
                continue;
            c->reaped = true;
            c->status = status;
            c->ended_us = monotonic_us();
            c->cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u +
                        (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
            close_fd(&c->fd[0]);
        }
}

void command_feed(struct command *c)
{
    while (c->fd[0] >= 0 && c->input_size != 0) {
        ssize_t n = write(c->fd[0], c->input + c->input_start, c->input_size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) { /* EPIPE: the command closed its input; the rest is dropped, as a shell pipeline would */
            n = (ssize_t)c->input_size;
            close_fd(&c->fd[0]);
        }
        c->input_start += (size_t)n;
        c->input_size -= (size_t)n;
        c->credit[0] += (uint32_t)n;
    }
    if (c->ended[0] && c->input_size == 0)
        close_fd(&c->fd[0]);
}

void command_drain(struct command *c, int stream)
{
    static uint8_t chunk[DATA_CHUNK];
    uint16_t type = stream == 1 ? FRAME_STDOUT : FRAME_STDERR;
    size_t want = c->credit[stream] < DATA_CHUNK ? c->credit[stream] : DATA_CHUNK;
    if (c->fd[stream] < 0 || out_room() < OUT_RESERVE + FRAME_HEADER + DATA_CHUNK)
        return;
    if (want == 0 && !c->reaped)
        return;
    ssize_t n = want == 0 ? -1 : read(c->fd[stream], chunk, want);
    if (n > 0) {
        c->credit[stream] -= (uint32_t)n;
        out_frame(type, c->id, chunk, (size_t)n);
    } else if (want != 0 && (n == 0 || (errno != EINTR && (errno != EAGAIN || c->reaped)))) {
        close_fd(&c->fd[stream]); /* end of file, or all drained after the process ended */
        c->ended[stream] = true;
        out_frame(type, c->id, NULL, 0);
    }
}

void command_settle(struct command *c)
{
    uint8_t payload[24];
    if (out_room() < 4096)
        return;
    /* Half a window at a time: a CREDIT per small write would cost more than the data. */
    if (!c->reaped && c->credit[0] >= (c->input_size == 0 ? 1 : STDIN_WINDOW / 2) && !c->ended[0]) {
        put_le32(payload, 0);
        put_le32(payload + 4, c->credit[0]);
        c->credit[0] = 0;
        out_frame(FRAME_CREDIT, c->id, payload, 8);
    }
    if (!c->reaped || !c->ended[1] || !c->ended[2])
        return;
    bool killed = WIFSIGNALED(c->status);
    put_le32(payload, killed ? 1 : 0);
    put_le32(payload + 4, (uint32_t)(killed ? WTERMSIG(c->status) : WEXITSTATUS(c->status)));
    put_le64(payload + 8, c->ended_us - c->started_us);
    put_le64(payload + 16, c->cpu_us);
    out_frame(FRAME_EXIT, c->id, payload, sizeof payload);
    free(c->input);
    memset(c, 0, sizeof *c);
}

void command_kill_all(void)
{
    for (size_t i = 0; i < MAX_COMMANDS; i++)
        if (commands[i].id != 0 && !commands[i].reaped)
            send_signal(&commands[i], SIGKILL);
}
