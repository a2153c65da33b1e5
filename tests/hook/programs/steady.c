/* Connects blocking sockets while a handler runs all the time, and looks whether they are blocking.
 *
 * steady COUNT IP PORT   IPv4; prints how often they were not */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t current, looked, nonblocking;

static void handler(int number)
{
    int saved = errno;

    (void)number;
    looked++;
    nonblocking += (fcntl(current, F_GETFL) & O_NONBLOCK) != 0;
    errno = saved;
}

int main(int count, char **arguments)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    struct sockaddr_in address = {.sin_family = AF_INET};
    int result = 0;

    if (count != 4 || inet_pton(AF_INET, arguments[2], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[3]));
    sigaction(SIGALRM, &action, NULL);
    for (int i = atoi(arguments[1]); i > 0; i--) {
        current = socket(AF_INET, SOCK_STREAM, 0);
        setitimer(ITIMER_REAL, &every, NULL);
        result = connect(current, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0;
        setitimer(ITIMER_REAL, &never, NULL);
        close(current);
    }
    printf("connect=%d\nlooked=%d\nnonblocking=%d\n", result, looked > 0, (int)nonblocking);
    return 0;
}
