/* connect() in a child: after fork, and (as some runtimes do) between vfork and _exit.
 *
 * children IP PORT
 *
 * Prints what connect said, and the peer's port that the parent sees on the same socket. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in address = {.sin_family = AF_INET};

static void child(int fd)
{
    _exit(connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0);
}

static int peer_port(int fd)
{
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;

    return getpeername(fd, (struct sockaddr *)&peer, &length) < 0 ? -errno : ntohs(peer.sin_port);
}

int main(int count, char **arguments)
{
    int before, after, status;
    pid_t pid;

    if (count != 3 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));

    before = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(before, (struct sockaddr *)&address, sizeof address) < 0)
        return 3;
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        printf("inherited=%d\n", peer_port(before));
        fflush(stdout);
        after = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(after, (struct sockaddr *)&address, sizeof address) < 0)
            _exit(errno);
        _exit(peer_port(after) == atoi(arguments[2]) ? 0 : 255);
    }
    waitpid(pid, &status, 0);
    printf("fork=%d\n", WEXITSTATUS(status));

    after = socket(AF_INET, SOCK_STREAM, 0);
    pid = vfork();
    if (pid == 0)
        child(after);
    waitpid(pid, &status, 0);
    printf("vfork=%d\npeer=%d\n", WEXITSTATUS(status), peer_port(after));
    return 0;
}
