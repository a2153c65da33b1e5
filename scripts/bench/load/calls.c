/* Requests of a protocol, a number of them under way on each connection, by an event loop that does
 * nothing else. What answers make room for is asked in one send. Each answer has to be the one to
 * its request, and in the end none may be missing. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

struct slot {
    uint64_t id;
    struct body expected;
    int64_t asked;
    bool under_way;
};

struct connection {
    int fd;
    struct slot *slots; /* a request's id tells its slot: the remainder by their number */
    uint64_t answered;
    struct rest in, out;
    bool needs_room;
};

struct load {
    const struct protocol *protocol;
    struct connection *connections;
    size_t slots, size;
    struct span span;
    int64_t now; /* when this turn's answers were read */
    uint64_t nonce, under_way;
    char *input, *output;
    size_t output_size;
    int epoll;
    struct result *result;
};

static void ask(struct load *load, struct slot *slot)
{
    uint64_t nonce = load->nonce++;
    char *to = load->output + load->output_size;

    slot->expected = (struct body){.size = load->size};
    nonce_write(slot->expected.nonce, nonce);
    slot->asked = load->now;
    slot->under_way = true;
    load->under_way++;
    load->output_size += load->protocol->ask(to, slot->id, nonce, load->size);
}

/* The slot of the request that this is the answer to; NULL where it is to none. */
static struct slot *slot_of(struct load *load, struct connection *connection,
                            const struct answer *answer)
{
    uint64_t id = load->protocol->in_order ? connection->answered : answer->id;
    struct slot *slot = &connection->slots[id % load->slots];

    if (!slot->under_way || (!load->protocol->in_order && slot->id != id) ||
        answer->size != load->size || !body_take(&slot->expected, answer->body, answer->size)) {
        return NULL;
    }
    return slot;
}

static int take(struct load *load, struct connection *connection, const struct answer *answer)
{
    struct slot *slot = slot_of(load, connection, answer);

    if (slot == NULL) {
        return EPROTO;
    }
    slot->under_way = false;
    slot->id += load->slots;
    load->under_way--;
    connection->answered++;
    load->result->amount_with_warm_up++;
    if (load->now >= load->span.mark && load->now < load->span.end) {
        load->result->amount++;
        histogram_add(&load->result->latencies, load->now - slot->asked);
    }
    if (load->now < load->span.end) {
        ask(load, slot);
    }
    return 0;
}

/* Takes all answers that are there; 0 or an errno. */
static int read_answers(struct load *load, struct connection *connection)
{
    size_t have = rest_take(&connection->in, load->input), done = 0;
    ssize_t got;
    int error = 0;

    got = recv(connection->fd, load->input + have, CHUNK, MSG_DONTWAIT);
    if (got <= 0) {
        return got < 0 ? errno : EPIPE;
    }
    load->now = now_ns();
    have += (size_t)got;
    while (error == 0 && done < have) {
        struct answer answer;

        error = load->protocol->read_answer(load->input + done, have - done, &answer);
        if (error == 0) {
            error = take(load, connection, &answer);
            done += answer.length;
        }
    }
    rest_append(&connection->in, load->input + done, have - done);
    return error == EAGAIN ? 0 : error;
}

static int send_requests(struct load *load, struct connection *connection)
{
    size_t size = load->output_size;
    int error;

    load->output_size = 0;
    error = rest_send(&connection->out, connection->fd, load->output, size);
    if (connection->needs_room != (connection->out.size > 0)) {
        connection->needs_room = !connection->needs_room;
        watch(load->epoll, connection->fd, EPOLLIN | (connection->needs_room ? EPOLLOUT : 0),
              (uint64_t)(connection - load->connections), EPOLL_CTL_MOD);
    }
    return error;
}

static int go_on(struct load *load, struct connection *connection, uint32_t events)
{
    int error = events & ~(uint32_t)EPOLLOUT ? read_answers(load, connection) : 0;

    return error != 0 ? error : send_requests(load, connection);
}

/* Until the time is up and every answer is there. */
static void run(struct load *load)
{
    struct epoll_event events[EVENTS];

    while (load->under_way > 0 && !any_failure(&load->result->failures)) {
        int ready = epoll_wait(load->epoll, events, EVENTS, STALL_MS);

        if (ready == 0 || now_ns() > load->span.end + STALL_MS * 1000000LL) {
            count_failure(&load->result->failures, ETIMEDOUT);
        }
        for (int i = 0; i < ready; i++) {
            int error = go_on(load, &load->connections[events[i].data.u64], events[i].events);

            if (error != 0) {
                count_failure(&load->result->failures, error);
            }
        }
    }
}

static bool open_all(struct load *load, const struct sockaddr_in *to, long connections)
{
    for (long i = 0; i < connections; i++) {
        struct connection *connection = &load->connections[i];

        connection->slots = allocate(load->slots, sizeof(struct slot));
        for (size_t k = 0; k < load->slots; k++) {
            connection->slots[k].id =
                load->slots + k; /* none is 0; every connection has the same */
        }
        connection->fd = open_connection(to);
        if (connection->fd < 0) {
            count_failure(&load->result->failures, errno);
            return false;
        }
        watch(load->epoll, connection->fd, EPOLLIN, (uint64_t)i, EPOLL_CTL_ADD);
    }
    return true;
}

static void ask_all(struct load *load, long connections)
{
    for (long i = 0; i < connections; i++) {
        int error;

        load->now = now_ns();
        for (size_t k = 0; k < load->slots; k++) {
            ask(load, &load->connections[i].slots[k]);
        }
        error = send_requests(load, &load->connections[i]);
        if (error != 0) {
            count_failure(&load->result->failures, error);
        }
    }
}

static void close_all(struct load *load, long connections)
{
    for (long i = 0; i < connections && load->connections[i].fd > 0; i++) {
        struct connection *connection = &load->connections[i];

        close(connection->fd);
        free(connection->slots);
        free(connection->in.bytes);
        free(connection->out.bytes);
    }
    close(load->epoll);
    free(load->connections);
    free(load->input);
    free(load->output);
}

void calls(const struct protocol *protocol, const struct sockaddr_in *to, double warm_up,
           double seconds, long connections, long in_flight, size_t size, struct result *result)
{
    size_t slots = (size_t)in_flight;
    struct load load = {
        .protocol = protocol,
        .connections = allocate((size_t)connections, sizeof(struct connection)),
        .slots = slots,
        .size = size,
        .input = allocate(1, 2 * CHUNK),
        .output = allocate(slots, FRAME_MAX + size),
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .result = result,
    };

    /* Not those of a run before: an answer may be late. */
    if (getrandom(&load.nonce, sizeof(load.nonce), 0) != sizeof(load.nonce)) {
        die("getrandom");
    }
    if (open_all(&load, to, connections)) {
        load.span = span_from_now(warm_up, seconds); /* connecting is not part of it */
        ask_all(&load, connections);
        run(&load);
    }
    result->seconds = seconds;
    close_all(&load, connections);
}
