/* HTTP/1.1 with keep-alive. `GET /NONCE?bytes=N` is answered with a body of that size, `POST
 * /NONCE` swallows one and answers with a small body of the same nonce. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    SMALL = 64,
    PATH_AT = 1, /* the nonce in the target */
};

#define REST_OF_REQUEST " HTTP/1.1\r\nHost: orders.example\r\nUser-Agent: load\r\nAccept: */*\r\n"

static size_t put_text(char *to, const char *text)
{
    size_t size = strlen(text);

    memcpy(to, text, size);
    return size;
}

static size_t http_ask(char *to, uint64_t id, uint64_t nonce, size_t size)
{
    static char back[FRAME_MAX];
    static size_t back_size, for_size;
    size_t front_size = put_text(to, "GET /");

    (void)id;
    if (for_size != size) {
        snprintf(back, sizeof(back), "?bytes=%zu%s\r\n", size, REST_OF_REQUEST);
        back_size = strlen(back);
        for_size = size;
    }
    nonce_write(to + front_size, nonce);
    memcpy(to + front_size + NONCE_SIZE, back, back_size);
    return front_size + NONCE_SIZE + back_size;
}

size_t http_ask_long(char *to, enum direction direction, const struct body *body)
{
    unsigned long long size = body->size;
    int length;

    if (direction == TO_CLIENT) {
        length = snprintf(to, FRAME_MAX, "GET /%.*s?bytes=%llu%s\r\n", NONCE_SIZE, body->nonce,
                          size, REST_OF_REQUEST);
    } else {
        length = snprintf(to, FRAME_MAX, "POST /%.*s%sContent-Length: %llu\r\n\r\n", NONCE_SIZE,
                          body->nonce, REST_OF_REQUEST, size);
    }
    return (size_t)length;
}

/* ---- Heads ---- */

/* Up to and with the empty line; 0 while it is not there. */
static size_t head_length(const char *bytes, size_t have)
{
    const char *end = memmem(bytes, have, "\r\n\r\n", 4);

    return end != NULL ? (size_t)(end - bytes) + 4 : 0;
}

/* The number in a header; -1 where there is none. */
static long long header_number(const char *head, size_t length, const char *name)
{
    const char *line = head, *end = head + length;
    size_t size = strlen(name);

    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL && ++line < end) {
        if ((size_t)(end - line) > size && strncasecmp(line, name, size) == 0 &&
            line[size] == ':') {
            return atoll(line + size + 1);
        }
    }
    return -1;
}

int http_read_head(const char *bytes, size_t have, size_t *length, uint64_t *size)
{
    static const char version[] = "HTTP/1.1 ";
    long long found;

    *length = head_length(bytes, have);
    if (*length == 0) {
        return have < 2 * FRAME_MAX ? EAGAIN : EPROTO;
    }
    if (*length < sizeof(version) + 3 || memcmp(bytes, version, sizeof(version) - 1) != 0) {
        return EPROTO;
    }
    if (memcmp(bytes + sizeof(version) - 1, "200", 3) != 0) {
        fprintf(stderr, "load: HTTP status %.3s\n", bytes + sizeof(version) - 1);
        return EREMOTEIO;
    }
    found = header_number(bytes, *length, "content-length");
    *size = (uint64_t)found;
    return found < 0 ? EPROTO : 0;
}

static int http_read_answer(const char *bytes, size_t have, struct answer *answer)
{
    size_t head;
    uint64_t size;
    int error = http_read_head(bytes, have, &head, &size);

    if (error != 0) {
        return error;
    }
    if (size > PAYLOAD_MAX) {
        return EPROTO;
    }
    answer->length = head + size;
    answer->body = bytes + head;
    answer->size = size;
    return have < answer->length ? EAGAIN : 0;
}

/* ---- The server ---- */

static size_t write_head(char *to, uint64_t size)
{
    return (size_t)snprintf(to, FRAME_MAX,
                            "HTTP/1.1 200 OK\r\nServer: load\r\nContent-Type: text/plain\r\n"
                            "Content-Length: %llu\r\n\r\n",
                            (unsigned long long)size);
}

size_t http_write_answer(char *to, const char *nonce, size_t size)
{
    size_t head = write_head(to, size);

    body_write(to + head, nonce, size);
    return head + size;
}

/* `GET /NONCE?bytes=N`, of which `target` is what follows the method. */
static bool serve_get(const char *target, const char *end, struct output *output,
                      struct transfer *transfer)
{
    static const char query[] = "?bytes=";
    const char *nonce = target + PATH_AT, *size_at = nonce + NONCE_SIZE;
    uint64_t size;

    if ((size_t)(end - target) < PATH_AT + NONCE_SIZE + sizeof(query) ||
        memcmp(size_at, query, sizeof(query) - 1) != 0) {
        return false;
    }
    size = strtoull(size_at + sizeof(query) - 1, NULL, 10);
    if (size < BODY_MIN) {
        return false;
    }
    if (size <= PAYLOAD_MAX) {
        output->size += http_write_answer(output->bytes + output->size, nonce, size);
        return true;
    }
    output->size += write_head(output->bytes + output->size, size);
    transfer->direction = TO_CLIENT;
    transfer->body = (struct body){.size = size};
    memcpy(transfer->body.nonce, nonce, NONCE_SIZE);
    return true;
}

static bool serve_post(const char *target, const char *end, long long size,
                       struct transfer *transfer)
{
    if ((size_t)(end - target) < PATH_AT + NONCE_SIZE || size < BODY_MIN) {
        return false;
    }
    transfer->direction = TO_SERVER;
    transfer->body = (struct body){.size = (uint64_t)size};
    memcpy(transfer->body.nonce, target + PATH_AT, NONCE_SIZE);
    return true;
}

static ssize_t http_serve(const char *bytes, size_t have, struct output *output,
                          struct transfer *transfer)
{
    size_t length = head_length(bytes, have);
    const char *end = bytes + length;
    bool good = false;

    if (length == 0) {
        return have < 4 * FRAME_MAX ? 0 : -1; /* proxies add headers */
    }
    if (memcmp(bytes, "GET ", 4) == 0) {
        good = serve_get(bytes + 4, end, output, transfer);
    } else if (memcmp(bytes, "POST ", 5) == 0) {
        good = serve_post(bytes + 5, end, header_number(bytes, length, "content-length"), transfer);
    }
    return good ? (ssize_t)length : -1;
}

const struct protocol http = {
    .name = "http",
    .in_order = true,
    .ask = http_ask,
    .read_answer = http_read_answer,
    .serve = http_serve,
};
