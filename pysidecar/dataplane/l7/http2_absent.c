/* In place of HTTP/2, where there is no libnghttp2: nothing is configured to use it, see
 * dp_has_http2(). */
#include "l7/http2.h"
#include "l7/http2_library.h"

#if !HAS_LIBNGHTTP2

bool http2_is_built_in(void)
{
    return false;
}

struct http2 *http2_open_downstream(struct downstream *downstream)
{
    (void)downstream;
    return NULL;
}

struct http2 *http2_open_uplink(struct uplink *uplink)
{
    (void)uplink;
    return NULL;
}

void http2_close(struct http2 *http2)
{
    (void)http2;
}

size_t http2_take(struct http2 *http2, const uint8_t *data, size_t size)
{
    (void)http2, (void)data;
    return size;
}

void http2_fill(struct http2 *http2)
{
    (void)http2;
}

bool http2_wants_to_write(const struct http2 *http2)
{
    (void)http2;
    return false;
}

bool http2_is_over(const struct http2 *http2)
{
    (void)http2;
    return true;
}

void http2_notice(struct http2 *http2)
{
    (void)http2;
}

void http2_go_away(struct http2 *http2)
{
    (void)http2;
}

void http2_say_goodbye(struct http2 *http2, uint32_t error)
{
    (void)http2, (void)error;
}

bool http2_has_unsent(const struct http2 *http2)
{
    (void)http2;
    return false;
}

void http2_drop_not_taken(struct http2 *http2)
{
    (void)http2;
}

bool http2_has_room(const struct http2 *http2)
{
    (void)http2;
    return false;
}

struct http2_stream *http2_request(struct http2 *http2, struct stream *stream, const uint8_t *block)
{
    (void)http2, (void)stream, (void)block;
    return NULL;
}

bool http2_respond(struct http2_stream *stream, const uint8_t *block, bool interim)
{
    (void)stream, (void)block, (void)interim;
    return false;
}

bool http2_write(struct http2_stream *stream, const void *data, size_t size)
{
    (void)stream, (void)data, (void)size;
    return false;
}

bool http2_write_end(struct http2_stream *stream, const uint8_t *trailers)
{
    (void)stream, (void)trailers;
    return false;
}

bool http2_is_behind(const struct http2_stream *stream)
{
    (void)stream;
    return false;
}

void http2_pass_on(struct http2_stream *stream)
{
    (void)stream;
}

void http2_leave(struct http2_stream *stream, bool complete)
{
    (void)stream, (void)complete;
}

void http2_free_spares(struct streams *streams)
{
    (void)streams;
}

#endif
