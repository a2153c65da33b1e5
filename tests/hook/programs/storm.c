/* Very many connects that fail. Prints how many said what.
 *
 * storm at-once COUNT IP PORT   non-blocking, all at the same time; every other one is asked by
 *                               SO_ERROR, the rest by a second connect
 * storm in-turn COUNT IP PORT   blocking, one after the other; also tells the memory of this
 *                               process (KiB, private and written to) after ten of them and at the
 * end */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ERRNOS = 200, WARMED_UP = 10 };

static struct sockaddr_in address = {.sin_family = AF_INET};
static int said[ERRNOS];

static int connect_one(int fd)
{
    return connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
}

static long dirty_kib(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = -1;

    while (file && fgets(line, sizeof line, file))
        sscanf(line, "Private_Dirty: %ld", &kib);
    if (file)
        fclose(file);
    return kib;
}

static void in_turn(int count)
{
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        said[connect_one(fd)]++;
        close(fd);
        if (i == WARMED_UP)
            printf("before=%ld\n", dirty_kib());
    }
    printf("after=%ld\n", dirty_kib());
}

static int ask(const struct pollfd *polled, int i)
{
    int error = 0;
    socklen_t length = sizeof error;

    if (i % 2)
        return connect_one(polled->fd);
    getsockopt(polled->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static void at_once(int count)
{
    struct rlimit limit;
    struct pollfd *polled = calloc((size_t)count, sizeof *polled);
    int failed = 0;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < count; i++) {
        polled[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        polled[i].events = POLLIN | POLLOUT;
        if (polled[i].fd < 0 || connect_one(polled[i].fd) != EINPROGRESS) {
            perror("connect");
            exit(2);
        }
    }
    printf("begun=%d\n", count);
    /* Nobody is asked before all have failed, nor in the middle of it: poll() takes no lock. */
    for (int i = 0; i < count; i++)
        poll(&polled[i], 1, 60000);
    for (int i = 0; i < count; i++)
        failed += poll(&polled[i], 1, 0) == 1 &&
                  polled[i].revents == (POLLIN | POLLOUT | POLLERR | POLLHUP);
    printf("failed=%d\n", failed);
    for (int i = 0; i < count; i++)
        said[ask(&polled[i], i)]++;
}

int main(int count, char **arguments)
{
    if (count != 5 || inet_pton(AF_INET, arguments[3], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[4]));
    if (strcmp(arguments[1], "at-once") == 0)
        at_once(atoi(arguments[2]));
    else
        in_turn(atoi(arguments[2]));
    for (int i = 0; i < ERRNOS; i++)
        if (said[i])
            printf("errno_%d=%d\n", i, said[i]);
    return 0;
}
