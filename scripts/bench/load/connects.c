/* Connect, one request, close, again and again, by threads that block: as most programs do it. It
 * is the server that closes first, as with HTTP's "Connection: close": where it is the client,
 * direct connections are so fast that they run out of ports (TIME_WAIT), and that would be
 * measured. And what a connect costs that stays as it is. */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct client {
    pthread_t thread;
    const struct sockaddr_in *to;
    struct span span;
    size_t size;
    struct result result;
};

static int connect_and_ask(const struct client *client, char *message, char *answer)
{
    int fd = open_connection(client->to), error;
    ssize_t got;

    if (fd < 0) {
        return errno;
    }
    error = exchange(fd, message, answer, client->size);
    if (error == 0) {
        got = recv(fd, answer, client->size, 0);
        error = got < 0 ? errno : got > 0 ? EPROTO : 0;
    }
    close(fd);
    return error;
}

static void *run(void *argument)
{
    struct client *client = argument;
    char *message = allocate(1, client->size), *answer = allocate(1, client->size);
    int64_t began = now_ns(), ended;

    fill_message(message, client->size, ONCE, (uint64_t)(uintptr_t)client);
    for (; began < client->span.end; began = ended) {
        int error = connect_and_ask(client, message, answer);

        ended = now_ns();
        if (error != 0) {
            count_failure(&client->result.failures, error);
            break;
        }
        client->result.amount_with_warm_up++;
        if (ended >= client->span.mark && ended < client->span.end) {
            client->result.amount++;
            histogram_add(&client->result.latencies, ended - began);
        }
    }
    free(message);
    free(answer);
    return NULL;
}

static void add(struct result *to, const struct result *from)
{
    to->amount += from->amount;
    to->amount_with_warm_up += from->amount_with_warm_up;
    histogram_merge(&to->latencies, &from->latencies);
    to->failures.refused += from->failures.refused;
    to->failures.reset += from->failures.reset;
    to->failures.timed_out += from->failures.timed_out;
    to->failures.ended_early += from->failures.ended_early;
    to->failures.garbled += from->failures.garbled;
    to->failures.error_status += from->failures.error_status;
    to->failures.other += from->failures.other;
}

void connects(const struct sockaddr_in *to, struct span span, long clients, size_t size,
              struct result *result)
{
    struct client *all = allocate((size_t)clients, sizeof(*all));

    for (long i = 0; i < clients; i++) {
        all[i] = (struct client){.to = to, .span = span, .size = size};
        if ((errno = pthread_create(&all[i].thread, NULL, run, &all[i])) != 0) {
            die("pthread_create");
        }
    }
    for (long i = 0; i < clients; i++) {
        pthread_join(all[i].thread, NULL);
        add(result, &all[i].result);
    }
    result->seconds = (double)(span.end - span.mark) / 1e9;
    free(all);
}

/* ---- */

static void no_time_wait(int fd)
{
    struct linger at_once = {.l_onoff = 1};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
}

/* Answers each number of connects on stdin with the nanoseconds that one took. The listener is this
 * program's own, so that no other process's speed is in it. */
void connect_cost(void)
{
    struct sockaddr_in here = parse_address("127.0.0.1", "0");
    socklen_t length = sizeof(here);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    long count;

    if (bind(listener, (struct sockaddr *)&here, sizeof(here)) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&here, &length) != 0) {
        die("listen");
    }
    while (scanf("%ld", &count) == 1 && count > 0) {
        int64_t took = 0;

        for (long i = 0; i < count; i++) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), accepted;
            int64_t began = now_ns();

            if (connect(fd, (struct sockaddr *)&here, sizeof(here)) != 0) {
                die("connect");
            }
            took += now_ns() - began;
            accepted = accept(listener, NULL, NULL);
            if (accepted < 0) {
                die("accept");
            }
            no_time_wait(fd);
            close(accepted);
        }
        printf("%.1f\n", (double)took / (double)count);
        fflush(stdout);
    }
    close(listener);
}
