/* The server's end of a connection with requests. All that was read is answered with one send, as a
 * server does it that is made for many requests on a connection. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

const struct protocol *protocol_of(char first_byte)
{
    switch ((unsigned char)first_byte) {
    case 'G':
    case 'P':
        return &http;
    case 0x01:
        return &bolt;
    case 0xda:
        return &dubbo;
    default:
        return NULL;
    }
}

/* Sends what is in `output`; false when the connection is broken. */
static bool flush(struct served *served, int fd, struct output *output)
{
    size_t size = output->size;

    output->size = 0;
    return rest_send(&served->out, fd, output->bytes, size) == 0;
}

/* Sends the next piece of a long body, after everything before it. */
static bool pour(struct served *served, int fd)
{
    struct body *body = &served->transfer.body;
    size_t size;
    const char *bytes = body_next(body, &size);
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent < 0) {
        return errno == EAGAIN;
    }
    body->offset += (uint64_t)sent;
    if (body->offset == body->size) {
        served->transfer.direction = NO_BODY;
    }
    return true;
}

/* Takes what is there of a long body, and answers once that is all of it; how much it was, -1 where
 * it is not what the client sends. */
static ssize_t swallow(struct transfer *transfer, const char *bytes, size_t have,
                       struct output *output)
{
    struct body *body = &transfer->body;
    uint64_t left = body->size - body->offset;
    size_t size = have < left ? have : left;

    if (!body_take(body, bytes, size)) {
        return -1;
    }
    if (body->offset == body->size) {
        transfer->direction = NO_BODY;
        output->size += http_write_answer(output->bytes + output->size, body->nonce, 2 * BODY_MIN);
    }
    return (ssize_t)size;
}

/* Answers all requests that are there, or those before one whose answers find no room. How much of
 * the input that was, -1 for a connection that has to end. */
static ssize_t serve_all(struct served *served, int fd, const char *input, size_t have)
{
    static struct output output;
    struct transfer *transfer = &served->transfer;
    ssize_t done = 0, used = 1;

    output.size = 0;
    while (used > 0 && (size_t)done < have && transfer->direction != TO_CLIENT &&
           served->out.size == 0) {
        const char *at = input + done;
        size_t left = have - (size_t)done;

        used = transfer->direction == TO_SERVER
                   ? swallow(transfer, at, left, &output)
                   : served->protocol->serve(at, left, &output, transfer);
        done += used;
        if (output.size > CHUNK && !flush(served, fd, &output)) {
            return -1;
        }
    }
    return used < 0 || !flush(served, fd, &output) ? -1 : done;
}

/* Reads what is there, after what is left from before, and serves it. */
static bool read_and_serve(struct served *served, int fd)
{
    static char input[2 * CHUNK];
    size_t have = rest_take(&served->in, input);
    ssize_t got, done;

    if (have <= CHUNK) { /* else there are requests that found no room for their answers */
        got = recv(fd, input + have, CHUNK, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN)) {
            return false;
        }
        have += got > 0 ? (size_t)got : 0;
    }
    done = serve_all(served, fd, input, have);
    if (done >= 0 && (size_t)done < have) {
        rest_append(&served->in, input + done, have - (size_t)done);
    }
    return done >= 0;
}

enum serving serve_requests(struct served *served, int fd)
{
    bool good = true;

    if (served->out.size > 0) {
        good = rest_send(&served->out, fd, NULL, 0) == 0;
    } else if (served->transfer.direction == TO_CLIENT) {
        good = pour(served, fd);
    }
    /* Not before its answers find room: that a client which reads nothing is read from no more. */
    if (good && served->out.size == 0 && served->transfer.direction != TO_CLIENT) {
        good = read_and_serve(served, fd);
    }
    if (!good) {
        return ENDED;
    }
    return served->out.size > 0 || served->transfer.direction == TO_CLIENT ? NEEDS_ROOM
                                                                           : NEEDS_INPUT;
}

void served_free(struct served *served)
{
    free(served->in.bytes);
    free(served->out.bytes);
    *served = (struct served){0};
}
