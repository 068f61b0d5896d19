/* An app that is ready at once: says READY=1 on NOTIFY_SOCKET (sd_notify(3)) and sleeps. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    if (path != NULL) {
        struct sockaddr_un to = { .sun_family = AF_UNIX };
        size_t length = strlen(path);
        if (length >= sizeof to.sun_path)
            return 64;
        memcpy(to.sun_path, path, length);
        if (to.sun_path[0] == '@')
            to.sun_path[0] = '\0';
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        static const char ready[] = "READY=1";
        if (fd < 0 || sendto(fd, ready, sizeof ready - 1, 0, (struct sockaddr *)&to,
                             offsetof(struct sockaddr_un, sun_path) + length) < 0)
            return 1;
        close(fd);
    }
    for (;;)
        pause();
}
