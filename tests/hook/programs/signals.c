/* A handler runs every 50 ms while connect() blocks.
 *
 * signals restart|interrupt|timed REPORT_FD IP PORT
 *
 * timed: as restart, but with SO_SNDTIMEO
 *
 * With its stdio closed, so that the socket is descriptor 0 and the next free ones are 1 and 2: the
 * handler sees whether somebody took them. Writes "." to REPORT_FD for each signal, then a line. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int report;
static volatile sig_atomic_t stolen;

static void handler(int number)
{
    int saved = errno;

    (void)number;
    if (fcntl(1, F_GETFD) >= 0 || fcntl(2, F_GETFD) >= 0)
        stolen = 1;
    if (write(report, ".", 1) < 0)
        _exit(3);
    errno = saved;
}

int main(int count, char **arguments)
{
    struct sigaction action = {.sa_handler = handler};
    struct itimerval every = {{0, 50000}, {0, 50000}}, never = {{0, 0}, {0, 0}};
    struct timeval timeout = {10, 0};
    struct sockaddr_in address = {.sin_family = AF_INET};
    char line[64];
    int fd, result, error;

    if (count != 5 || inet_pton(AF_INET, arguments[3], &address.sin_addr) != 1)
        return 2;
    report = atoi(arguments[2]);
    address.sin_port = htons((uint16_t)atoi(arguments[4]));
    sigaction(SIGSEGV, &action, NULL); /* as many runtimes have one */
    if (strcmp(arguments[1], "interrupt") != 0)
        action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, NULL);
    for (fd = 0; fd < 3; fd++)
        close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (strcmp(arguments[1], "timed") == 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    setitimer(ITIMER_REAL, &every, NULL);
    result = connect(fd, (struct sockaddr *)&address, sizeof address);
    error = result < 0 ? errno : 0;
    setitimer(ITIMER_REAL, &never, NULL);
    snprintf(line, sizeof line, "\nfd=%d connect=%d stolen=%d blocking=%d\n", fd, error,
             (int)stolen, !(fcntl(fd, F_GETFL) & O_NONBLOCK));
    return write(report, line, strlen(line)) < 0;
}
