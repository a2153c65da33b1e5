/* Bolt v1, as SOFARPC speaks it: 22 bytes before a request and 20 before an answer, then the class
 * of the content, headers, and the content, which is a body and nothing that Java would read. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    VERSION = 1,
    REQUEST_HEAD = 22,
    RESPONSE_HEAD = 20,
    ID_AT = 5,
    RESPONSE = 0, /* types */
    REQUEST = 1,
    ONE_WAY = 2,
    HEARTBEAT = 0, /* commands */
    CALL = 1,
    ANSWER = 2,
    HESSIAN2 = 1,
    TIMEOUT_MS = 3000,
};

#define SERVICE "com.example.Orders:1.0"
#define REQUEST_CLASS "com.alipay.sofa.rpc.core.request.SofaRequest"
#define RESPONSE_CLASS "com.alipay.sofa.rpc.core.response.SofaResponse"

static const char *const headers[][2] = {
    {"sofa_head_target_service", SERVICE},
    {"sofa_head_method_name", "create"},
    {"service", SERVICE},
    {"app", "load"},
    {"protocol", "bolt"},
    {"type", "sync"},
    {"rpc_trace_context.sofaTraceId", "0a4d00071606464646464100112345"},
    {"rpc_trace_context.sofaRpcId", "0"},
    {"rpc_trace_context.sysPenAttrs", ""},
    {"rpc_trace_context.sofaPenAttrs", ""},
    {"rpc_trace_context.samp", "true"},
};

static char *put_text(char *to, const char *text)
{
    size_t size = strlen(text);

    memcpy(to, text, size);
    return to + size;
}

/* What is the same in all requests: all but the id, the length of the content, and the content. */
static size_t write_frame(char *to)
{
    char *at = to + REQUEST_HEAD, *class_end;

    at = class_end = put_text(at, REQUEST_CLASS);
    for (size_t i = 0; i < sizeof(headers) / sizeof(*headers); i++) {
        for (size_t k = 0; k < 2; k++) {
            at = put_text(put(at, strlen(headers[i][k]), 4), headers[i][k]);
        }
    }
    to = put(put(put(put(to, VERSION, 1), REQUEST, 1), CALL, 2), VERSION, 1);
    to = put(put(put(to, 0, 4), HESSIAN2, 1), TIMEOUT_MS, 4);
    to = put(put(to, strlen(REQUEST_CLASS), 2), (uint64_t)(at - class_end), 2);
    return REQUEST_HEAD + strlen(REQUEST_CLASS) + (size_t)(at - class_end);
}

static size_t bolt_ask(char *to, uint64_t id, uint64_t nonce, size_t size)
{
    static char frame[FRAME_MAX], text[NONCE_SIZE];
    static size_t frame_size;

    if (frame_size == 0) {
        frame_size = write_frame(frame);
    }
    memcpy(to, frame, frame_size);
    put(to + ID_AT, id, 4);
    put(to + REQUEST_HEAD - 4, size, 4);
    nonce_write(text, nonce);
    body_write(to + frame_size, text, size);
    return frame_size + size;
}

/* The length of a message, by the three lengths at the end of its head. */
static size_t message_length(const char *bytes, size_t head)
{
    const char *lengths = bytes + head - 8;

    return head + get(lengths, 2) + get(lengths + 2, 2) + get(lengths + 4, 4);
}

static int bolt_read_answer(const char *bytes, size_t have, struct answer *answer)
{
    uint64_t status;

    if (have < RESPONSE_HEAD) {
        return EAGAIN;
    }
    if (bytes[0] != VERSION || bytes[1] != RESPONSE || get(bytes + 2, 2) != ANSWER) {
        return EPROTO;
    }
    answer->length = message_length(bytes, RESPONSE_HEAD);
    if (answer->length > FRAME_MAX + PAYLOAD_MAX) {
        return EPROTO;
    }
    status = get(bytes + 10, 2);
    if (status != 0) {
        fprintf(stderr, "load: Bolt status %llu\n", (unsigned long long)status);
        return EREMOTEIO;
    }
    if (have < answer->length) {
        return EAGAIN;
    }
    answer->id = get(bytes + ID_AT, 4);
    answer->size = get(bytes + RESPONSE_HEAD - 4, 4);
    answer->body = bytes + answer->length - answer->size;
    return 0;
}

static void answer_with(struct output *output, const char *request, const char *class,
                        const char *content, size_t size)
{
    char *at = output->bytes + output->size;
    bool heartbeat = get(request + 2, 2) == HEARTBEAT;

    at = put(put(put(at, VERSION, 1), RESPONSE, 1), heartbeat ? HEARTBEAT : ANSWER, 2);
    at = put(put(put(at, VERSION, 1), get(request + ID_AT, 4), 4), HESSIAN2, 1);
    at = put(put(put(put(at, 0, 2), strlen(class), 2), 0, 2), size, 4);
    at = put_text(at, class);
    memcpy(at, content, size);
    output->size += RESPONSE_HEAD + strlen(class) + size;
}

static ssize_t bolt_serve(const char *bytes, size_t have, struct output *output,
                          struct transfer *transfer)
{
    size_t length, size;

    (void)transfer;
    if (have < REQUEST_HEAD) {
        return 0;
    }
    length = message_length(bytes, REQUEST_HEAD);
    if (bytes[0] != VERSION || (bytes[1] != REQUEST && bytes[1] != ONE_WAY) ||
        length > FRAME_MAX + PAYLOAD_MAX) {
        return -1;
    }
    if (have < length) {
        return 0;
    }
    if (get(bytes + 2, 2) == HEARTBEAT) {
        answer_with(output, bytes, "", "", 0);
    } else if (bytes[1] == REQUEST) {
        size = get(bytes + REQUEST_HEAD - 4, 4);
        answer_with(output, bytes, RESPONSE_CLASS, bytes + length - size, size);
    }
    return (ssize_t)length;
}

const struct protocol bolt = {
    .name = "bolt",
    .ask = bolt_ask,
    .read_answer = bolt_read_answer,
    .serve = bolt_serve,
};
