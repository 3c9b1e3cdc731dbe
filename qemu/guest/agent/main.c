/* As init (pid 1): boot, serve the port, power off. With `--fd N`: serve that descriptor, for tests on the host. With
 * `@load ...` and the like: run that builtin directly. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

#define PORT_WAIT_MS 10000

bool is_guest;

void say(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text - 1, format, args);
    va_end(args);
    size_t size = n < 0 ? 0 : (size_t)n < sizeof text - 1 ? (size_t)n : sizeof text - 2;
    text[size] = 0;
    dprintf(2, "guestwire-agent: %s\n", text);
}

static _Noreturn void init_main(char *name)
{
    is_guest = true;
    boot_system();
    int fd = boot_open_port(PORT_WAIT_MS);
    if (fd >= 0 && root_wanted() && root_mount())
        root_enter(name);
    if (fd < 0) {
        say("no virtio-serial port named %s: was virtio_console loaded?", AGENT_PORT_NAME);
    } else {
        say("ready");
        int result = serve(fd);
        if (result != 0)
            say("serving ended with %d", result);
        else if (root_power_off())
            for (;;)
                pause(); /* its init ends what runs, unmounts, and switches the machine off */
    }
    sync();
    reboot(RB_POWER_OFF);
    say("cannot power off: %s", strerror(errno));
    for (;;)
        pause(); /* an init that returns is a kernel panic */
}

int main(int argc, char **argv)
{
    if (getpid() == 1)
        init_main(argv[0]);
    if (argc == 3 && strcmp(argv[1], "--fd") == 0)
        return serve(atoi(argv[2]));
    if (argc >= 2 && strcmp(argv[1], "@load") == 0)
        return builtin_load(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "@put") == 0)
        return builtin_put(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "@get") == 0)
        return builtin_get(argc - 1, argv + 1);
    dprintf(2, "usage: %s --fd N | @load ... | @put PATH MODE | @get PATH\n", argv[0]);
    return 2;
}
