/* Guestwire's guest agent: what its files share.
 *
 * Theory of operation
 * -------------------
 * The agent is the guest's init (rdinit=) and its only channel to the host is one virtio-serial port: never the network
 * card or the vsock, which are what is being tested. It is one static program, one thread, one poll(2) loop:
 *
 *   boot.c     mounts, modules, loopback, finding the port by its name in sysfs (there is no udev in the guest)
 *   root.c     a root on a disk instead of the initramfs
 *   disk.c     block devices and what is on them
 *   frame.c    framing: a 12-byte header and at most 64 KiB of payload; pure functions over bytes
 *   serve.c    the loop: port in, port out, children's pipes, SIGCHLD
 *   command.c  one running command: fork, pipes, credit, exit status
 *   file.c     builtins @put and @get
 *   mount.c    builtins @insmod, @mount and @umount: directories of the host
 *   pipe.c     builtin @pipe: a TCP or vsock connection as standard input and output
 *   load.c     builtin @load: bulk, request/response and connect load over TCP and vsock
 *
 * Nothing is unbounded: the port's output queue is fixed, a child's pipe is read only while the host has granted credit
 * for that stream and the queue has room, and the host may send standard input only within the window the agent grants.
 * So one slow reader holds up only its own command.
 *
 * Framing errors are final: on a byte stream nothing after them can be trusted. The agent says what it saw in an ERROR
 * frame with id 0, kills every command and ends (as init: powers off). A well-framed request that makes no sense is
 * answered by ERROR with its id and changes nothing else.
 */
#ifndef GUESTWIRE_AGENT_H
#define GUESTWIRE_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define AGENT_VERSION 1u
#define AGENT_PORT_NAME "guestwire.agent"
#define AGENT_MODULES_FILE "/.guestwire/modules"
#define AGENT_INSTALL_FILE "/.guestwire/busybox" /* names a busybox that is to make its links */

#define FRAME_HEADER 12u          /* bytes: u32 payload length, u16 type, u16 zero, u32 id; little-endian */
#define FRAME_MAX_PAYLOAD 65536u  /* bytes */
#define STDIN_WINDOW 65536u       /* bytes of standard input the host may have in flight per command */
#define DATA_CHUNK 16384u         /* bytes read from a child's pipe at once */
#define MAX_COMMANDS 64u
#define OUT_CAPACITY 262144u      /* bytes queued for the port */
#define OUT_RESERVE 32768u        /* of which data frames leave this much to control frames */

enum frame_type {
    FRAME_HELLO = 1,    /* both ways: u32 version, u32 zero; from the agent followed by "key=value\n" text */
    FRAME_RUN = 2,      /* host: see run_request in command.c */
    FRAME_STDIN = 3,    /* host: bytes; empty means end of input */
    FRAME_CREDIT = 4,   /* both: u32 stream (0 stdin from the agent, 1 stdout, 2 stderr from the host), u32 bytes */
    FRAME_KILL = 5,     /* host: u32 signal, for the command's whole process group */
    FRAME_POWEROFF = 6, /* host: empty */
    FRAME_SEED = 7,     /* host: 1..512 random bytes, credited to the kernel's pool; answered by DONE */
    FRAME_TIME = 8,     /* host: u64 nanoseconds since 1970; answered by DONE */
    FRAME_STARTED = 16, /* agent: u32 pid */
    FRAME_STDOUT = 17,  /* agent: bytes; empty means end of stream */
    FRAME_STDERR = 18,  /* agent: likewise */
    FRAME_EXIT = 19,    /* agent: u32 kind (0 exited, 1 killed by a signal), u32 code, u64 wall us, u64 cpu us */
    FRAME_DONE = 20,    /* agent: u32 errno, 0 for success */
    FRAME_ERROR = 21,   /* agent: text */
};

struct frame {
    uint32_t length;
    uint16_t type;
    uint32_t id;
    const uint8_t *payload;
};

/* frame.c */
uint16_t get_le16(const uint8_t *p);
uint32_t get_le32(const uint8_t *p);
uint64_t get_le64(const uint8_t *p);
void put_le32(uint8_t *p, uint32_t v);
void put_le64(uint8_t *p, uint64_t v);
/* One frame at the start of buf. 1: complete, *used bytes of buf; 0: more bytes needed; -1: can never be a frame. */
int frame_parse(const uint8_t *buf, size_t size, struct frame *out, size_t *used, const char **why);
/* The output queue. Room is checked by the caller with out_room(); out_frame() aborts on a caller who did not. */
size_t out_room(void);
size_t out_pending(const uint8_t **bytes);
void out_consume(size_t n);
void out_frame(uint16_t type, uint32_t id, const void *payload, size_t length);
void out_error(uint32_t id, const char *format, ...) __attribute__((format(printf, 2, 3)));
void out_done(uint32_t id, int error);

/* command.c */
struct command {
    uint32_t id; /* 0: slot free */
    pid_t pid;
    int fd[3];              /* our ends of stdin, stdout, stderr; -1 when closed */
    uint32_t credit[3];     /* [1], [2]: bytes we may still send; [0]: bytes of window to give back */
    bool ended[3];          /* [0]: host said end of input; [1], [2]: end of stream sent */
    bool reaped;
    int status;             /* from wait4 */
    uint64_t started_us, ended_us, cpu_us;
    uint8_t *input;         /* STDIN_WINDOW bytes: received, not yet written to the child */
    size_t input_start, input_size;
};
extern struct command commands[MAX_COMMANDS];
void command_run(const struct frame *frame);
void command_stdin(const struct frame *frame);
void command_credit(const struct frame *frame);
void command_kill(const struct frame *frame);
void command_reap(void);
void command_feed(struct command *c);                /* write queued input to the child */
void command_drain(struct command *c, int stream);   /* read the child's output and queue it */
void command_settle(struct command *c);              /* give back window, report the exit when all is drained */
void command_kill_all(void);
uint64_t monotonic_us(void);

/* file.c, load.c, pipe.c: run in the forked child; the return value is its exit status */
int builtin_put(int argc, char **argv);
int builtin_get(int argc, char **argv);
int builtin_load(int argc, char **argv);
int builtin_pipe(int argc, char **argv);
int builtin_insmod(void);
int builtin_mount(int argc, char **argv);
int builtin_umount(int argc, char **argv);
int copy_stream(int from, int to); /* until the end; 0, or -1 with errno */

/* boot.c */
void boot_system(void);
void boot_load_modules(const char *list); /* a file of "path[ parameters]" lines; none is fine */
int boot_open_port(int wait_ms);
size_t boot_report(char *text, size_t size); /* "key=value\n" lines about how booting went */
void boot_problem(const char *format, ...) __attribute__((format(printf, 1, 2))); /* goes into that report */

/* root.c */
bool root_wanted(void); /* the command line names a root on a disk */
bool root_mount(void);  /* finds and mounts it */
void root_enter(char *name); /* process 1 becomes its init; a child of it, `name` its argv[0], returns from here in it */
bool root_power_off(void);   /* have that init shut the machine down; false: there is none, or it cannot */

extern bool is_guest; /* we are a guest's agent and not a test's on the host */

/* serve.c */
int serve(int fd); /* until POWEROFF (0), end of the stream (1) or a framing error (2) */

void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* one line to the console */

#endif
