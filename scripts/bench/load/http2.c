/* The server's end of HTTP/2, by libnghttp2: each request is answered with a small body, and as a
 * call of gRPC where it is one. All answers to what was read are sent with one send. */
#include "load.h"

#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_STREAMS = 4096,
    WINDOW = 1 << 20,
    GRPC_HEAD = 5, /* no compression, and the size */
};

struct http2 {
    nghttp2_session *session;
    struct rest out;
};

static uint8_t body[HTTP2_BODY];
static char is_grpc; /* what a stream of a call points to */

#define FIELD(name, value)                                                          \
    {                                                                               \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, \
            NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE            \
    }

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    static const nghttp2_nv trailers[] = {FIELD("grpc-status", "0")};

    (void)room, (void)source, (void)user;
    memcpy(to, body, sizeof(body));
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (nghttp2_session_get_stream_user_data(session, id) == &is_grpc) {
        *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_submit_trailer(session, id, trailers, 1);
    }
    return sizeof(body);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t size, uint8_t flags, void *user)
{
    static const char type[] = "content-type", grpc[] = "application/grpc";

    (void)flags, (void)user;
    if (name_size == sizeof(type) - 1 && memcmp(name, type, name_size) == 0 &&
        size >= sizeof(grpc) - 1 && memcmp(value, grpc, sizeof(grpc) - 1) == 0) {
        nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, &is_grpc);
    }
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    static const nghttp2_nv plain[] = {FIELD(":status", "200"), FIELD("server", "load"),
                                       FIELD("content-type", "text/plain"),
                                       FIELD("content-length", HTTP2_BODY_TEXT)};
    static const nghttp2_nv grpc[] = {FIELD(":status", "200"), FIELD("server", "load"),
                                      FIELD("content-type", "application/grpc")};
    nghttp2_data_provider provider = {.read_callback = read_body};
    int32_t id = frame->hd.stream_id;

    (void)user;
    if ((frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) ||
        !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
        return 0;
    }
    if (nghttp2_session_get_stream_user_data(session, id) == &is_grpc) {
        return nghttp2_submit_response(session, id, grpc, sizeof(grpc) / sizeof(*grpc), &provider);
    }
    return nghttp2_submit_response(session, id, plain, sizeof(plain) / sizeof(*plain), &provider);
}

struct http2 *http2_open(void)
{
    static const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MOST_STREAMS},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW},
    };
    struct http2 *http2 = allocate(1, sizeof(*http2));
    nghttp2_session_callbacks *callbacks;

    memset(body, 'x', sizeof(body));
    memcpy(body, (uint8_t[]){0, 0, 0, 0, HTTP2_BODY - GRPC_HEAD}, GRPC_HEAD);
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        die("libnghttp2");
    }
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    if (nghttp2_session_server_new(&http2->session, callbacks, NULL) != 0) {
        die("libnghttp2");
    }
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(http2->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(http2->session, NGHTTP2_FLAG_NONE, 0, 16 * WINDOW);
    return http2;
}

/* Sends what there is to send, unless something waits for room already. */
static bool flush(struct http2 *http2, int fd)
{
    static char out[CHUNK];
    const uint8_t *data;
    ssize_t more = 1;

    if (rest_send(&http2->out, fd, NULL, 0) != 0) {
        return false;
    }
    while (more > 0 && http2->out.size == 0) {
        size_t size = 0;

        while (size < sizeof(out) / 2 &&
               (more = nghttp2_session_mem_send(http2->session, &data)) > 0) {
            memcpy(out + size, data, (size_t)more);
            size += (size_t)more;
        }
        if (rest_send(&http2->out, fd, out, size) != 0) {
            return false;
        }
    }
    return more >= 0;
}

enum serving http2_serve(struct http2 *http2, int fd, const char *bytes, size_t size)
{
    if (nghttp2_session_mem_recv(http2->session, (const uint8_t *)bytes, size) != (ssize_t)size ||
        !flush(http2, fd) || (!nghttp2_session_want_read(http2->session) && http2->out.size == 0)) {
        return ENDED;
    }
    return http2->out.size > 0 ? NEEDS_ROOM : NEEDS_INPUT;
}

void http2_free(struct http2 *http2)
{
    if (http2 != NULL) {
        nghttp2_session_del(http2->session);
        free(http2->out.bytes);
        free(http2);
    }
}
