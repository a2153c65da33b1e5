/* What a setuid program does with its caller's environment: connects, then becomes its owner wholly
 * and runs env, which prints what a child would get.
 *
 * privileged IP PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0), result;

    if (count != 3 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    result = connect(fd, (struct sockaddr *)&address, sizeof address);
    printf("connect=%d\nsecure=%lu\neuid=%d\n", result < 0 ? errno : 0, getauxval(AT_SECURE),
           (int)geteuid());
    fflush(stdout);
    if (setresuid(geteuid(), geteuid(), geteuid()) < 0)
        return 3;
    execl("/usr/bin/env", "env", NULL);
    return 4;
}
