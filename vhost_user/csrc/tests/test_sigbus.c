/* SPDX-License-Identifier: MPL-2.0 */
/* The SIGBUS guard among other handlers: whose fault it is decides who gets it, in whatever order they were installed. */
#define _GNU_SOURCE
#include "../sigbus.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "guest.h"

#define PAGE 4096

/* A page whose file is gone: touching it is a bus error. */
static volatile uint8_t *dead_page(void) {
    int fd = memfd_create("dead", 0);
    CHECK(fd >= 0 && ftruncate(fd, PAGE) == 0);
    uint8_t *page = gw_map(fd, PAGE, 0);
    CHECK(page != NULL && ftruncate(fd, 0) == 0);
    close(fd);
    return page;
}

static volatile uint8_t *guarded_page, *foreign_page;
static struct gw_memory memory;
static struct gw_log dead_log;

/* Foreign handlers: they note who they are and leave the way a guard of another library would. */
static sigjmp_buf foreign_jump;
static volatile int caught;
static struct sigaction before_chaining;

static void first_handler(int number) {
    (void)number;
    caught = caught * 10 + 1;
    siglongjmp(foreign_jump, 1);
}

static void second_handler(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)info;
    (void)context;
    caught = caught * 10 + 2;
    siglongjmp(foreign_jump, 1);
}

/* One that hands on to whoever it found when it was installed. */
static void chaining_handler(int number, siginfo_t *info, void *context) {
    caught = caught * 10 + 3;
    CHECK(before_chaining.sa_flags & SA_SIGINFO);
    before_chaining.sa_sigaction(number, info, context);
}

static void install_plain(void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
}

static void install_info(void (*handler)(int, siginfo_t *, void *), struct sigaction *old) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGBUS, &action, old) == 0);
}

static void *handler_in_force(void) {
    struct sigaction action;
    CHECK(sigaction(SIGBUS, NULL, &action) == 0);
    return action.sa_flags & SA_SIGINFO ? (void *)(uintptr_t)action.sa_sigaction : (void *)(uintptr_t)action.sa_handler;
}

/* Which foreign handlers a fault outside guest memory reaches, as digits. */
static int foreign_fault(void) {
    caught = 0;
    if (sigsetjmp(foreign_jump, 1) == 0) {
        (void)*foreign_page;
        CHECK(!"the fault was swallowed");
    }
    return caught;
}

/* 1 if a fault inside guest memory ends the burst and nobody else hears of it. `inside` runs within the burst. */
static int guarded_fault(volatile const uint8_t *page, const struct gw_log *log, void (*inside)(void)) {
    struct gw_guard guard;
    caught = 0;
    if (sigsetjmp(guard.jump, 0)) {
        gw_guard_leave(&guard);
        sigset_t blocked;
        CHECK(sigprocmask(SIG_BLOCK, NULL, &blocked) == 0 && !sigismember(&blocked, SIGBUS));
        return caught == 0;
    }
    CHECK_INT(gw_guard_enter(&guard, &memory, log), 0);
    if (inside != NULL)
        inside();
    (void)*page;
    CHECK(!"the fault was not noticed");
    return 0;
}

static void test_ours_and_theirs(void) {
    install_plain(first_handler);
    CHECK(guarded_fault(guarded_page, NULL, NULL));
    CHECK(guarded_fault(guarded_page, NULL, NULL)); /* the mask was not left blocked */
    CHECK(handler_in_force() == (void *)(uintptr_t)first_handler);
    CHECK_INT(foreign_fault(), 1);
    CHECK(guarded_fault(dead_log.bits, &dead_log, NULL));
    install_info(second_handler, NULL);
    CHECK(guarded_fault(guarded_page, NULL, NULL));
    CHECK(handler_in_force() == (void *)(uintptr_t)second_handler);
    CHECK_INT(foreign_fault(), 2);
}

static void test_a_thread_that_blocks_the_signal(void) {
    install_plain(first_handler);
    sigset_t bus, mask;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    CHECK(sigprocmask(SIG_BLOCK, &bus, &mask) == 0);
    struct gw_guard guard;
    if (sigsetjmp(guard.jump, 0) == 0) {
        CHECK_INT(gw_guard_enter(&guard, &memory, NULL), 0);
        (void)*guarded_page;
        CHECK(!"the fault was not noticed");
    }
    gw_guard_leave(&guard);
    CHECK(sigprocmask(SIG_SETMASK, &mask, &bus) == 0 && sigismember(&bus, SIGBUS)); /* still blocked, as it was */
}

static int inner_result;

static void foreign_fault_inside(void) {
    inner_result = foreign_fault();
    caught = 0;
}

static void test_a_foreign_fault_within_a_burst(void) {
    install_plain(first_handler);
    CHECK(guarded_fault(guarded_page, NULL, foreign_fault_inside));
    CHECK_INT(inner_result, 1);
    CHECK(guarded_fault(guarded_page, &dead_log, foreign_fault_inside));
    CHECK_INT(inner_result, 1);
}

static void install_second(void) { install_info(second_handler, NULL); }

static void test_a_handler_installed_within_a_burst_stays(void) {
    install_plain(first_handler);
    struct gw_guard guard;
    CHECK_INT(gw_guard_enter(&guard, &memory, NULL), 0);
    install_second();
    gw_guard_leave(&guard);
    CHECK(handler_in_force() == (void *)(uintptr_t)second_handler);
    CHECK_INT(foreign_fault(), 2);
    CHECK(guarded_fault(guarded_page, NULL, NULL)); /* and the next burst is guarded again */
}

static void test_a_chain_through_us_ends(void) {
    /* installed while ours was in force, and chaining to it */
    install_plain(first_handler);
    struct gw_guard guard;
    CHECK_INT(gw_guard_enter(&guard, &memory, NULL), 0);
    install_info(chaining_handler, &before_chaining);
    gw_guard_leave(&guard);
    CHECK_INT(foreign_fault(), 31);
    CHECK(guarded_fault(guarded_page, NULL, foreign_fault_inside));
    CHECK_INT(inner_result, 31);
    /* it goes, putting back what it found: ours, which the next burst finds in force and takes away */
    CHECK(sigaction(SIGBUS, &before_chaining, NULL) == 0);
    CHECK_INT(foreign_fault(), 1);
    CHECK(guarded_fault(guarded_page, NULL, NULL));
    CHECK(handler_in_force() == (void *)(uintptr_t)first_handler);
}

static void test_guards_nest_and_count(void) {
    install_plain(first_handler);
    struct gw_guard outer;
    CHECK_INT(gw_guard_enter(&outer, &memory, NULL), 0);
    CHECK(guarded_fault(guarded_page, NULL, NULL));
    CHECK(handler_in_force() != (void *)(uintptr_t)first_handler); /* the outer one still needs it */
    gw_guard_leave(&outer);
    CHECK(handler_in_force() == (void *)(uintptr_t)first_handler);
}

static void *fault_often(void *unused) {
    (void)unused;
    for (int i = 0; i < 500; i++)
        CHECK(guarded_fault(guarded_page, NULL, NULL));
    return NULL;
}

static void test_threads(void) {
    struct sigaction ignored = {.sa_handler = SIG_IGN};
    CHECK(sigaction(SIGBUS, &ignored, NULL) == 0);
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, fault_often, NULL) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(handler_in_force() == (void *)(uintptr_t)SIG_IGN);
}

/* In a child: `body` must end by SIGBUS (wanted = SIGBUS) or by exit(0) (wanted = 0). */
static void in_child(void (*body)(void), int wanted) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        body();
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (wanted)
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == wanted);
    else
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void within_a_burst(void (*what)(void)) {
    struct gw_guard guard;
    CHECK_INT(gw_guard_enter(&guard, &memory, NULL), 0);
    what();
    gw_guard_leave(&guard);
}

static void touch_foreign(void) { (void)*foreign_page; }
static void raise_bus(void) { CHECK(kill(getpid(), SIGBUS) == 0); }

static void default_and_fault(void) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    within_a_burst(touch_foreign);
}

static void default_and_kill(void) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    within_a_burst(raise_bus);
}

static void ignore_and_fault(void) {
    struct sigaction action = {.sa_handler = SIG_IGN};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    within_a_burst(touch_foreign);
}

static void ignore_and_kill(void) {
    struct sigaction action = {.sa_handler = SIG_IGN};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    within_a_burst(raise_bus);
}

/* More different predecessors than there are handlers of ours: refused, not stolen. */
#define STRANGER(i)                                                                                                    \
    static void stranger_##i(int number) { (void)number; }
STRANGER(0)
STRANGER(1)
STRANGER(2)
STRANGER(3)
STRANGER(4)
STRANGER(5)
STRANGER(6)
STRANGER(7)
STRANGER(8)

static void too_many(void) {
    void (*const strangers[])(int) = {stranger_0, stranger_1, stranger_2, stranger_3, stranger_4,
                                      stranger_5, stranger_6, stranger_7, stranger_8};
    int refused = 0;
    for (int i = 0; i < 9; i++) {
        install_plain(strangers[i]);
        struct gw_guard guard;
        if (gw_guard_enter(&guard, &memory, NULL) == 0)
            gw_guard_leave(&guard);
        else
            refused++;
        CHECK(handler_in_force() == (void *)(uintptr_t)strangers[i]);
    }
    CHECK(refused > 0);
    /* and a ring over such memory breaks instead of running unguarded */
    struct guest guest;
    open_guest(&guest, 8);
    guest.memory.unsealed = 1;
    gw_vring_set_features(guest.ring, INDIRECT_AND_EVENT);
    CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA, UVA + AVAIL, UVA + USED, 0, 0), 0);
    CHECK_INT(gw_vring_room(guest.ring), GW_BROKEN_GUARD);
    close_guest(&guest);
}

/* A ring whose memory goes away in the middle of copying. */
static void test_a_ring(void) {
    struct guest guest;
    open_guest(&guest, 8);
    guest.memory.region[3] = (struct gw_region){0x100000, PAGE, UVA + 0x100000, (uint8_t *)(uintptr_t)guarded_page};
    guest.memory.count = 4;
    guest.memory.unsealed = 1;
    start(&guest, INDIRECT_AND_EVENT, 0);
    desc(&guest, 0, BUFFERS, 100, D_NEXT, 1);
    desc(&guest, 1, 0x100000, 100, 0, 0);
    desc(&guest, 2, BUFFERS, 100, 0, 0);
    offer(&guest, 2);
    CHECK_INT(pop_all(&guest, 10, 10000, 10000), 1);
    offer(&guest, 0);
    CHECK_INT(pop_all(&guest, 10, 10000, 10000), GW_BROKEN_TRUNCATED);
    CHECK_INT(used_idx(&guest), 1);
    desc(&guest, 0, 0x100000, 100, D_WRITE, 0);
    CHECK_INT(push_one(&guest, GW_PUSH_ONE, 0, 0, "x", 1), GW_BROKEN_TRUNCATED);
    guest.memory.unsealed = 0;
    struct gw_log log = {dead_log.bits, dead_log.size, 1};
    gw_vring_set_log(guest.ring, &log);
    CHECK_INT(gw_vring_place(guest.ring, &guest.memory, 8, UVA, UVA + AVAIL, UVA + USED, 1, 0), 0);
    CHECK_INT(gw_vring_suppress(guest.ring), GW_BROKEN_TRUNCATED);
    guest.memory.count = 3;
    close_guest(&guest);
}

int main(void) {
    guarded_page = dead_page();
    foreign_page = dead_page();
    dead_log = (struct gw_log){(uint8_t *)(uintptr_t)dead_page(), PAGE, 1};
    memory.count = 1;
    memory.unsealed = 1;
    memory.region[0] = (struct gw_region){0, PAGE, UVA, (uint8_t *)(uintptr_t)guarded_page};
    test_ours_and_theirs();
    test_a_thread_that_blocks_the_signal();
    test_a_foreign_fault_within_a_burst();
    test_a_handler_installed_within_a_burst_stays();
    test_a_chain_through_us_ends();
    test_guards_nest_and_count();
    test_threads();
    in_child(default_and_fault, SIGBUS);
    in_child(default_and_kill, SIGBUS);
    in_child(ignore_and_fault, SIGBUS);
    in_child(ignore_and_kill, 0);
    in_child(too_many, 0);
    install_plain(first_handler);
    test_a_ring();
    puts("ok");
    return 0;
}
