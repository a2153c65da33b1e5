/* Streams that check themselves, in both directions of each connection; the client's and the
 * server's end are the same code.
 *
 *   traffic serve KEY=VALUE...    port=N (client speaks first) server_first=N ip=ADDRESS... way=
 *   traffic run KEY=VALUE...      to=ADDRESS,PORT... count= window= way= ... (see `options`)
 *
 * A stream is a greeting, which says what its sender is going to do, and then as many bytes as the
 * greeting promises, each of which follows from the seed and its position: whatever is lost, twice
 * there or in the wrong place is found at once. Streams end with FIN or, as the greeting says, with
 * a reset; a reader sees exactly that, or the connection has failed.
 *
 * Both print a line for each connection that is over,
 *     PORT SENT RECEIVED RESULT DETAIL...
 * with the client's port (behind a sidecar the server sees another one), the bytes of this end, and
 * what became of it: "complete", "aborted" (by this end), "reset" (by the other one, as its
 * greeting said), "broken" (with an error that was not asked for) or "failed". The reader also
 * prints "stopped PORT" when it makes its long stop. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAGIC = 0x7afc,
    BUFFER = 256 * 1024,
    EVENTS = 256,
    SMALL = 8192,
    MAX_TARGETS = 16,
    CHUNKS_AT_ONCE = 8, /* of one connection, before others get their turn */
};

struct plan {
    uint64_t seed, length;
    uint64_t stop_at;       /* position in what it reads at which it stops reading … */
    uint32_t stop_ms;       /* … for this long; 0: it does not */
    uint32_t abort;         /* the end is a reset */
    uint32_t lockstep;      /* it never sends more than it has received, and a chunk */
    uint32_t pause_percent; /* of its reads and writes, each followed by a pause */
    uint32_t chunk;         /* the largest one that it reads or writes */
    uint32_t slow_ms;       /* a pause after each read */
    uint32_t ends_last;     /* it ends its stream after the other one has ended */
};

/* What a stream begins with. `yours` is the client's wish, in an answer it is zero. */
struct greeting {
    uint64_t magic;
    struct plan mine, yours;
};

struct connection {
    int fd;
    uint16_t port;
    bool is_client, connecting, active;
    bool ready; /* `out` is known */
    struct greeting out, in;
    uint64_t sent, received;
    bool readable, writable, hung_up, failing; /* the latter: EPOLLRDHUP, EPOLLERR came */
    bool ended, finished;                      /* the other stream, this one */
    bool has_stopped;
    uint32_t interest;
    int write_error; /* of the blocking writer */
    uint64_t read_again_ms, write_again_ms, progress_ms;
    uint64_t random, random_out; /* the latter is the writer's */
};

static struct {
    const char *ips[MAX_TARGETS];
    const char *to[MAX_TARGETS]; /* ADDRESS,PORT: the client's connections take them in turn */
    uint64_t count, window, seed;
    uint64_t port, server_first; /* the server's */
    uint64_t up, down;           /* the largest streams; with `exactly`, their sizes */
    uint64_t exactly;
    uint64_t ends_last; /* the shorter stream ends after the longer one */
    uint64_t abort_percent, pause_percent, lockstep_percent, chunk;
    uint64_t stop_at, up_stop_ms, down_stop_ms, up_slow_ms, down_slow_ms;
} options = {.window = 1, .count = 1, .up = 1 << 20, .down = 1 << 20};
static size_t ip_count, to_count;

static enum { EDGE, LEVEL, SHORT, BLOCKING } way;
static uint64_t patience_ms = 20000;
static bool breaks;                 /* errors are expected at any time */
static uint64_t young = UINT64_MAX; /* with `breaks`: bytes below which an early end is allowed */
static int epoll;
static uint64_t now_ms;

static void die(const char *what)
{
    fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t clock_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* One write for a line, so that threads do not mix theirs. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[256];
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        exit(1);
}

/* ---- numbers and bytes ---- */

static uint64_t mix(uint64_t value) /* splitmix64's output function */
{
    value += 0x9e3779b97f4a7c15;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
}

static uint64_t pick(uint64_t *state)
{
    return *state = mix(*state);
}

static uint64_t pick_below(uint64_t *state, uint64_t limit)
{
    return limit ? pick(state) % limit : 0;
}

/* Any, but small ones are likely, too. */
static uint64_t pick_size(uint64_t *state, uint64_t limit)
{
    unsigned bits = 1;

    if (pick(state) % 2)
        return 1 + pick_below(state, limit);
    while (bits < 40 && 1ull << bits < limit)
        bits++;
    return 1 + pick_below(state, limit < 2 ? 1 : 1ull << pick_below(state, bits + 1)) % limit;
}

static void fill(uint8_t *bytes, const struct greeting *greeting, uint64_t at, size_t size)
{
    for (size_t i = 0; i < size;) {
        uint64_t position = at + i - sizeof *greeting, word;
        size_t skip, part;

        if (at + i < sizeof *greeting) {
            bytes[i] = ((const uint8_t *)greeting)[at + i];
            i++;
            continue;
        }
        word = mix(greeting->mine.seed + position / 8);
        skip = position % 8;
        part = 8 - skip < size - i ? 8 - skip : size - i;
        memcpy(bytes + i, (uint8_t *)&word + skip, part);
        i += part;
    }
}

static uint64_t total(const struct greeting *greeting)
{
    return sizeof *greeting + greeting->mine.length;
}

static bool greeted(const struct connection *connection)
{
    return connection->received >= sizeof connection->in;
}

/* ---- ends ---- */

static void close_connection(struct connection *connection, bool reset)
{
    struct linger linger = {.l_onoff = 1};

    if (reset)
        setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    connection->active = false;
    if (way != BLOCKING) /* else another thread may still write to it */
        close(connection->fd);
}

static void result(struct connection *connection, const char *what, const char *detail)
{
    bool good = strcmp(what, "complete") == 0;

    say("%u %llu %llu %s %s\n", connection->port, (unsigned long long)connection->sent,
        (unsigned long long)connection->received, what, detail);
    close_connection(connection, !good);
}

static void failed(struct connection *connection, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void failed(struct connection *connection, const char *format, ...)
{
    char detail[160];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    result(connection, "failed", detail);
}

/* Whether the other end said that it would reset the connection, or may have said so. */
static bool may_be_reset(const struct connection *connection)
{
    return greeted(connection) ? connection->in.mine.abort : true;
}

static void error_came(struct connection *connection, const char *operation, int error)
{
    if (breaks) {
        if (strcmp(operation, "connect") == 0) /* nothing to connect to any more */
            options.count = 0;
        result(connection, "broken", strerror(error));
    } else if (error != ECONNRESET && error != EPIPE && error != ENOTCONN)
        failed(connection, "%s: %s", operation, strerror(error));
    else if (may_be_reset(connection))
        result(connection, "reset", operation);
    else
        failed(connection, "%s: reset, which nobody asked for", operation);
}

static void end_came(struct connection *connection)
{
    connection->ended = true;
    if (breaks && connection->received < young)
        result(connection, "broken", "ended young");
    else if (!greeted(connection) || connection->received < total(&connection->in))
        failed(connection, "ends after %llu bytes instead of %llu",
               (unsigned long long)connection->received,
               (unsigned long long)(greeted(connection) ? total(&connection->in) : 0));
    else if (connection->in.mine.abort)
        failed(connection, "ends in order instead of by a reset");
}

/* The other stream has ended, and there is an error, which no receive tells then. */
static void error_after_end(struct connection *connection)
{
    int error = 0;
    socklen_t size = sizeof error;

    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    error_came(connection, "poll", error ? error : ECONNRESET);
}

/* ---- reading and writing ---- */

static void check_greeting(struct connection *connection)
{
    if (connection->in.magic != MAGIC)
        failed(connection, "the first bytes are not a greeting");
    else if (!connection->is_client && !connection->ready) {
        connection->out.magic = MAGIC;
        connection->out.mine = connection->in.yours;
        connection->ready = true;
    }
}

/* The position in the stream at which these bytes ought to be: what was lost, or came too early. -1
 * if they are nowhere in it. */
static long long belongs_at(const struct greeting *greeting, const uint8_t *bytes, size_t size)
{
    uint8_t there[16];

    for (uint64_t at = sizeof *greeting; size >= sizeof there && at < total(greeting); at++) {
        fill(there, greeting, at, sizeof there);
        if (memcmp(there, bytes, sizeof there) == 0)
            return (long long)at;
    }
    return -1;
}

static void check(struct connection *connection, const uint8_t *bytes, size_t size)
{
    static __thread uint8_t expected[BUFFER];

    while (size > 0 && !greeted(connection)) {
        ((uint8_t *)&connection->in)[connection->received++] = *bytes++;
        size--;
        if (greeted(connection))
            check_greeting(connection);
        if (!connection->active)
            return;
    }
    if (size == 0)
        return;
    if (connection->received + size > total(&connection->in)) {
        failed(connection, "more bytes than %llu", (unsigned long long)total(&connection->in));
        return;
    }
    fill(expected, &connection->in, connection->received, size);
    for (size_t i = 0; memcmp(bytes, expected, size) != 0; i++)
        if (bytes[i] != expected[i]) {
            failed(connection,
                   "wrong byte at %llu of %llu (%llu of a piece of %zu): belongs at %lld",
                   (unsigned long long)(connection->received + i),
                   (unsigned long long)total(&connection->in), (unsigned long long)i, size,
                   belongs_at(&connection->in, bytes + i, size - i));
            return;
        }
    connection->received += size;
}

/* What this end does as a reader and writer: known to the client, told to the server. */
static const struct plan *behaviour(const struct connection *connection)
{
    if (connection->is_client || !greeted(connection))
        return &connection->out.mine;
    return &connection->in.yours;
}

static uint64_t pause_ms(struct connection *connection)
{
    const struct plan *plan = behaviour(connection);

    return pick_below(&connection->random, 100) < plan->pause_percent
               ? 1 + pick_below(&connection->random, 12)
               : 0;
}

static size_t chunk_size(const struct connection *connection, uint64_t *random)
{
    uint32_t chunk = behaviour(connection)->chunk;

    return pick_size(random, chunk && chunk < BUFFER ? chunk : BUFFER);
}

/* In lockstep: for the other end's next piece. Or for its end. */
static bool must_wait(const struct connection *connection)
{
    bool has_all = greeted(connection) && connection->received == total(&connection->in);

    if (connection->sent == total(&connection->out))
        return connection->out.mine.ends_last && !connection->ended;
    return connection->out.mine.lockstep && connection->sent > connection->received && !has_all;
}

static size_t write_size(struct connection *connection)
{
    uint64_t left = total(&connection->out) - connection->sent;
    uint64_t size = chunk_size(connection, &connection->random_out);

    /* A greeting is whole, so that the other end can answer to it. */
    if (connection->sent < sizeof connection->out)
        size = sizeof connection->out - connection->sent;
    return size < left ? size : left;
}

static void note_stop(struct connection *connection)
{
    const struct plan *plan = behaviour(connection);

    if (connection->has_stopped || plan->stop_ms == 0 || connection->received < plan->stop_at)
        return;
    connection->has_stopped = true;
    connection->read_again_ms = clock_ms() + plan->stop_ms;
    say("stopped %u\n", connection->port);
}

/* The largest piece of a connection with so many bytes: not too many pieces. */
static uint32_t chunk_of(uint64_t bytes, uint64_t *random)
{
    uint64_t chunk = options.chunk ? options.chunk : bytes / 16 + SMALL + pick_size(random, BUFFER);

    return (uint32_t)(chunk < BUFFER ? chunk : BUFFER);
}

/* ---- without blocking ---- */

static void receive_some(struct connection *connection)
{
    static uint8_t buffer[BUFFER];
    size_t size = chunk_size(connection, &connection->random);
    ssize_t count = recv(connection->fd, buffer, size, 0);

    if (count < 0 && errno == EAGAIN) {
        connection->readable = false;
        return;
    }
    if (count < 0) {
        error_came(connection, "recv", errno);
        return;
    }
    connection->progress_ms = now_ms;
    if (count == 0) {
        end_came(connection);
        if (connection->active && connection->failing)
            error_after_end(connection);
        return;
    }
    /* epoll(7): a short read says that there is no more for now. */
    if (way == SHORT && (size_t)count < size && !connection->hung_up)
        connection->readable = false;
    check(connection, buffer, (size_t)count);
    if (!connection->active)
        return;
    connection->read_again_ms = now_ms + pause_ms(connection);
    if (behaviour(connection)->slow_ms)
        connection->read_again_ms = now_ms + behaviour(connection)->slow_ms;
    note_stop(connection);
}

static void finish_stream(struct connection *connection)
{
    connection->finished = true;
    if (connection->out.mine.abort) {
        result(connection, "aborted", "");
        return;
    }
    if (shutdown(connection->fd, SHUT_WR) != 0)
        error_came(connection, "shutdown", errno);
}

static void send_some(struct connection *connection)
{
    static uint8_t buffer[BUFFER];
    size_t size = write_size(connection);
    ssize_t count;

    if (size == 0) { /* the other stream's end was waited for */
        finish_stream(connection);
        return;
    }
    fill(buffer, &connection->out, connection->sent, size);
    count = send(connection->fd, buffer, size, MSG_NOSIGNAL);
    if (count < 0 && errno == EAGAIN) {
        connection->writable = false;
        return;
    }
    if (count < 0) {
        error_came(connection, "send", errno);
        return;
    }
    if (way == SHORT && (size_t)count < size)
        connection->writable = false;
    connection->progress_ms = now_ms;
    connection->sent += (size_t)count;
    connection->write_again_ms = now_ms + pause_ms(connection);
    if (connection->sent == total(&connection->out) && !must_wait(connection))
        finish_stream(connection);
}

static bool may_receive(const struct connection *connection)
{
    return !connection->ended && (connection->failing || now_ms >= connection->read_again_ms);
}

static bool may_send(const struct connection *connection)
{
    return connection->ready && !connection->finished && !connection->failing &&
           now_ms >= connection->write_again_ms && !must_wait(connection);
}

static void set_interest(struct connection *connection)
{
    struct epoll_event event = {.data.ptr = connection};

    if (may_receive(connection))
        event.events |= EPOLLIN;
    if (may_send(connection))
        event.events |= EPOLLOUT;
    if (event.events == connection->interest)
        return;
    connection->interest = event.events;
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
}

static void run(struct connection *connection)
{
    bool more = true;

    for (int i = 0; more && connection->active && i < CHUNKS_AT_ONCE; i++) {
        more = false;
        if (connection->readable && may_receive(connection)) {
            receive_some(connection);
            more = true;
        }
        if (connection->active && connection->writable && may_send(connection)) {
            send_some(connection);
            more = true;
        }
    }
    if (connection->active && connection->ended && connection->finished)
        result(connection, "complete", "");
    if (connection->active && way == LEVEL)
        set_interest(connection);
}

static void event_came(struct connection *connection, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof error;

    if (connection->connecting) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            error_came(connection, "connect", error);
            return;
        }
        connection->connecting = false;
        connection->progress_ms = now_ms;
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP))
        connection->readable = true;
    if (events & EPOLLRDHUP)
        connection->hung_up = true;
    if (events & EPOLLOUT)
        connection->writable = true;
    if (events & EPOLLERR)
        connection->failing = connection->readable = true;
    if (connection->failing && connection->ended)
        error_after_end(connection);
}

static void watch(struct connection *connection)
{
    struct epoll_event event = {.data.ptr = connection, .events = EPOLLIN | EPOLLOUT};

    connection->interest = event.events;
    if (way != LEVEL)
        event.events |= EPOLLET | EPOLLRDHUP;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0)
        die("epoll_ctl");
}

/* Whether there is something to do that no event will announce, now or (true, too) later. */
static bool has_work(struct connection *connection)
{
    return connection->active && !connection->connecting &&
           ((connection->readable && !connection->ended) ||
            (connection->writable && connection->ready && !connection->finished &&
             !must_wait(connection)));
}

static void look_after(struct connection *connection)
{
    if (!connection->active)
        return;
    if (has_work(connection))
        run(connection);
    else if (way == LEVEL && !connection->connecting)
        set_interest(connection);
    if (connection->active && now_ms > connection->progress_ms + patience_ms &&
        now_ms > connection->read_again_ms + patience_ms)
        failed(connection,
               "hangs: in %llu/%llu ended %d readable %d, out %llu/%llu finished %d writable %d",
               (unsigned long long)connection->received,
               (unsigned long long)(greeted(connection) ? total(&connection->in) : 0),
               connection->ended, connection->readable, (unsigned long long)connection->sent,
               (unsigned long long)total(&connection->out), connection->finished,
               connection->writable);
}

/* The time until the next pause is over, in ms; -1: there is none. */
static int until_next(struct connection *const *connections, size_t count)
{
    uint64_t next = UINT64_MAX;

    for (size_t i = 0; i < count; i++) {
        struct connection *one = connections[i];
        uint64_t at[2] = {one->ended ? UINT64_MAX : one->read_again_ms,
                          one->finished ? UINT64_MAX : one->write_again_ms};

        if (!one->active || one->connecting)
            continue;
        if (one->readable && at[0] <= now_ms && !one->ended)
            return 0;
        if (one->writable && at[1] <= now_ms && may_send(one))
            return 0;
        for (int j = 0; j < 2; j++)
            if (at[j] > now_ms && at[j] < next)
                next = at[j];
    }
    return next == UINT64_MAX ? -1 : (int)(next - now_ms);
}

static void turn(struct connection *const *connections, size_t count)
{
    struct epoll_event events[EVENTS];
    int wait = until_next(connections, count), ready;

    ready = epoll_wait(epoll, events, EVENTS, wait < 0 || wait > 500 ? 500 : wait);
    now_ms = clock_ms();
    for (int i = 0; i < ready; i++) {
        struct connection *connection = events[i].data.ptr;

        if (connection && connection->active) /* NULL: a listener */
            event_came(connection, events[i].events);
    }
    for (size_t i = 0; i < count; i++)
        look_after(connections[i]);
}

/* ---- blocking: a thread for each connection, and another one that writes ---- */

static void *write_all(void *argument)
{
    struct connection *connection = argument;
    static __thread uint8_t buffer[BUFFER];

    while (connection->sent < total(&connection->out)) {
        size_t size = write_size(connection);
        ssize_t count;

        if (must_wait(connection)) /* in lockstep there is one thread: it reads now */
            return NULL;
        fill(buffer, &connection->out, connection->sent, size);
        count = send(connection->fd, buffer, size, MSG_NOSIGNAL);
        if (count < 0) {
            connection->write_error = errno;
            return "send";
        }
        connection->sent += (size_t)count;
        if (pick_below(&connection->random_out, 100) < connection->out.mine.pause_percent)
            usleep((useconds_t)pick_below(&connection->random_out, 10000));
    }
    if (must_wait(connection))
        return NULL;
    if (!connection->out.mine.abort && shutdown(connection->fd, SHUT_WR) != 0) {
        connection->write_error = errno;
        return "shutdown";
    }
    connection->finished = true;
    return NULL;
}

static void read_all(struct connection *connection)
{
    static __thread uint8_t buffer[BUFFER];

    while (connection->active && !connection->ended) {
        uint64_t began_ms;
        ssize_t count;

        if (connection->out.mine.lockstep) {
            const char *operation = connection->finished ? NULL : write_all(connection);

            if (operation) {
                error_came(connection, operation, connection->write_error);
                return;
            }
        }
        if (connection->finished && connection->out.mine.abort)
            return;
        began_ms = clock_ms();
        count = recv(connection->fd, buffer, chunk_size(connection, &connection->random), 0);
        if (count < 0 && errno == EAGAIN && connection->out.mine.abort)
            continue;
        if (count == 0)
            connection->ended = true;
        else if (count > 0)
            check(connection, buffer, (size_t)count);
        else if (errno == EAGAIN)
            failed(connection, "EAGAIN after %llu ms of a blocking recv: in %llu, out %llu/%llu",
                   (unsigned long long)(clock_ms() - began_ms),
                   (unsigned long long)connection->received, (unsigned long long)connection->sent,
                   (unsigned long long)total(&connection->out));
        else
            error_came(connection, "recv", errno);
        if (!connection->active || connection->ended)
            return;
        note_stop(connection);
        if (connection->read_again_ms > clock_ms())
            usleep((useconds_t)(connection->read_again_ms - clock_ms()) * 1000);
        if (behaviour(connection)->slow_ms)
            usleep(behaviour(connection)->slow_ms * 1000);
    }
}

static void run_blocking(struct connection *connection)
{
    struct timeval patience = {.tv_sec = (time_t)patience_ms / 1000};
    struct timeval moment = {.tv_usec = 20000};
    bool alone = connection->out.mine.lockstep;
    void *operation = NULL;
    pthread_t writer;

    setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(connection->fd, SOL_SOCKET, SO_RCVTIMEO,
               connection->out.mine.abort ? &moment : &patience, sizeof patience);
    if (!alone && pthread_create(&writer, NULL, write_all, connection) != 0)
        die("pthread_create");
    read_all(connection);
    /* It ends with what reading ended with; and an error that it met, reading no longer tells. */
    if (!alone)
        pthread_join(writer, &operation);
    if (connection->ended && !connection->finished && !operation)
        operation = write_all(connection);
    if (connection->active && operation)
        error_came(connection, operation, connection->write_error);
    else if (connection->active && connection->ended)
        end_came(connection);
    if (connection->active)
        result(connection, connection->out.mine.abort ? "aborted" : "complete", "");
    close(connection->fd);
}

/* ---- addresses ---- */

static socklen_t parse_address(const char *ip, uint16_t port, struct sockaddr_storage *address)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        return sizeof *v4;
    }
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    if (inet_pton(AF_INET6, ip, &v6->sin6_addr) != 1)
        die(ip);
    return sizeof *v6;
}

static uint16_t port_of(int fd, int (*name)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;

    if (name(fd, (struct sockaddr *)&address, &size) != 0)
        return 0;
    return ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port
                                              : ((struct sockaddr_in6 *)&address)->sin6_port);
}

static void raise_fd_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* ---- options ---- */

static void parse_options(char **words)
{
    const struct {
        const char *name;
        uint64_t *value;
    } numbers[] = {
        {"count", &options.count},
        {"window", &options.window},
        {"seed", &options.seed},
        {"port", &options.port},
        {"server_first", &options.server_first},
        {"up", &options.up},
        {"down", &options.down},
        {"exactly", &options.exactly},
        {"ends_last", &options.ends_last},
        {"abort", &options.abort_percent},
        {"pause", &options.pause_percent},
        {"lockstep", &options.lockstep_percent},
        {"chunk", &options.chunk},
        {"stop_at", &options.stop_at},
        {"up_stop_ms", &options.up_stop_ms},
        {"down_stop_ms", &options.down_stop_ms},
        {"up_slow_ms", &options.up_slow_ms},
        {"down_slow_ms", &options.down_slow_ms},
        {"patience_ms", &patience_ms},
        {"young", &young},
    };
    const char *const ways[] = {"edge", "level", "short", "blocking"};

    for (; *words; words++) {
        char *value = strchr(*words, '=');
        bool known = false;

        if (!value)
            die(*words);
        *value++ = '\0';
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            if (strcmp(*words, numbers[i].name) == 0) {
                *numbers[i].value = strtoull(value, NULL, 10);
                known = true;
            }
        if (strcmp(*words, "way") == 0)
            for (size_t i = 0; i < 4; i++)
                if (strcmp(value, ways[i]) == 0) {
                    way = i;
                    known = true;
                }
        if (strcmp(*words, "ip") == 0 && ip_count < MAX_TARGETS) {
            options.ips[ip_count++] = value;
            known = true;
        }
        if (strcmp(*words, "to") == 0 && to_count < MAX_TARGETS) {
            options.to[to_count++] = value;
            known = true;
        }
        if (!known) {
            errno = EINVAL;
            die(*words);
        }
    }
    breaks = young != UINT64_MAX;
}

/* ---- server ---- */

static void choose_own_plan(struct connection *connection)
{
    struct plan *plan = &connection->out.mine;

    connection->out.magic = MAGIC;
    plan->seed = pick(&connection->random);
    plan->length = options.exactly ? options.down : pick_size(&connection->random, options.down);
    plan->abort = pick_below(&connection->random, 100) < options.abort_percent;
    plan->pause_percent = (uint32_t)options.pause_percent;
    plan->chunk = chunk_of(plan->length, &connection->random);
    connection->ready = true;
}

static void serve(void)
{
    struct connection **connections = NULL;
    size_t count = 0, capacity = 0;
    int listeners[2 * MAX_TARGETS], listener_count = 0, on = 1;
    uint64_t random = options.seed;

    for (size_t i = 0; i < 2 * ip_count; i++) {
        struct sockaddr_storage address;
        uint16_t port = (uint16_t)(i % 2 ? options.server_first : options.port);
        socklen_t size = parse_address(options.ips[i / 2], port, &address);
        int listener = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
        if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 4096) != 0)
            die(options.ips[i / 2]);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) != 0)
            die("epoll_ctl");
        listeners[listener_count++] = listener;
    }
    for (;;) {
        size_t kept = 0;

        for (int i = 0; i < listener_count; i++) {
            int fd;

            while ((fd = accept4(listeners[i], NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                struct connection *connection = calloc(1, sizeof *connection);

                if (count == capacity) {
                    capacity = capacity ? 2 * capacity : 64;
                    connections = realloc(connections, capacity * sizeof *connections);
                }
                if (!connections || !connection)
                    die("memory");
                connections[count++] = connection;
                connection->fd = fd;
                connection->port = port_of(fd, getpeername);
                connection->active = true;
                connection->progress_ms = now_ms = clock_ms();
                connection->random = pick(&random);
                connection->random_out = pick(&random);
                if (i % 2)
                    choose_own_plan(connection);
                watch(connection);
            }
        }
        turn(connections, count);
        for (size_t i = 0; i < count; i++) {
            if (connections[i]->active)
                connections[kept++] = connections[i];
            else
                free(connections[i]);
        }
        count = kept;
    }
}

/* ---- client ---- */

static uint64_t run_random;
static uint64_t opened;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

static uint64_t length_of(uint64_t limit)
{
    return options.exactly ? limit : pick_size(&run_random, limit);
}

static bool happens(uint64_t percent)
{
    return pick_below(&run_random, 100) < percent;
}

/* Plans the next connection; false when there were enough. Thread-safe. */
static bool plan_next(struct connection *connection, struct sockaddr_storage *to, socklen_t *size)
{
    struct plan *mine = &connection->out.mine, *yours = &connection->out.yours;
    char target[64], *comma;
    bool more;

    memset(connection, 0, sizeof *connection);
    pthread_mutex_lock(&opening);
    more = opened < options.count;
    if (more) {
        snprintf(target, sizeof target, "%s", options.to[opened++ % to_count]);
        comma = strchr(target, ',');
        if (!comma)
            die(target);
        *comma = '\0';
        *size = parse_address(target, (uint16_t)atoi(comma + 1), to);
        connection->out.magic = MAGIC;
        mine->seed = pick(&run_random);
        yours->seed = pick(&run_random);
        mine->length = length_of(options.up);
        yours->length = length_of(options.down);
        mine->abort = happens(options.abort_percent);
        yours->abort = happens(options.abort_percent);
        mine->lockstep = yours->lockstep = happens(options.lockstep_percent);
        mine->pause_percent = yours->pause_percent = (uint32_t)options.pause_percent;
        mine->chunk = yours->chunk = chunk_of(mine->length + yours->length, &run_random);
        mine->stop_at = yours->stop_at = options.stop_at;
        mine->stop_ms = (uint32_t)options.down_stop_ms;
        yours->stop_ms = (uint32_t)options.up_stop_ms;
        (mine->length < yours->length ? mine : yours)->ends_last = options.ends_last != 0;
        mine->slow_ms = (uint32_t)options.down_slow_ms;
        yours->slow_ms = (uint32_t)options.up_slow_ms;
        connection->random = pick(&run_random);
        connection->random_out = pick(&run_random);
    }
    pthread_mutex_unlock(&opening);
    connection->is_client = connection->active = connection->ready = true;
    return more;
}

/* False when there are no more to open. */
static bool open_next(struct connection *connection)
{
    struct sockaddr_storage to;
    socklen_t size;
    int type = SOCK_STREAM | (way == BLOCKING ? 0 : SOCK_NONBLOCK), error = 0;

    if (!plan_next(connection, &to, &size)) {
        connection->active = false;
        return false;
    }
    connection->fd = socket(to.ss_family, type, 0);
    if (connection->fd < 0)
        die("socket");
    if (connect(connection->fd, (struct sockaddr *)&to, size) != 0)
        error = errno;
    connection->port = port_of(connection->fd, getsockname);
    if (error && error != EINPROGRESS) {
        error_came(connection, "connect", error);
        if (way == BLOCKING)
            close(connection->fd);
        return true;
    }
    connection->progress_ms = clock_ms();
    if (way == BLOCKING)
        return true;
    connection->connecting = true;
    watch(connection);
    return true;
}

static void *run_one_by_one(void *unused)
{
    struct connection connection;

    (void)unused;
    while (open_next(&connection))
        if (connection.active)
            run_blocking(&connection);
    return NULL;
}

static void run_blocking_ones(void)
{
    pthread_t *threads = calloc(options.window, sizeof *threads);

    for (uint64_t i = 0; threads && i < options.window; i++)
        if (pthread_create(&threads[i], NULL, run_one_by_one, NULL) != 0)
            die("pthread_create");
    for (uint64_t i = 0; threads && i < options.window; i++)
        pthread_join(threads[i], NULL);
    free(threads);
}

static void run_polled_ones(void)
{
    struct connection *all = calloc(options.window, sizeof *all);
    struct connection **connections = calloc(options.window, sizeof *connections);
    bool more = true, active = true;

    if (!all || !connections)
        die("memory");
    for (uint64_t i = 0; i < options.window; i++)
        connections[i] = &all[i];
    while (more || active) {
        now_ms = clock_ms();
        for (uint64_t i = 0; i < options.window && more; i++)
            if (!all[i].active)
                more = open_next(&all[i]);
        turn(connections, options.window);
        active = false;
        for (uint64_t i = 0; i < options.window; i++)
            active |= all[i].active;
    }
    free(connections);
    free(all);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    parse_options(argv + 2);
    raise_fd_limit();
    run_random = options.seed;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (strcmp(argv[1], "serve") == 0)
        serve();
    else if (way == BLOCKING)
        run_blocking_ones();
    else
        run_polled_ones();
    return 0;
}
