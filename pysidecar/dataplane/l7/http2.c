#include "l7/http2.h"

#include <stdlib.h>
#include <string.h>

#include "l7/bytes.h"
#include "l7/downstream.h"
#include "l7/http1.h"
#include "l7/http2_parts.h"
#include "l7/uplink.h"

#if HAS_LIBNGHTTP2

enum {
    /* Of a client: what waits on all of its streams. An upstream has that of each stream alone,
     * since clients share it: one that takes nothing is not to stop the others. */
    CLIENT_WINDOW = 1024 * 1024,
    UPSTREAM_WINDOW = 16 * 1024 * 1024,
    MOST_STREAMS = 256, /* of a client at a time */
    MOST_UPSTREAM_STREAMS = 4096,
    GOAWAY_BYTES = FRAME_HEAD + 8,
    REFUSAL_BYTES = 512,
};

void http2_destroy_unless_used(struct http2 *http2)
{
    if (http2->inside || http2->streams)
        return;
    nghttp2_session_del(http2_session_of(http2));
    free(http2);
}

bool http2_leave_session(struct http2 *http2)
{
    http2->inside = false;
    if (!http2->closed)
        return true;
    http2_destroy_unless_used(http2);
    return false;
}

/* Written by hand: libnghttp2 may have given up. */
void http2_say_goodbye(struct http2 *http2, uint32_t error)
{
    uint8_t *to = wire_room(http2->wire, GOAWAY_BYTES);
    uint32_t last = (uint32_t)nghttp2_session_get_last_proc_stream_id(http2_session_of(http2));
    const uint8_t head[] = {0, 0, 8, NGHTTP2_GOAWAY, 0, 0, 0, 0, 0};

    http2->broken = true;
    if (!to)
        return;
    memcpy(to, head, sizeof head);
    write_u32(to + FRAME_HEAD, last);
    write_u32(to + FRAME_HEAD + 4, error);
    wire_wrote(http2->wire, GOAWAY_BYTES);
}

/* Whether the first line of what a client sends is that of a request in HTTP/1. */
static bool begins_http1(const uint8_t *data, size_t size)
{
    static const char version[] = " HTTP/1.";
    const uint8_t *end = memchr(data, '\n', size);

    return end && memmem(data, (size_t)(end - data), version, sizeof version - 1);
}

/* In what its client speaks, to whom frames are garbage. */
static void refuse_http1(struct http2 *http2)
{
    static const struct facts facts = {.keep_alive = false};
    static const struct rejection rejection = {
        .flag = DP_FLAG_MALFORMED_REQUEST,
        .http_status = 505,
        .reason = TEXT("only HTTP/2 by prior knowledge is spoken here"),
        .close = true,
    };
    uint8_t *to = wire_room(http2->wire, REFUSAL_BYTES);

    http2->broken = true;
    if (to)
        wire_wrote(http2->wire, http1_reject(&facts, 0, &rejection, to, REFUSAL_BYTES));
}

static uint32_t error_for(const struct http2 *http2, ssize_t result)
{
    if (http2->fault)
        return http2->fault;
    switch (result) {
    case NGHTTP2_ERR_BAD_CLIENT_MAGIC:
        return NGHTTP2_PROTOCOL_ERROR;
    case NGHTTP2_ERR_NOMEM:
        return NGHTTP2_INTERNAL_ERROR;
    default: /* floods: those that libnghttp2 bounds, and ours */
        return NGHTTP2_ENHANCE_YOUR_CALM;
    }
}

size_t http2_take(struct http2 *http2, const uint8_t *data, size_t size)
{
    ssize_t result;

    if (http2->broken)
        return size;
    if (!http2->greets && begins_http1(data, size)) {
        refuse_http1(http2);
        return size;
    }
    http2->greets = true;
    http2->inside = true;
    result = nghttp2_session_mem_recv(http2_session_of(http2), data, size);
    if (!http2_leave_session(http2))
        return size;
    if (result < 0) {
        http2_fill(http2);
        if (nghttp2_session_want_read(http2_session_of(http2)))
            http2_say_goodbye(http2, error_for(http2, result));
        http2->broken = true;
    }
    http2_schedule(http2);
    return size;
}

bool http2_wants_to_write(const struct http2 *http2)
{
    return http2->greets && nghttp2_session_want_write(http2_session_of(http2));
}

bool http2_is_over(const struct http2 *http2)
{
    return http2->broken ||
           (!nghttp2_session_want_read(http2_session_of(http2)) && !http2_wants_to_write(http2));
}

bool http2_has_room(const struct http2 *http2)
{
    nghttp2_session *session = http2_session_of(http2);
    uint32_t most =
        nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

    if (most > MOST_UPSTREAM_STREAMS)
        most = MOST_UPSTREAM_STREAMS;
    return !http2->goes_away && !http2->broken && http2->stream_count < most &&
           nghttp2_session_check_request_allowed(session);
}

void http2_notice(struct http2 *http2)
{
    if (http2->noticed)
        return;
    http2->noticed = http2->greets = true;
    http2_require(http2, nghttp2_submit_shutdown_notice(http2_session_of(http2)));
    http2_schedule(http2);
}

void http2_go_away(struct http2 *http2)
{
    nghttp2_session *session = http2_session_of(http2);

    if (http2->goes_away)
        return;
    http2->goes_away = http2->greets = true;
    http2_require(http2, nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE,
                                               nghttp2_session_get_last_proc_stream_id(session),
                                               NGHTTP2_NO_ERROR, NULL, 0));
    http2_schedule(http2);
}

static nghttp2_session_callbacks *make_callbacks(void)
{
    nghttp2_session_callbacks *callbacks;

    if (nghttp2_session_callbacks_new(&callbacks) != 0)
        return NULL;
    http2_set_bounds(callbacks);
    http2_set_incoming(callbacks);
    http2_set_outgoing(callbacks);
    return callbacks;
}

/* libnghttp2 copies all of them. */
static bool open_session(struct http2 *http2)
{
    nghttp2_session_callbacks *callbacks = make_callbacks();
    nghttp2_mem memory = {
        .mem_user_data = &http2_worker_of(http2)->streams->http2_memory,
        .malloc = http2_memory_take,
        .free = http2_memory_give,
        .calloc = http2_memory_take_zeros,
        .realloc = http2_memory_resize,
    };
    nghttp2_session *session = NULL;
    nghttp2_option *option = NULL;

    if (callbacks && nghttp2_option_new(&option) == 0) {
        nghttp2_option_set_no_auto_window_update(option, 1);
        nghttp2_option_set_no_closed_streams(option, 1);
        http2_bound(option);
        if (http2->downstream)
            nghttp2_session_server_new3(&session, callbacks, http2, option, &memory);
        else
            nghttp2_session_client_new3(&session, callbacks, http2, option, &memory);
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    http2->session = (struct http2_session *)session;
    return session != NULL;
}

static bool submit_settings(struct http2 *http2)
{
    const struct limits *limits = http2_worker_of(http2)->streams->limits;
    nghttp2_session *session = http2_session_of(http2);
    nghttp2_settings_entry entries[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
         http2->downstream ? STREAM_WINDOW : FIRST_UPSTREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, limits->head_bytes},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MOST_STREAMS},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    size_t count = sizeof entries / sizeof *entries;

    if (!http2->downstream) {
        entries[2] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0};
        count = 3;
    }
    return nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, entries, count) == 0 &&
           nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                                 http2->downstream ? CLIENT_WINDOW
                                                                   : UPSTREAM_WINDOW) == 0;
}

static struct http2 *open_http2(struct wire *wire, struct downstream *downstream,
                                struct uplink *uplink)
{
    struct http2 *http2 = calloc(1, sizeof *http2);

    if (!http2)
        return NULL;
    http2->wire = wire;
    http2->downstream = downstream;
    http2->uplink = uplink;
    http2->greets = uplink != NULL;
    if (!open_session(http2)) {
        free(http2);
        return NULL;
    }
    if (!submit_settings(http2)) {
        http2_destroy_unless_used(http2);
        return NULL;
    }
    http2_schedule(http2);
    return http2;
}

struct http2 *http2_open_downstream(struct downstream *downstream)
{
    return open_http2(&downstream->wire, downstream, NULL);
}

struct http2 *http2_open_uplink(struct uplink *uplink)
{
    return open_http2(&uplink->wire, NULL, uplink);
}

void http2_close(struct http2 *http2)
{
    if (!http2)
        return;
    buffer_release(http2_blocks_of(http2), &http2->head);
    for (struct http2_stream *stream = http2->streams, *next; stream; stream = next) {
        next = stream->next;
        stream->closed = true;
        if (stream->locks == 0)
            http2_free_stream(stream);
    }
    http2->closed = true;
    http2_destroy_unless_used(http2);
}

bool http2_is_built_in(void)
{
    return true;
}

#endif
