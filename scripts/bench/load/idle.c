/* Connections that are open and do nothing. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MESSAGE = 64 };

int echo_once(int fd, uint64_t number)
{
    char message[MESSAGE], answer[MESSAGE];

    fill_message(message, MESSAGE, ECHO, number);
    return exchange(fd, message, answer, MESSAGE);
}

static bool counted(int error, struct result *result)
{
    if (error != 0) {
        count_failure(&result->failures, error);
    }
    return error == 0;
}

/* Opens them, uses each once, prints "open" and keeps them until there is a line on stdin; then
 * each has to be alive still. */
void idle(const struct sockaddr_in *to, long connections, exchange_once *once,
          struct result *result)
{
    int *fds = allocate((size_t)connections, sizeof(*fds));
    long open = 0;
    bool good = true;

    while (good && open < connections) {
        fds[open] = open_connection(to);
        if (fds[open] < 0) {
            count_failure(&result->failures, errno);
            break;
        }
        good = counted(once(fds[open], (uint64_t)open), result);
        open++;
    }
    if (open == connections && good) {
        puts("open");
        fflush(stdout);
        getchar();
        for (long i = 0; i < open && good; i++) {
            good = counted(once(fds[i], (uint64_t)i), result);
        }
    }
    result->amount = result->amount_with_warm_up = (uint64_t)open;
    for (long i = 0; i < open; i++) {
        close(fds[i]);
    }
    free(fds);
}
