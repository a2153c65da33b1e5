/* Requests and their answers on many connections, one under way on each: an event loop that does
 * nothing else. */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection {
    int fd;
    size_t received;
    int64_t asked;
};

struct load {
    struct connection *connections;
    char *message, *answer;
    size_t size;
    struct span span;
    struct result *result;
};

static int ask(struct load *load, struct connection *connection)
{
    uint64_t number = (uint64_t)(connection - load->connections);
    ssize_t sent;

    memcpy(load->message + 1, &number, sizeof(number)); /* fill_message() put one there before */
    connection->received = 0;
    connection->asked = now_ns();
    sent = send(connection->fd, load->message, load->size, MSG_NOSIGNAL);
    if (sent == (ssize_t)load->size) {
        return 0;
    }
    return sent < 0 ? errno : EPIPE;
}

/* The number at the front tells whose answer it is; the rest is the same for all. */
static bool is_mine(const struct load *load, const struct connection *connection, size_t got)
{
    uint64_t number = (uint64_t)(connection - load->connections);

    return connection->received > 0 || got < 1 + sizeof(number) ||
           memcmp(load->answer + 1, &number, sizeof(number)) == 0;
}

/* Reads what is there, asks again once the answer is complete. 0 or an errno. */
static int go_on(struct load *load, struct connection *connection)
{
    ssize_t got = recv(connection->fd, load->answer, load->size - connection->received, 0);
    int64_t now;

    if (got <= 0) {
        return got < 0 ? errno : EPIPE;
    }
    if (!is_mine(load, connection, (size_t)got)) {
        return EPROTO;
    }
    connection->received += (size_t)got;
    if (connection->received < load->size) {
        return 0;
    }
    now = now_ns();
    load->result->amount_with_warm_up++;
    if (now >= load->span.mark && now < load->span.end) {
        load->result->amount++;
        histogram_add(&load->result->latencies, now - connection->asked);
    }
    return ask(load, connection);
}

static void run(struct load *load, int epoll)
{
    struct epoll_event events[EVENTS];

    while (now_ns() < load->span.end && !any_failure(&load->result->failures)) {
        int ready = epoll_wait(epoll, events, EVENTS, STALL_MS);

        if (ready == 0) {
            count_failure(&load->result->failures, ETIMEDOUT);
        }
        for (int i = 0; i < ready; i++) {
            int error = go_on(load, &load->connections[events[i].data.u64]);

            if (error != 0) {
                count_failure(&load->result->failures, error);
            }
        }
    }
}

void requests(const struct sockaddr_in *to, double warm_up, double seconds, long connections,
              size_t size, struct result *result)
{
    struct load load = {
        .connections = allocate((size_t)connections, sizeof(struct connection)),
        .message = allocate(1, size),
        .answer = allocate(1, size),
        .size = size,
        .result = result,
    };
    int epoll = epoll_create1(EPOLL_CLOEXEC), error;
    long open = 0;

    fill_message(load.message, size, ECHO, 0);
    for (; open < connections; open++) {
        int fd = open_connection(to);

        if (fd < 0) {
            count_failure(&result->failures, errno);
            break;
        }
        load.connections[open].fd = fd;
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        watch(epoll, fd, EPOLLIN, (uint64_t)open, EPOLL_CTL_ADD);
    }
    load.span = span_from_now(warm_up, seconds); /* connecting is not part of it */
    for (long i = 0; i < open && open == connections; i++) {
        error = ask(&load, &load.connections[i]);
        if (error != 0) {
            count_failure(&result->failures, error);
        }
    }
    run(&load, epoll);
    result->seconds = seconds;
    for (long i = 0; i < open; i++) {
        close(load.connections[i].fd);
    }
    close(epoll);
    free(load.connections);
    free(load.message);
    free(load.answer);
}
