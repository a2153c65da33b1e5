/* Peers that speak HTTP/2 by libnghttp2, on sockets that do not block: a client with a few
 * requests, and an upstream that answers. */
#ifndef UNIT_HTTP2_PEERS_H
#define UNIT_HTTP2_PEERS_H

#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

#include "requests.h"

enum { MOST_REQUESTS = 8, MOST_ASKED = 16 };

struct http2_answer {
    int32_t id;
    int status;
    char first; /* byte of its body */
    size_t size, to_send, sent;
    uint32_t error;
    bool closed;
};

struct http2_peer {
    nghttp2_session *session;
    int fd;
    bool ended, sent_away;
    struct http2_answer answers[MOST_REQUESTS]; /* of a client */
};

/* What an upstream knows of a request. */
struct http2_asked {
    char first;
    size_t size, sent;
};

static inline nghttp2_nv pair_of(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), 0};
}

/* ---- a client ---- */

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    struct http2_answer *answer = source->ptr;
    size_t size = answer->to_send < room ? answer->to_send : room;

    (void)session, (void)id, (void)user;
    memset(to, 'y', size);
    answer->to_send -= size;
    if (answer->to_send == 0)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

static inline void peer_request(struct http2_peer *peer, int number, size_t body)
{
    struct http2_answer *answer = &peer->answers[number];
    nghttp2_data_provider provider = {.source.ptr = answer, .read_callback = read_body};
    char path[] = {'/', (char)('0' + number), '\0'};
    nghttp2_nv pairs[] = {pair_of(":method", body ? "POST" : "GET"), pair_of(":scheme", "http"),
                          pair_of(":authority", "a"), pair_of(":path", path),
                          pair_of("te", "trailers")};

    answer->to_send = answer->sent = body;
    answer->id = nghttp2_submit_request(peer->session, NULL, pairs, COUNT(pairs),
                                        body ? &provider : NULL, answer);
}

static int client_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                         size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                         void *user)
{
    struct http2_answer *answer =
        nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

    (void)value_size, (void)flags, (void)user;
    if (answer && name_size == 7 && memcmp(name, ":status", 7) == 0)
        answer->status = atoi((const char *)value);
    return 0;
}

static int client_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                       size_t size, void *user)
{
    struct http2_answer *answer = nghttp2_session_get_stream_user_data(session, id);

    (void)flags, (void)user;
    if (answer->size == 0 && size > 0)
        answer->first = (char)data[0];
    answer->size += size;
    return 0;
}

static int client_closed(nghttp2_session *session, int32_t id, uint32_t error, void *user)
{
    struct http2_answer *answer = nghttp2_session_get_stream_user_data(session, id);

    (void)user;
    answer->closed = true;
    answer->error = error;
    return 0;
}

static int client_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    if (frame->hd.type == NGHTTP2_GOAWAY)
        ((struct http2_peer *)user)->sent_away = true;
    return 0;
}

/* ---- an upstream ---- */

static ssize_t write_body(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                          uint32_t *flags, nghttp2_data_source *source, void *user)
{
    static const nghttp2_nv trailer = {(uint8_t *)"x-end", (uint8_t *)"1", 5, 1, 0};
    struct http2_asked *asked = source->ptr;
    size_t left = 1 + asked->size - asked->sent, size = left < room ? left : room;

    (void)user;
    memset(to, 'x', size);
    if (asked->sent == 0)
        to[0] = (uint8_t)asked->first;
    asked->sent += size;
    if (size == left) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_submit_trailer(session, id, &trailer, 1);
    }
    return (ssize_t)size;
}

static int upstream_began(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2_asked *asked = (struct http2_asked *)user + frame->hd.stream_id / 2 % MOST_ASKED;

    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    *asked = (struct http2_asked){.first = 0};
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, asked);
    return 0;
}

static int upstream_header(nghttp2_session *session, const nghttp2_frame *frame,
                           const uint8_t *name, size_t name_size, const uint8_t *value,
                           size_t value_size, uint8_t flags, void *user)
{
    struct http2_asked *asked = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

    (void)flags, (void)user;
    if (asked && name_size == 5 && memcmp(name, ":path", 5) == 0)
        asked->first = (char)value[value_size - 1];
    return 0;
}

static int upstream_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                         size_t size, void *user)
{
    struct http2_asked *asked = nghttp2_session_get_stream_user_data(session, id);

    (void)flags, (void)data, (void)user;
    asked->size += size;
    return 0;
}

static int upstream_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2_asked *asked = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    nghttp2_data_provider provider = {.source.ptr = asked, .read_callback = write_body};
    const nghttp2_nv status = pair_of(":status", "200");

    (void)user;
    if (asked && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
        nghttp2_submit_response(session, frame->hd.stream_id, &status, 1, &provider);
    return 0;
}

/* ---- both ---- */

static nghttp2_session *peer_session(bool is_upstream, void *user)
{
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session;

    assert_int_equal(nghttp2_session_callbacks_new(&callbacks), 0);
    if (is_upstream) {
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, upstream_began);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, upstream_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, upstream_data);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, upstream_frame);
        assert_int_equal(nghttp2_session_server_new(&session, callbacks, user), 0);
    } else {
        nghttp2_session_callbacks_set_on_header_callback(callbacks, client_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, client_data);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, client_closed);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, client_frame);
        assert_int_equal(nghttp2_session_client_new(&session, callbacks, user), 0);
    }
    nghttp2_session_callbacks_del(callbacks);
    assert_int_equal(nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, NULL, 0), 0);
    return session;
}

static inline void peer_open(struct http2_peer *peer, int fd, bool is_upstream)
{
    *peer = (struct http2_peer){.fd = fd, .session = peer_session(is_upstream, peer)};
}

static inline void peer_close(struct http2_peer *peer)
{
    nghttp2_session_del(peer->session);
    peer->session = NULL;
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

static inline void peer_send(nghttp2_session *session, int fd)
{
    const uint8_t *data;
    ssize_t size;

    while ((size = nghttp2_session_mem_send(session, &data)) > 0)
        for (ssize_t at = 0, sent; at < size; at += sent) {
            sent = send(fd, data + at, (size_t)(size - at), MSG_NOSIGNAL);
            if (sent < 0 && errno == EAGAIN) { /* it is more than a socket holds: rare */
                loop_turn(&worker->loop);
                sent = 0;
            } else if (sent < 0) {
                return;
            }
        }
}

/* Of a client. */
static inline void peer_turn(struct http2_peer *peer)
{
    static uint8_t data[1 << 16];
    ssize_t count;

    if (peer->ended)
        return;
    peer_send(peer->session, peer->fd);
    count = recv(peer->fd, data, sizeof data, 0);
    if (count > 0)
        assert_int_equal(nghttp2_session_mem_recv(peer->session, data, (size_t)count), count);
    else if (count == 0 || errno != EAGAIN)
        peer->ended = true;
}

static nghttp2_session *upstream_sessions[MOST_UPSTREAMS];
/* Nothing here is allocated: it would be one of the allocations that fail. */
static struct http2_asked upstream_asked[MOST_UPSTREAMS][MOST_ASKED];

/* For pump(). */
static inline void serve_http2(struct upstream_peer *peer)
{
    ptrdiff_t number = peer - serving.peers;
    nghttp2_session **session = &upstream_sessions[number];

    if (!*session)
        *session = peer_session(true, upstream_asked[number]);
    assert_int_equal(nghttp2_session_mem_recv(*session, (const uint8_t *)peer->data, peer->size),
                     peer->size);
    peer->size = 0;
    peer_send(*session, peer->fd);
}

static inline void close_http2_peers(void)
{
    for (int i = 0; i < MOST_UPSTREAMS; i++) {
        nghttp2_session_del(upstream_sessions[i]);
        upstream_sessions[i] = NULL;
    }
}

#endif
