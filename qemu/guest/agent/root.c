/* A root on a disk: found, mounted and made the guest's, with the agent going on as a process of it.
 *
 * With the word guestwire.root=disk on the kernel's command line the agent looks at every partition and disk for a file
 * system that has an init (root= and rootflags= choose, as they do for the kernel), mounts it, and forks. Process 1
 * changes into it and becomes its init, systemd say, which needs to know nothing of us; the child changes its root as
 * well and serves the port. What it needs of ours is in its memory by then.
 *
 * The modules of a file system are named in AGENT_MODULES_FILE.NAME, and loaded when a superblock says they are needed.
 * A disk with the serial MODULES_SERIAL has the modules of the kernel, which the root proper need not have: it becomes
 * lib/modules/RELEASE there, so that its modprobe and udev find them. */
#define _GNU_SOURCE
#include "agent.h"
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEW_ROOT "/.guestwire/root"
#define MODULES_SERIAL "guestwire-mods" /* virtio-blk has room for 20 bytes */
#define MAX_DEVICES 48
#define WAIT_STEPS 500 /* of 10 ms, for the disk to appear */

static const char *const inits[] = {"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"};
static const char *found_init;
static bool entered;

/* The last NAME=VALUE of the kernel's command line; "" if there is none. */
static void cmdline_value(const char *name, char *value, size_t size)
{
    char line[4096], *rest = line, *word;
    FILE *file = fopen("/proc/cmdline", "re");
    value[0] = 0;
    line[0] = 0;
    if (file == NULL || fgets(line, sizeof line, file) == NULL)
        line[0] = 0;
    if (file != NULL)
        fclose(file);
    while ((word = strsep(&rest, " \n")) != NULL)
        if (strncmp(word, name, strlen(name)) == 0 && word[strlen(name)] == '=')
            snprintf(value, size, "%s", word + strlen(name) + 1);
}

bool root_wanted(void)
{
    char value[16];
    cmdline_value("guestwire.root", value, sizeof value);
    return strcmp(value, "disk") == 0;
}

/* Whether what is mounted at NEW_ROOT has an init that can be run. A link is looked at as a link: it may be absolute. */
static bool has_init(void)
{
    for (size_t i = 0; i < sizeof inits / sizeof inits[0]; i++) {
        char path[128];
        struct stat status;
        snprintf(path, sizeof path, NEW_ROOT "%s", inits[i]);
        if (lstat(path, &status) == 0 && (S_ISLNK(status.st_mode) || (status.st_mode & 0111) != 0)) {
            found_init = inits[i];
            return true;
        }
    }
    return false;
}

/* NULL, or what is the matter with it. */
static const char *mount_root(const struct disk *disk, const char *flags)
{
    char modules[128];
    const char *options = flags[0] != 0 ? flags : NULL;
    if (disk->type == NULL)
        return "no known file system";
    snprintf(modules, sizeof modules, AGENT_MODULES_FILE ".%s", disk->type);
    boot_load_modules(modules);
    if (mount(disk->device, NEW_ROOT, disk->type, 0, options) != 0 &&
        mount(disk->device, NEW_ROOT, disk->type, MS_RDONLY, options) != 0) {
        say("cannot mount %s as %s: %s", disk->device, disk->type, strerror(errno));
        return "cannot be mounted";
    }
    if (has_init())
        return NULL;
    umount2(NEW_ROOT, 0);
    return "no init on it";
}

static void mount_modules(const struct disk *disk)
{
    char base[128], place[256], dep[300];
    struct stat status;
    struct utsname system = {0};
    uname(&system);
    bool merged = lstat(NEW_ROOT "/lib", &status) == 0 && S_ISLNK(status.st_mode);
    snprintf(base, sizeof base, NEW_ROOT "%s/lib/modules", merged ? "/usr" : "");
    snprintf(place, sizeof place, "%s/%s", base, system.release);
    snprintf(dep, sizeof dep, "%s/modules.dep", place);
    if (access(dep, F_OK) == 0)
        return; /* it has this kernel's itself */
    mkdir(base, 0755);
    if (mkdir(place, 0755) != 0 && errno == EROFS) {
        mount("tmpfs", base, "tmpfs", 0, "mode=0755");
        mkdir(place, 0755);
    }
    boot_load_modules(AGENT_MODULES_FILE ".ext4");
    if (mount(disk->device, place, "ext4", MS_RDONLY, NULL) != 0)
        say("the kernel's modules cannot be put at %s: %s", place + strlen(NEW_ROOT), strerror(errno));
}

bool root_mount(void)
{
    static struct disk disks[MAX_DEVICES];
    char wanted[160], flags[256], seen[200] = "";
    const struct disk *root = NULL, *modules = NULL;
    size_t n;
    cmdline_value("root", wanted, sizeof wanted);
    cmdline_value("rootflags", flags, sizeof flags);
    mkdir(NEW_ROOT, 0755);
    for (int step = 0; (n = disk_list(disks, MAX_DEVICES)) == 0 && step < WAIT_STEPS; step++)
        usleep(10 * 1000);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(disks[i].serial, MODULES_SERIAL) == 0) {
            modules = &disks[i];
            continue;
        }
        if (root != NULL || (wanted[0] != 0 && !disk_is(&disks[i], wanted)))
            continue;
        const char *why = mount_root(&disks[i], flags);
        if (why == NULL)
            root = &disks[i];
        else
            snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s%.31s: %s", seen[0] != 0 ? ", " : "",
                     disks[i].name, why);
    }
    if (root != NULL) {
        say("root is %s, init is %s", root->device, found_init);
        if (modules != NULL)
            mount_modules(modules);
        return true;
    }
    if (wanted[0] != 0 && seen[0] == 0)
        boot_problem("no partition or disk is root=%s", wanted);
    else
        boot_problem("no root with an init was found (%s)", seen[0] != 0 ? seen : "no disk");
    return false;
}

static void carry(const char *what)
{
    char target[64];
    snprintf(target, sizeof target, NEW_ROOT "%s", what);
    mkdir(target, 0755);
    if (mount(what, target, NULL, MS_MOVE, NULL) != 0)
        boot_problem("cannot move %s into the disk's root: %s", what, strerror(errno));
}

void root_enter(char *name)
{
    carry("/dev");
    carry("/proc");
    carry("/sys");
    if (chdir(NEW_ROOT) != 0)
        boot_problem("cannot enter the disk's root: %s", strerror(errno));
    int started[2] = {-1, -1};
    if (pipe2(started, O_CLOEXEC) != 0)
        boot_problem("cannot make a pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0)
        boot_problem("cannot fork: %s", strerror(errno));
    if (child > 0) { /* process 1 */
        char *const arguments[] = {(char *)(uintptr_t)found_init, NULL};
        if (mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0)
            execv(found_init, arguments);
        say("cannot run %s: %s", found_init, strerror(errno));
        _exit(1); /* the kernel panics, and says so */
    }
    char none;
    close(started[1]);
    while (read(started[0], &none, 1) < 0 && errno == EINTR)
        ; /* its end: process 1 has become the init */
    close(started[0]);
    setsid();
    name[0] = '@'; /* systemd then lets it live until the very end (systemd.io/ROOT_STORAGE_DAEMONS) */
    if (chroot(".") != 0 || chdir("/") != 0)
        boot_problem("cannot change into the disk's root: %s", strerror(errno));
    entered = true;
}

bool root_power_off(void)
{
    int status = -1;
    if (!entered)
        return false;
    if (access("/run/systemd/system", F_OK) == 0) /* sd_booted(3) */
        return kill(1, SIGRTMIN + 4) == 0;        /* systemd(1): starts poweroff.target */
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execlp("poweroff", "poweroff", (char *)NULL);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}
