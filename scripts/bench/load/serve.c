/* The far end: echoes, swallows or pours out, or answers requests, as the first byte of a
 * connection asks. */
#include "load.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection {
    char kind; /* ECHO, ONCE, UPLOAD, DOWNLOAD, or 0 while nothing came yet */
    struct sink sink;
    struct source source;
    struct served served; /* of a protocol with requests, once there is one */
    struct http2 *http2;  /* likewise */
    bool needs_room;
};

static struct connection *connections; /* by descriptor */
static char buffer[CHUNK];
static int epoll;

static void accept_all(int listener)
{
    int fd, on = 1;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        connections[fd] = (struct connection){0};
        watch(epoll, fd, EPOLLIN, (uint64_t)fd, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) {
        die("accept");
    }
}

/* Answers what was read; false when the connection has to end. A client waits for its answer before
 * it asks again, so that an answer always fits into the send buffer. */
static bool answer(int fd, struct connection *connection, size_t size)
{
    int more;

    switch (connection->kind) {
    case ECHO:
        return send(fd, buffer, size, MSG_NOSIGNAL) == (ssize_t)size;
    case ONCE:
        (void)!send(fd, buffer, size, MSG_NOSIGNAL); /* a client that misses it says so */
        return false;
    case UPLOAD:
        more = sink_take(&connection->sink, buffer, size, UPLOAD);
        if (more == 0) {
            uint64_t total = connection->sink.received;

            return send(fd, &total, sizeof(total), MSG_NOSIGNAL) == sizeof(total);
        }
        return more > 0;
    case DOWNLOAD:
        if (buffer[size - 1] == LAST_BLOCK) {
            connection->source.stop = true;
        } else {
            watch(epoll, fd, EPOLLIN | EPOLLOUT, (uint64_t)fd, EPOLL_CTL_MOD);
        }
        return true;
    default:
        return false;
    }
}

static bool go_on_after(int fd, struct connection *connection, enum serving serving)
{
    if (connection->needs_room != (serving == NEEDS_ROOM)) {
        connection->needs_room = !connection->needs_room;
        watch(epoll, fd, connection->needs_room ? EPOLLOUT : EPOLLIN, (uint64_t)fd, EPOLL_CTL_MOD);
    }
    return serving != ENDED;
}

static bool go_on_with_requests(int fd, struct connection *connection)
{
    return go_on_after(fd, connection, serve_requests(&connection->served, fd));
}

/* Who gets no room for its answers is read from no more. */
static bool go_on_with_http2(int fd, struct connection *connection)
{
    ssize_t got = connection->needs_room ? 0 : recv(fd, buffer, sizeof(buffer), 0);

    if (got < 0 || (got == 0 && !connection->needs_room)) {
        return got < 0 && errno == EAGAIN;
    }
    return go_on_after(fd, connection, http2_serve(connection->http2, fd, buffer, (size_t)got));
}

static bool is_http2(const char *bytes, size_t size)
{
    return size >= 2 && memcmp(bytes, "PR", 2) == 0; /* its preface: PRI * HTTP/2.0 */
}

static bool read_some(int fd, struct connection *connection)
{
    ssize_t got = recv(fd, buffer, sizeof(buffer), 0);

    if (got <= 0) {
        return got < 0 && errno == EAGAIN;
    }
    if (connection->kind == 0 && is_http2(buffer, (size_t)got)) {
        connection->http2 = http2_open();
        return go_on_after(fd, connection, http2_serve(connection->http2, fd, buffer, (size_t)got));
    }
    if (connection->kind == 0) {
        connection->kind = buffer[0];
        connection->served.protocol = protocol_of(buffer[0]);
    }
    if (connection->served.protocol != NULL) {
        rest_append(&connection->served.in, buffer, (size_t)got);
        return go_on_with_requests(fd, connection);
    }
    return answer(fd, connection, (size_t)got);
}

static bool pour(int fd, struct connection *connection)
{
    size_t size;
    const char *bytes = source_next(&connection->source, &size);
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);

    if (sent < 0) {
        return errno == EAGAIN;
    }
    if (!source_sent(&connection->source, (size_t)sent)) {
        watch(epoll, fd, EPOLLIN, (uint64_t)fd, EPOLL_CTL_MOD); /* the client closes */
    }
    return true;
}

static bool go_on(int fd, struct connection *connection, uint32_t events)
{
    bool good = true;

    if (connection->http2 != NULL) {
        return go_on_with_http2(fd, connection);
    }
    if (connection->served.protocol != NULL) {
        return go_on_with_requests(fd, connection);
    }
    if (events & ~(uint32_t)EPOLLOUT) {
        good = read_some(fd, connection);
    }
    return good && (events & EPOLLOUT) ? pour(fd, connection) : good;
}

void serve(const struct sockaddr_in *here)
{
    struct epoll_event events[EVENTS];
    struct rlimit limit;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    getrlimit(RLIMIT_NOFILE, &limit);
    connections = allocate(limit.rlim_cur, sizeof(*connections));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(listener, (const struct sockaddr *)here, sizeof(*here)) != 0 ||
        listen(listener, 4096) != 0) {
        die("listen");
    }
    watch(epoll, listener, EPOLLIN, (uint64_t)listener, EPOLL_CTL_ADD);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);

        for (int i = 0; i < ready; i++) {
            int fd = (int)events[i].data.u64;

            if (fd == listener) {
                accept_all(listener);
            } else if (!go_on(fd, &connections[fd], events[i].events)) {
                served_free(&connections[fd].served);
                http2_free(connections[fd].http2);
                close(fd);
            }
        }
    }
}
