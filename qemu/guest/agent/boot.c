/* What an init has to do before anything else can run. Every step that fails is said on the console and in the report
 * the host reads with HELLO; none of them stops the boot, because a guest that can say what is wrong beats one that
 * cannot. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char problems[2048]; /* "problem=...\n" lines */

void boot_problem(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    say("%s", text);
    size_t used = strlen(problems);
    snprintf(problems + used, sizeof problems - used, "problem=%s\n", text);
}

static void mount_at(const char *type, const char *where, unsigned long flags, const char *data)
{
    mkdir(where, 0755);
    if (mount(type, where, type, flags, data) != 0 && errno != EBUSY)
        boot_problem("cannot mount %s on %s: %s", type, where, strerror(errno));
}

static void load_module(char *line)
{
    /* "path[ parameters]" */
    char *parameters = strchr(line, ' ');
    if (parameters != NULL)
        *parameters++ = 0;
    int fd = open(line, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, parameters == NULL ? "" : parameters, 0) != 0 && errno != EEXIST))
        boot_problem("cannot load module %s: %s", line, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void boot_load_modules(const char *path)
{
    char line[512];
    FILE *list = fopen(path, "re");
    if (list == NULL)
        return; /* a kernel with everything built in */
    while (fgets(line, sizeof line, list) != NULL) {
        line[strcspn(line, "\n")] = 0;
        if (line[0] != 0)
            load_module(line);
    }
    fclose(list);
}

/* A small sysfs or list file as a string without its trailing newline. */
static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    if (n < 0)
        return false;
    text[n] = 0;
    text[strcspn(text, "\n")] = 0;
    return true;
}

/* A busybox that could not be asked on the host which applets it has: it is for another architecture. */
static void install_busybox(void)
{
    char program[256];
    int status;
    if (!read_text(AGENT_INSTALL_FILE, program, sizeof program))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        execl(program, program, "--install", "-s", (char *)NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        boot_problem("%s could not make its links", program);
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        boot_problem("cannot bring lo up: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

void boot_system(void)
{
    mount_at("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
    for (int fd = open("/dev/console", O_RDWR); fd >= 0 && fd < 2; fd = dup(fd))
        ; /* fd 0 to 2 exist whatever the kernel did; extra ones are closed below */
    mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");
    mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
    for (int fd = 3; fd < 16; fd++)
        close(fd);
    install_busybox();
    boot_load_modules(AGENT_MODULES_FILE);
    loopback_up();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("TERM", "linux", 1);
    unsetenv("BOOT_IMAGE");
    mkdir("/root", 0700);
    if (chdir("/") != 0)
        boot_problem("cannot enter /: %s", strerror(errno));
}

static int open_port_named(const char *entry)
{
    char path[320], text[64];
    unsigned major_number, minor_number;
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
    if (!read_text(path, text, sizeof text) || strcmp(text, AGENT_PORT_NAME) != 0)
        return -1;
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/dev", entry);
    if (!read_text(path, text, sizeof text) || sscanf(text, "%u:%u", &major_number, &minor_number) != 2)
        return -1;
    snprintf(path, sizeof path, "/dev/%s", entry);
    if (access(path, F_OK) != 0) /* a kernel without devtmpfs */
        mknod(path, S_IFCHR | 0600, makedev(major_number, minor_number));
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

int boot_open_port(int wait_ms)
{
    /* The name arrives by a control message after the driver was loaded: look again until it is there. */
    for (int waited = 0;; waited += 2) {
        int fd = -1;
        const struct dirent *entry;
        DIR *dir = opendir("/sys/class/virtio-ports");
        while (dir != NULL && fd < 0 && (entry = readdir(dir)) != NULL)
            if (entry->d_name[0] != '.')
                fd = open_port_named(entry->d_name);
        if (dir != NULL)
            closedir(dir);
        if (fd >= 0 || waited >= wait_ms)
            return fd;
        struct timespec wait = {.tv_nsec = 2 * 1000 * 1000};
        nanosleep(&wait, NULL);
    }
}

size_t boot_report(char *text, size_t size)
{
    struct utsname system = {0};
    uname(&system);
    int n = snprintf(text, size, "kernel=%s\nmachine=%s\npid=%d\nuptime_us=%llu\n%s", system.release, system.machine,
                     (int)getpid(), (unsigned long long)monotonic_us(), problems);
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}
