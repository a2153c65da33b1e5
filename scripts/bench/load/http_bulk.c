/* HTTP by blocking calls: long bodies one after the other on one connection, and single requests.
 */
#include "load.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <string.h>
#include <unistd.h>

static uint64_t fresh_nonce(void)
{
    uint64_t nonce;

    if (getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce)) {
        die("getrandom");
    }
    return nonce;
}

static struct body new_body(uint64_t size)
{
    struct body body = {.size = size};

    nonce_write(body.nonce, fresh_nonce());
    return body;
}

static int send_all(int fd, const char *bytes, size_t size)
{
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL); /* blocks until all of it is sent */

    return sent == (ssize_t)size ? 0 : sent < 0 ? errno : EPIPE;
}

static int send_body(int fd, struct body *body)
{
    int error = 0;

    while (error == 0 && body->offset < body->size) {
        size_t size;
        const char *bytes = body_next(body, &size);

        error = send_all(fd, bytes, size);
        body->offset += size;
    }
    return error;
}

/* An answer whose body has to be `expected`, and nothing after it. */
static int receive(int fd, struct body *expected)
{
    static char bytes[CHUNK];
    size_t have = 0, head = 0;
    uint64_t size = 0;
    int error = EAGAIN;

    while (error == EAGAIN || (error == 0 && expected->offset < expected->size)) {
        ssize_t got = recv(fd, bytes + have, sizeof(bytes) - have, 0);

        if (got <= 0) {
            return got < 0 ? errno : EPIPE;
        }
        have += (size_t)got;
        if (error == EAGAIN) {
            error = http_read_head(bytes, have, &head, &size);
            error = error == 0 && size != expected->size ? EPROTO : error;
        }
        if (error == 0) {
            error = body_take(expected, bytes + head, have - head) ? 0 : EPROTO;
            head = have = 0;
        }
    }
    return error;
}

static int one_request(int fd, enum direction direction, uint64_t size)
{
    char head[FRAME_MAX];
    struct body body = new_body(size), answer = body;
    int error = send_all(fd, head, http_ask_long(head, direction, &body));

    if (error == 0 && direction == TO_SERVER) {
        error = send_body(fd, &body);
        answer.size = 2 * BODY_MIN;
    }
    return error != 0 ? error : receive(fd, &answer);
}

int http_once(int fd, uint64_t number)
{
    (void)number;
    return one_request(fd, TO_CLIENT, 2 * BODY_MIN);
}

/* Counted are bodies whole: from the first that begins after the mark. */
void http_bulk(const struct sockaddr_in *to, struct span span, enum direction direction,
               uint64_t size, struct result *result)
{
    int64_t mark = 0, now = now_ns();
    int fd = open_connection(to), error = fd < 0 ? errno : 0;

    while (error == 0 && (now < span.end || result->amount == 0)) {
        if (mark == 0 && now >= span.mark) {
            mark = now;
        }
        error = one_request(fd, direction, size);
        now = now_ns();
        result->amount_with_warm_up += size;
        result->amount += mark != 0 ? size : 0;
    }
    if (error != 0) {
        count_failure(&result->failures, error);
    }
    result->seconds = (double)(now - mark) / 1e9;
    if (fd >= 0) {
        close(fd);
    }
}
