/* HTTP/1.1: the state machine of a connection's direction. Everything that ends with a line end is
 * looked at when all of it is there; until then only for where it ends, each byte once. */
#include "l7/http1.h"

enum {
    /* Of a line with a chunk's size, with what extends it. */
    MAX_CHUNK_LINE = 256,
    MAX_SIZE_DIGITS = 15, /* below 2^60 */
    GO_ON = -1,           /* of a step: no event yet */
};

/* What comes next. */
enum state {
    STATE_IDLE,       /* a message's line, of which some may be there already */
    STATE_EMPTY_LINE, /* the same, behind an empty line */
    STATE_FIELDS,     /* the rest of a head, whose line is there and right */
    STATE_BODY,
    STATE_CHUNK_SIZE,
    STATE_CHUNK,
    STATE_CHUNK_END,
    STATE_TRAILERS,
    STATE_END,    /* nothing more of the message */
    STATE_LAST,   /* nothing more of the connection, whatever comes */
    STATE_TUNNEL, /* another protocol */
    STATE_FAILED,
    STATES,
};

/* One call of decode(). */
struct reading {
    struct decoder *decoder;
    const char *data;
    size_t size, consumed;
    struct message *message;
};

static int fail(struct reading *reading, uint16_t status, const char *problem)
{
    reading->decoder->state = STATE_FAILED;
    http1_refuse(reading->message, status, problem);
    return CODEC_ERROR;
}

/* What is wrong is said by the message. */
static int failed(struct reading *reading)
{
    reading->decoder->state = STATE_FAILED;
    return CODEC_ERROR;
}

static struct cursor unread(const struct reading *reading)
{
    return (struct cursor){reading->data + reading->consumed, reading->data + reading->size};
}

static size_t unread_size(const struct reading *reading)
{
    return reading->size - reading->consumed;
}

static void consume(struct reading *reading, size_t size, enum state next)
{
    reading->consumed += size;
    reading->decoder->scanned = 0;
    reading->decoder->state = (uint8_t)next;
}

/* Without the rest of what is unread nothing can be said. */
static int wait_for_more(struct reading *reading)
{
    reading->decoder->scanned = (uint32_t)unread_size(reading);
    return CODEC_MORE;
}

static size_t smaller(size_t one, size_t other)
{
    return one < other ? one : other;
}

/* ---- heads ---- */

enum found {
    FOUND_NOTHING,
    FOUND_END,     /* the empty line */
    FOUND_BARE_LF, /* without CR */
};

/* Looks for the empty line in `size` bytes that a line begins with, of which `from` were looked at.
 * Stores where it ends. */
static enum found find_end(const char *data, size_t size, size_t from, size_t *end)
{
    const char *lf = data + from;

    while ((lf = memchr(lf, '\n', (size_t)(data + size - lf)))) {
        if (lf == data || lf[-1] != '\r')
            return FOUND_BARE_LF;
        lf++;
        if (lf == data + 2 || lf[-3] == '\n') {
            *end = (size_t)(lf - data);
            return FOUND_END;
        }
    }
    return FOUND_NOTHING;
}

/* Of a line, of which some is there. Whatever it is to be, it cannot begin with anything else. */
static bool may_begin(const struct decoder *decoder, const char *data)
{
    return decoder->response ? *data == 'H' : http1_token_end(data, data + 1) != data;
}

/* RFC 9112, 2.2: an empty line before a request is ignored. One. */
static int step_idle(struct reading *reading)
{
    const char *data = reading->data + reading->consumed;
    size_t size = unread_size(reading);

    if (size > 0 && *data == '\r' && !reading->decoder->response) {
        if (size < 2)
            return wait_for_more(reading);
        if (data[1] != '\n')
            return fail(reading, 400, "a line ends with CR alone");
        consume(reading, 2, STATE_EMPTY_LINE);
    }
    return GO_ON;
}

/* The line, up to where it ends. Goes on in STATE_FIELDS. */
static int find_line(struct reading *reading)
{
    struct decoder *decoder = reading->decoder;
    const char *data = reading->data + reading->consumed, *lf;
    size_t most = decoder->limits->head_bytes, window = smaller(unread_size(reading), most);
    size_t longest = (size_t)decoder->limits->line_bytes + 2;

    if (window == 0)
        return most == 0 ? fail(reading, 431, "too large a head") : CODEC_MORE;
    if (!may_begin(decoder, data))
        return fail(reading, 400, decoder->response ? "not an answer" : "not a method");
    lf = memchr(data + decoder->scanned, '\n', window - decoder->scanned);
    if (lf ? (size_t)(lf - data) >= longest : window >= longest)
        return fail(reading, 414, "too long a line");
    if (!lf && window == most)
        return fail(reading, 431, "too large a head");
    if (!lf)
        return wait_for_more(reading);
    decoder->scanned = (uint32_t)(lf + 1 - data);
    return GO_ON;
}

/* A head of which the line is there, but no end. It is read again with the rest. */
static int refuse_or_wait(struct reading *reading, bool is_new, enum found found, size_t most)
{
    struct decoder *decoder = reading->decoder;
    struct cursor in = unread(reading);

    if (is_new && !http1_read_line(&in, decoder->response, reading->message))
        return failed(reading);
    if (found == FOUND_BARE_LF)
        return fail(reading, 400, "a line ends with LF alone");
    if (unread_size(reading) >= most)
        return fail(reading, 431, "too large a head");
    decoder->state = STATE_FIELDS;
    return wait_for_more(reading);
}

static enum state state_behind_head(const struct decoder *decoder, const struct message *message)
{
    if (!message->has_body)
        return STATE_END;
    return decoder->plain ? STATE_BODY : STATE_CHUNK_SIZE;
}

static int give_head(struct reading *reading, size_t size)
{
    struct decoder *decoder = reading->decoder;

    decoder->last = reading->message->last;
    consume(reading, size, state_behind_head(decoder, reading->message));
    if (reading->message->upgraded)
        decoder->state = STATE_TUNNEL;
    return CODEC_HEAD;
}

static int find_fields(struct reading *reading, bool is_new)
{
    struct decoder *decoder = reading->decoder;
    size_t most = decoder->limits->head_bytes, size = 0;
    struct cursor in = unread(reading);
    enum found found =
        find_end(in.at, smaller(unread_size(reading), most), decoder->scanned, &size);

    if (found != FOUND_END)
        return refuse_or_wait(reading, is_new, found, most);
    if (!http1_read_head(&in, decoder, reading->message))
        return failed(reading);
    return give_head(reading, size);
}

/* A head that is all there when it is looked at for the first time, as most are, and right, is read
 * at once. Of others it takes a closer look to say what there is: GO_ON. */
static int try_whole(struct reading *reading)
{
    struct decoder *decoder = reading->decoder;
    size_t most = smaller(unread_size(reading), decoder->limits->head_bytes);
    const char *from = reading->data + reading->consumed;
    struct cursor in = {from, from + most};

    if (most > 0 && decoder->scanned == 0 && http1_read_head(&in, decoder, reading->message))
        return give_head(reading, (size_t)(in.at - from));
    *reading->message = (struct message){.kind = reading->message->kind};
    return GO_ON;
}

static int step_line(struct reading *reading)
{
    int event = try_whole(reading);

    if (event == GO_ON)
        event = find_line(reading);
    return event == GO_ON ? find_fields(reading, true) : event;
}

static int step_first_line(struct reading *reading)
{
    int event = step_idle(reading);

    return event == GO_ON ? step_line(reading) : event;
}

static int step_fields(struct reading *reading)
{
    return find_fields(reading, false);
}

/* ---- bodies ---- */

static int give_data(struct reading *reading, enum state next)
{
    struct decoder *decoder = reading->decoder;
    size_t size = unread_size(reading);

    if (size == 0)
        return CODEC_MORE;
    if (size > decoder->left)
        size = (size_t)decoder->left;
    reading->message->data =
        text_between(reading->data + reading->consumed, reading->data + reading->consumed + size);
    if (decoder->left != UINT64_MAX)
        decoder->left -= size;
    consume(reading, size, decoder->left > 0 ? (enum state)decoder->state : next);
    return CODEC_DATA;
}

static int give_end(struct reading *reading)
{
    struct decoder *decoder = reading->decoder;

    decoder->plain = false;
    decoder->left = 0;
    decoder->state = decoder->last ? STATE_LAST : STATE_IDLE;
    return CODEC_END;
}

static int step_body(struct reading *reading)
{
    return reading->decoder->left == 0 ? give_end(reading) : give_data(reading, STATE_END);
}

static int hexadecimal(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = lower_case(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Of a chunk: digits and nothing else. */
static bool read_size(struct cursor *in, uint64_t *size)
{
    const char *from = in->at;

    *size = 0;
    for (; in->at < in->end && hexadecimal(*in->at) >= 0; in->at++)
        *size = *size << 4 | (uint64_t)hexadecimal(*in->at);
    return in->at > from && in->at - from <= MAX_SIZE_DIGITS;
}

static bool skip_quoted(struct cursor *in)
{
    for (in->at++; in->at < in->end && *in->at != '"'; in->at++)
        if (*in->at == '\\' && ++in->at == in->end)
            return false;
    return in->at++ < in->end;
}

/* Extensions of a chunk, without a space around what separates them: others have been tricked with
 * those. Known to hold no control characters. */
static bool skip_extensions(struct cursor *in)
{
    const char *from;

    while (in->at < in->end) {
        from = in->at + 1;
        if (*in->at != ';' || (in->at = http1_token_end(from, in->end)) == from)
            return false;
        if (in->at == in->end || *in->at != '=')
            continue;
        from = ++in->at;
        if (from < in->end && *from == '"') {
            if (!skip_quoted(in))
                return false;
        } else if ((in->at = http1_token_end(from, in->end)) == from) {
            return false;
        }
    }
    return true;
}

static bool read_chunk_line(struct text line, uint64_t *size)
{
    struct cursor in = {line.at, line.at + line.size};

    return read_size(&in, size) && http1_is_value(line) && skip_extensions(&in);
}

static int step_chunk_size(struct reading *reading)
{
    struct decoder *decoder = reading->decoder;
    const char *data = reading->data + reading->consumed, *lf;
    size_t window = smaller(unread_size(reading), MAX_CHUNK_LINE);

    lf = memchr(data + decoder->scanned, '\n', window - decoder->scanned);
    if (!lf && window == MAX_CHUNK_LINE)
        return fail(reading, 400, "too long a line before a chunk");
    if (!lf)
        return wait_for_more(reading);
    if (lf == data || lf[-1] != '\r')
        return fail(reading, 400, "a line ends with LF alone");
    if (!read_chunk_line(text_between(data, lf - 1), &decoder->left))
        return fail(reading, 400, "not the size of a chunk");
    consume(reading, (size_t)(lf + 1 - data), decoder->left > 0 ? STATE_CHUNK : STATE_TRAILERS);
    return GO_ON;
}

static int step_chunk(struct reading *reading)
{
    return give_data(reading, STATE_CHUNK_END);
}

static int step_chunk_end(struct reading *reading)
{
    const char *data = reading->data + reading->consumed;
    size_t size = unread_size(reading);

    if ((size > 0 && data[0] != '\r') || (size > 1 && data[1] != '\n'))
        return fail(reading, 400, "more in a chunk than its size says");
    if (size < 2)
        return wait_for_more(reading);
    consume(reading, 2, STATE_CHUNK_SIZE);
    return GO_ON;
}

static int step_trailers(struct reading *reading)
{
    struct decoder *decoder = reading->decoder;
    size_t most = decoder->limits->head_bytes, end = 0;
    struct cursor in = unread(reading);

    switch (find_end(in.at, smaller(unread_size(reading), most), decoder->scanned, &end)) {
    case FOUND_BARE_LF:
        return fail(reading, 400, "a line ends with LF alone");
    case FOUND_NOTHING:
        if (unread_size(reading) >= most)
            return fail(reading, 431, "too large trailers");
        return wait_for_more(reading);
    default:
        if (!http1_read_trailers(&in, decoder->limits, reading->message))
            return failed(reading);
        consume(reading, end, STATE_IDLE);
        return give_end(reading);
    }
}

/* RFC 9112, 9.6: what follows the last message is not one. */
static int step_last(struct reading *reading)
{
    consume(reading, unread_size(reading), STATE_LAST);
    return CODEC_MORE;
}

/* The head said that another protocol follows. */
static int step_tunnel(struct reading *reading)
{
    if (reading->decoder->left == 0) {
        reading->decoder->left = UINT64_MAX;
        return CODEC_END;
    }
    return fail(reading, 400, "no HTTP any more");
}

static int step_failed(struct reading *reading)
{
    return fail(reading, 400, "it failed before");
}

static enum codec_event decode(struct decoder *decoder, const uint8_t *data, size_t size,
                               size_t *consumed, struct message *message)
{
    static int (*const steps[STATES])(struct reading *) = {
        [STATE_IDLE] = step_first_line,
        [STATE_EMPTY_LINE] = step_line,
        [STATE_FIELDS] = step_fields,
        [STATE_BODY] = step_body,
        [STATE_CHUNK_SIZE] = step_chunk_size,
        [STATE_CHUNK] = step_chunk,
        [STATE_CHUNK_END] = step_chunk_end,
        [STATE_TRAILERS] = step_trailers,
        [STATE_END] = give_end,
        [STATE_LAST] = step_last,
        [STATE_TUNNEL] = step_tunnel,
        [STATE_FAILED] = step_failed,
    };
    struct reading reading = {
        .decoder = decoder,
        .data = size > 0 ? (const char *)data : "",
        .size = size,
        .message = message,
    };
    int event;

    *message = (struct message){.kind = decoder->response ? MESSAGE_RESPONSE : MESSAGE_REQUEST};
    do
        event = steps[decoder->state](&reading);
    while (event == GO_ON);
    *consumed = reading.consumed;
    return (enum codec_event)event;
}

static enum codec_event finish(struct decoder *decoder, struct message *message)
{
    struct reading reading = {.decoder = decoder, .message = message};

    *message = (struct message){.kind = decoder->response ? MESSAGE_RESPONSE : MESSAGE_REQUEST};
    switch (decoder->state) {
    case STATE_IDLE:
    case STATE_EMPTY_LINE:
        if (decoder->scanned == 0)
            return CODEC_MORE;
        break;
    case STATE_BODY:
        if (decoder->left == 0 || decoder->left == UINT64_MAX)
            return (enum codec_event)give_end(&reading);
        break;
    case STATE_LAST:
        return CODEC_MORE;
    case STATE_END:
        return (enum codec_event)give_end(&reading);
    case STATE_TUNNEL:
        return decoder->left == 0 ? (enum codec_event)step_tunnel(&reading) : CODEC_MORE;
    default:
        break;
    }
    return (enum codec_event)fail(&reading, 400, "cut off");
}

static void expect(struct decoder *decoder, const struct facts *facts)
{
    decoder->facts = *facts;
}

/* ---- detection ---- */

/* IANA's registry of methods, but for PRI, which is how HTTP/2 begins. */
static const char methods[] = "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET "
                              "HEAD LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL "
                              "MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST "
                              "PROPFIND PROPPATCH PUT QUERY REBIND REPORT SEARCH TRACE UNBIND "
                              "UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL ";

/* Whether the data begins with the text, as far as it goes. */
static enum detection begins_with(const uint8_t *data, size_t size, const char *text, size_t length)
{
    if (memcmp(data, text, smaller(size, length)) != 0)
        return DETECT_NO;
    return size < length ? DETECT_MORE : DETECT_YES;
}

/* A host, as far as the colon before its port. */
static enum detection detect_authority(const char *data, size_t size)
{
    const char *end = http1_target_end(data, data + size);

    if (memchr(data, ':', (size_t)(end - data)))
        return DETECT_YES;
    return end == data + size ? DETECT_MORE : DETECT_NO;
}

/* A method alone is not enough: Redis has GET, RTSP and SIP have OPTIONS. */
static enum detection detect_target(const uint8_t *data, size_t size, bool connects)
{
    static const char absolute[] = "http://", any[] = "* HTTP/";

    if (size == 0)
        return DETECT_MORE;
    if (data[0] == '/')
        return DETECT_YES;
    if (data[0] == '*')
        return begins_with(data, size, any, sizeof any - 1);
    if (connects)
        return detect_authority((const char *)data, size);
    return begins_with(data, size, absolute, sizeof absolute - 1);
}

static enum detection detect(const uint8_t *data, size_t size)
{
    enum detection all = DETECT_NO;

    for (const char *method = methods, *end; *method; method = end) {
        size_t length;

        end = strchr(method, ' ') + 1;
        length = (size_t)(end - method);
        switch (begins_with(data, size, method, length)) {
        case DETECT_YES:
            return detect_target(data + length, size - length, memcmp(method, "CONN", 4) == 0);
        case DETECT_MORE:
            all = DETECT_MORE;
            break;
        default:
            break;
        }
    }
    return all;
}

const struct codec codec_http1 = {
    .name = "http1",
    .protocol = DP_HTTP1,
    .detect = detect,
    .decode = decode,
    .finish = finish,
    .expect = expect,
    .encode = http1_encode,
    .reject = http1_reject,
    .before_data = http1_before_data,
    .after_data = http1_after_data,
    .end = http1_end,
};
