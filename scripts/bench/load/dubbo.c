/* Dubbo with Hessian 2: a head of 16 bytes, then strings that say what is called, the argument,
 * which is a body as one string, and the attachments. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    HEAD = 16,
    MAGIC = 0xdabb,
    REQUEST = 0x80, /* flags */
    TWO_WAY = 0x40,
    EVENT = 0x20,
    HESSIAN2 = 2,
    OK = 20,
    ID_AT = 4,
    VALUE = 0x91, /* what follows in an answer, as a Hessian number */
    VALUE_WITH_ATTACHMENTS = 0x94,
    STRINGS = 5, /* before the argument */
};

#define INTERFACE "com.example.Orders"
#define SERVICE_VERSION "1.0"

static const char *const call[STRINGS] = {"2.0.2", INTERFACE, SERVICE_VERSION, "create",
                                          "Ljava/lang/String;"};
static const char *const attachments[][2] = {
    {"path", INTERFACE},      {"remote.application", "load"},
    {"interface", INTERFACE}, {"version", SERVICE_VERSION},
    {"timeout", "3000"},      {"group", "bench"},
};

/* The length of a Hessian string, by itself where it is short. */
static char *put_length(char *to, size_t size)
{
    if (size < 32) {
        return put(to, size, 1);
    }
    return size < 1024 ? put(to, 0x3000 | size, 2) : put(put(to, 'S', 1), size, 2);
}

static char *put_string(char *to, const char *text)
{
    size_t size = strlen(text);

    to = put_length(to, size);
    memcpy(to, text, size);
    return to + size;
}

/* Where the text of a string begins and how long it is; NULL where there is none. ASCII only. */
static const char *get_string(const char *from, const char *end, size_t *size)
{
    unsigned char kind = from < end ? (unsigned char)*from : 0xff;
    size_t head = kind < 32 ? 1 : kind >= 0x30 && kind < 0x34 ? 2 : kind == 'S' ? 3 : 0;

    if (head == 0 || (size_t)(end - from) < head) {
        return NULL;
    }
    *size = head == 1 ? kind : head == 2 ? get(from, 2) & 0x3ff : get(from + 1, 2);
    return *size <= (size_t)(end - from) - head ? from + head : NULL;
}

static size_t write_front(char *to)
{
    char *at = put(put(put(to, MAGIC, 2), REQUEST | TWO_WAY | HESSIAN2, 1), 0, 13);

    for (size_t i = 0; i < STRINGS; i++) {
        at = put_string(at, call[i]);
    }
    return (size_t)(at - to);
}

static size_t write_attachments(char *to)
{
    char *at = put(to, 'H', 1);

    for (size_t i = 0; i < sizeof(attachments) / sizeof(*attachments); i++) {
        at = put_string(put_string(at, attachments[i][0]), attachments[i][1]);
    }
    return (size_t)(put(at, 'Z', 1) - to);
}

static size_t dubbo_ask(char *to, uint64_t id, uint64_t nonce, size_t size)
{
    static char front[FRAME_MAX / 2], back[FRAME_MAX / 2], text[NONCE_SIZE];
    static size_t front_size, back_size;
    char *at;

    if (front_size == 0) {
        front_size = write_front(front);
        back_size = write_attachments(back);
    }
    memcpy(to, front, front_size);
    at = put_length(to + front_size, size);
    nonce_write(text, nonce);
    body_write(at, text, size);
    at += size;
    memcpy(at, back, back_size);
    at += back_size;
    put(put(to + ID_AT, id, 8), (uint64_t)(at - to) - HEAD, 4);
    return (size_t)(at - to);
}

static size_t message_length(const char *bytes)
{
    return HEAD + get(bytes + HEAD - 4, 4);
}

static int dubbo_read_answer(const char *bytes, size_t have, struct answer *answer)
{
    unsigned char status, kind;

    if (have < HEAD) {
        return EAGAIN;
    }
    answer->length = message_length(bytes);
    if (get(bytes, 2) != MAGIC || (bytes[2] & (REQUEST | EVENT)) != 0 || answer->length == HEAD ||
        answer->length > FRAME_MAX + PAYLOAD_MAX) {
        return EPROTO;
    }
    status = (unsigned char)bytes[3];
    if (status != OK) {
        fprintf(stderr, "load: Dubbo status %d\n", status);
        return EREMOTEIO;
    }
    if (have < answer->length) {
        return EAGAIN;
    }
    kind = (unsigned char)bytes[HEAD];
    answer->id = get(bytes + ID_AT, 8);
    answer->body = get_string(bytes + HEAD + 1, bytes + answer->length, &answer->size);
    return (kind == VALUE || kind == VALUE_WITH_ATTACHMENTS) && answer->body != NULL ? 0 : EPROTO;
}

static void answer_with(struct output *output, const char *request, const char *argument,
                        size_t size)
{
    bool event = request[2] & EVENT;
    char *start = output->bytes + output->size, *at = start;

    at = put(put(put(at, MAGIC, 2), HESSIAN2 | (event ? EVENT : 0), 1), OK, 1);
    at = put(put(at, get(request + ID_AT, 8), 8), 0, 4);
    if (event) {
        at = put(at, 'N', 1);
    } else {
        at = put_length(put(at, VALUE_WITH_ATTACHMENTS, 1), size);
        memcpy(at, argument, size);
        at = put_string(put_string(put(at + size, 'H', 1), "dubbo"), "2.0.2");
        at = put(at, 'Z', 1);
    }
    put(start + HEAD - 4, (uint64_t)(at - start) - HEAD, 4);
    output->size += (size_t)(at - start);
}

static ssize_t dubbo_serve(const char *bytes, size_t have, struct output *output,
                           struct transfer *transfer)
{
    size_t length, size = 0;
    const char *text = bytes + HEAD;

    (void)transfer;
    if (have < HEAD) {
        return 0;
    }
    length = message_length(bytes);
    if (get(bytes, 2) != MAGIC || !(bytes[2] & REQUEST) || length > FRAME_MAX + PAYLOAD_MAX) {
        return -1;
    }
    if (have < length) {
        return 0;
    }
    for (size_t i = 0; i < STRINGS + 1 && !(bytes[2] & EVENT); i++) { /* the last is the argument */
        text = get_string(text + size, bytes + length, &size);
        if (text == NULL) {
            return -1;
        }
    }
    if (bytes[2] & TWO_WAY) {
        answer_with(output, bytes, text, size);
    }
    return (ssize_t)length;
}

const struct protocol dubbo = {
    .name = "dubbo",
    .ask = dubbo_ask,
    .read_answer = dubbo_read_answer,
    .serve = dubbo_serve,
};
