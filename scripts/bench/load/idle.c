/* Connections that are open and do nothing. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MESSAGE = 64 };

static bool exchange_on(int fd, uint64_t number, struct result *result)
{
    char message[MESSAGE], answer[MESSAGE];
    int error;

    fill_message(message, MESSAGE, ECHO, number);
    error = exchange(fd, message, answer, MESSAGE);
    if (error != 0) {
        count_failure(&result->failures, error);
    }
    return error == 0;
}

/* Opens them, uses each once, prints "open" and keeps them until there is a line on stdin; then
 * each has to be alive still. */
void idle(const struct sockaddr_in *to, long connections, struct result *result)
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
        good = exchange_on(fds[open], (uint64_t)open, result);
        open++;
    }
    if (open == connections && good) {
        puts("open");
        fflush(stdout);
        getchar();
        for (long i = 0; i < open && good; i++) {
            good = exchange_on(fds[i], (uint64_t)i, result);
        }
    }
    result->amount = result->amount_with_warm_up = (uint64_t)open;
    for (long i = 0; i < open; i++) {
        close(fds[i]);
    }
    free(fds);
}
