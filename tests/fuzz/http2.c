/* Connections of HTTP/2 on both sides of a worker, whose loop is turned here.
 *
 * An input is a list of steps: what a client and an upstream may do that mean harm. What the data
 * plane writes to either is HTTP whatever it reads from the other; at the end nothing is left,
 * which its own assertions and those of tests/unit/requests.h say. */
#include <nghttp2/nghttp2.h>

#include "../unit/requests.h"
#include "l7/http1_syntax.h"

#include "fuzz.h"

enum {
    MAX_STEPS = 48,
    MAX_PAYLOAD = 40000,
    MAX_BLOCK_FIELDS = 24,
    FRAME_HEAD = 9,
    ENOUGH_TURNS = 200,
    LARGEST_FRAME = 16384,
    PREFACE_BYTES = 24,
};

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* What was written to one of the peers, as it is read there. */
struct reader {
    nghttp2_hd_inflater *inflater;
    struct decoder decoder; /* of HTTP/1 */
    bool greeted;
};

static struct {
    struct input input;
    struct session *session;
    int client;
    bool client_is_http2, upstream_is_http2, client_is_slow;
    uint32_t next_id; /* of the client */
    struct reader of_client, of_upstream[MOST_UPSTREAMS];
    uint8_t from_us[1 << 20]; /* to the client, and not checked yet */
    size_t from_us_size;
} run;

/* ---- what steps are made of ---- */

static const char *const words[] = {
    ":method",
    "GET",
    "POST",
    "HEAD",
    "CONNECT",
    ":path",
    "/",
    "*",
    "/a b",
    "/service/Method",
    ":scheme",
    "http",
    ":authority",
    "a",
    "a:80",
    "@",
    ":status",
    "200",
    "100",
    "103",
    "101",
    "204",
    "304",
    "503",
    "content-length",
    "0",
    "3",
    "99999999999",
    "te",
    "trailers",
    "gzip",
    "host",
    "b",
    "cookie",
    "a=1",
    "content-type",
    "application/grpc",
    "grpc-status",
    "grpc-timeout",
    "1m",
    "transfer-encoding",
    "chunked",
    "connection",
    "close",
    "upgrade",
    "h2c",
    "expect",
    "100-continue",
    "X-Upper",
    "",
    "x\r\ny: z",
    "trailer",
    ":protocol",
    "websocket",
    "traceparent",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "retry-after",
    "grpc-message",
    "content_length",
    "authorization",
};

static const char *const http1_requests[] = {
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
    "HEAD / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\nTE: trailers\r\nx: y\r\n\r\n",
};

static const char *const http1_answers[] = {
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "0\r\nx: y\r\n\r\n",
    "HTTP/1.1 103 Early\r\nLink: x\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    "HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
    "HTTP/1.0 200 OK\r\nConnection: x\r\n\r\nuntil the end",
};

static const uint32_t numbers[] = {0, 1, 3, 100, 16384, 65535, 65536, 0x7fffffff, 0xffffffff};

static uint32_t take_number(void)
{
    uint8_t which = take_u8(&run.input);

    return which < COUNT(numbers) ? numbers[which] : which;
}

static size_t put_u32(uint8_t *to, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(value >> (24 - 8 * i));
    return 4;
}

/* As HPACK writes it without a table. */
static size_t put_string(uint8_t *to, const char *word)
{
    size_t size = strlen(word);

    to[0] = (uint8_t)size;
    memcpy(to + 1, word, size);
    return 1 + size;
}

/* A block of HPACK: fields of the words that the input names, or what stands in it. */
static size_t put_block(uint8_t *to)
{
    uint8_t count = take_u8(&run.input), first;
    size_t size = 0;

    if (count > MAX_BLOCK_FIELDS) {
        size = count % 128;
        take(&run.input, to, size);
        return size;
    }
    for (int i = 0; i < count; i++) {
        first = take_u8(&run.input);
        to[size++] = first & 128 ? 0x40 : 0; /* it goes into the table, or not */
        size += put_string(to + size, words[(first & 127) % COUNT(words)]);
        size += put_string(to + size, words[take_u8(&run.input) % COUNT(words)]);
    }
    return size;
}

static size_t put_payload(uint8_t *to, uint8_t type)
{
    size_t size = 0;

    switch (type) {
    case NGHTTP2_DATA:
        size = take_u8(&run.input);
        size = size > 200 ? (size - 200) * 700 : size;
        memset(to, 'x', size);
        return size;
    case NGHTTP2_HEADERS:
    case NGHTTP2_CONTINUATION:
        return put_block(to);
    case NGHTTP2_SETTINGS:
        for (int i = take_u8(&run.input) % 8; i > 0; i--) {
            to[size++] = 0;
            to[size++] = take_u8(&run.input) % 10;
            size += put_u32(to + size, take_number());
        }
        return size;
    case NGHTTP2_GOAWAY:
        size = put_u32(to, take_number());
        return size + put_u32(to + size, take_u8(&run.input) % 16);
    case NGHTTP2_RST_STREAM:
    case NGHTTP2_WINDOW_UPDATE:
        return put_u32(to, take_number());
    default:
        size = take_u8(&run.input) % 32;
        take(&run.input, to, size);
        return size;
    }
}

/* ---- what peers do ---- */

static void write_to(int fd, const void *data, size_t size)
{
    if (fd >= 0)
        (void)send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void write_frame(int fd, bool is_client)
{
    static uint8_t frame[FRAME_HEAD + MAX_PAYLOAD];
    uint8_t type = take_u8(&run.input), flags = take_u8(&run.input), id = take_u8(&run.input);
    uint32_t stream = id & 127;
    size_t size = put_payload(frame + FRAME_HEAD, type & 64 ? type : type % 10);

    if (id == 255 && is_client) {
        stream = run.next_id;
        run.next_id += 2;
    }
    frame[0] = (uint8_t)(size >> 16);
    frame[1] = (uint8_t)(size >> 8);
    frame[2] = (uint8_t)size;
    frame[3] = type & 64 ? type : type % 10;
    frame[4] = flags;
    put_u32(frame + 5, stream);
    write_to(fd, frame, FRAME_HEAD + size);
}

static void write_raw(int fd, const char *const *texts, size_t count)
{
    uint8_t bytes[256];
    uint8_t size = take_u8(&run.input);

    if (size > 250) {
        size = take_u8(&run.input);
        write_to(fd, texts[size % count], strlen(texts[size % count]));
        return;
    }
    take(&run.input, bytes, size);
    write_to(fd, bytes, size);
}

/* The last one; NULL: there is none. */
static struct upstream_peer *last_peer(void)
{
    return serving.peer_count > 0 ? &serving.peers[serving.peer_count - 1] : NULL;
}

static int upstream_fd(void)
{
    return last_peer() ? last_peer()->fd : -1;
}

/* With a reset: who sends nothing more may still wait for an answer. */
static void reset_client(void)
{
    static const struct linger at_once = {1, 0};

    if (run.client < 0)
        return;
    CHECK(setsockopt(run.client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    close(run.client);
    run.client = -1;
}

static void close_upstream(void)
{
    struct upstream_peer *peer = last_peer();

    if (!peer || peer->fd < 0)
        return;
    close(peer->fd);
    peer->fd = -1;
}

/* ---- what is written to them ---- */

static bool is_lower(struct text name)
{
    for (uint32_t i = 0; i < name.size; i++)
        if (name.at[i] >= 'A' && name.at[i] <= 'Z')
            return false;
    return true;
}

static void check_field(const nghttp2_nv *pair)
{
    struct text name = {(const char *)pair->name, (uint32_t)pair->namelen};
    struct text value = {(const char *)pair->value, (uint32_t)pair->valuelen};

    CHECK(name.size > 0 && is_lower(name) && http1_is_value(value));
    if (name.at[0] == ':')
        return;
    CHECK(http1_is_token(name));
    CHECK(!text_equal(name, TEXT("connection")) && !text_equal(name, TEXT("transfer-encoding")));
    CHECK(!text_equal(name, TEXT("upgrade")) && !text_equal(name, TEXT("keep-alive")));
    CHECK(!text_equal(name, TEXT("te")) || text_equal(value, TEXT("trailers")));
}

static void check_block(struct reader *reader, const uint8_t *data, size_t size)
{
    bool fields_began = false;
    nghttp2_nv pair;
    int flags;
    ssize_t used;

    do {
        flags = 0;
        used = nghttp2_hd_inflate_hd2(reader->inflater, &pair, &flags, data, size, 1);
        CHECK(used >= 0);
        data += used;
        size -= (size_t)used;
        if (!(flags & NGHTTP2_HD_INFLATE_EMIT))
            continue;
        check_field(&pair);
        CHECK(pair.name[0] != ':' || !fields_began);
        fields_began |= pair.name[0] != ':';
    } while (!(flags & NGHTTP2_HD_INFLATE_FINAL));
    CHECK(size == 0);
    nghttp2_hd_inflate_end_headers(reader->inflater);
}

/* Returns how much of it is done with. */
static size_t check_http2(struct reader *reader, bool from_client, const uint8_t *data, size_t size)
{
    size_t at = 0;

    if (!reader->inflater)
        CHECK(nghttp2_hd_inflate_new(&reader->inflater) == 0);
    if (!reader->greeted && from_client) {
        if (size < PREFACE_BYTES)
            return 0;
        CHECK(memcmp(data, preface, PREFACE_BYTES) == 0);
        at = PREFACE_BYTES;
    }
    reader->greeted = true;
    while (size - at >= FRAME_HEAD) {
        const uint8_t *head = data + at;
        size_t length = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];

        if (size - at - FRAME_HEAD < length)
            break;
        CHECK(length <= (1 << 24) - 1);
        if (head[3] == NGHTTP2_HEADERS) { /* never with padding or priorities */
            CHECK(head[4] & NGHTTP2_FLAG_END_HEADERS);
            CHECK(!(head[4] & (NGHTTP2_FLAG_PADDED | NGHTTP2_FLAG_PRIORITY)));
            check_block(reader, head + FRAME_HEAD, length);
        }
        at += FRAME_HEAD + length;
    }
    return at;
}

static size_t check_http1(struct reader *reader, bool response, const uint8_t *data, size_t size)
{
    static const struct limits none = {.line_bytes = 1 << 20, .head_bytes = 1 << 20, .fields = 128};
    enum codec_event event = CODEC_HEAD;
    struct message message;
    size_t at = 0, consumed;

    reader->decoder.limits = &none;
    reader->decoder.response = response;
    while (event != CODEC_MORE) {
        event = codec_http1.decode(&reader->decoder, data + at, size - at, &consumed, &message);
        CHECK(event != CODEC_ERROR);
        at += consumed;
    }
    return at;
}

static void check_upstream(struct upstream_peer *peer)
{
    struct reader *reader = &run.of_upstream[peer - serving.peers];
    const uint8_t *data = (const uint8_t *)peer->data;

    drop_from_peer(peer, run.upstream_is_http2 ? check_http2(reader, true, data, peer->size)
                                               : check_http1(reader, false, data, peer->size));
}

/* Of HTTP/1 only that something comes: what it is depends on the requests. */
static void check_client(void)
{
    ssize_t count;
    size_t done;

    if (run.client < 0 || run.client_is_slow)
        return;
    count = recv(run.client, run.from_us + run.from_us_size, sizeof run.from_us - run.from_us_size,
                 MSG_DONTWAIT);
    if (count <= 0)
        return;
    run.from_us_size += (size_t)count;
    done = run.client_is_http2 ? check_http2(&run.of_client, false, run.from_us, run.from_us_size)
                               : run.from_us_size;
    run.from_us_size -= done;
    memmove(run.from_us, run.from_us + done, run.from_us_size);
}

static void turn(void)
{
    pump(check_upstream);
    check_client();
}

/* ---- an input ---- */

static void step(void)
{
    uint8_t what = take_u8(&run.input);

    if (serving.peer_count >= MOST_UPSTREAMS - 2)
        reset_client();
    switch (what % 8) {
    case 0:
    case 1:
        write_frame(run.client, true);
        break;
    case 2:
        write_raw(run.client, http1_requests, COUNT(http1_requests));
        break;
    case 3:
    case 4:
        write_frame(upstream_fd(), false);
        break;
    case 5:
        write_raw(upstream_fd(), http1_answers, COUNT(http1_answers));
        break;
    case 6:
        if (what & 128)
            run.client_is_slow ^= what >> 3 & 1;
        else if (what & 64)
            close_upstream();
        else if (what & 32)
            reset_client();
        else if (what & 16 && run.client >= 0)
            shutdown(run.client, SHUT_WR);
        else if (upstream_fd() >= 0)
            shutdown(upstream_fd(), SHUT_WR);
        break;
    default:
        break;
    }
    for (int i = what >> 4 & 3; i > 0; i--)
        turn();
}

static void begin(uint8_t how)
{
    static const uint8_t settings[FRAME_HEAD] = {0, 0, 0, NGHTTP2_SETTINGS};
    struct dp_service *service;

    run.client_is_http2 = (how & 3) != 3;
    run.upstream_is_http2 = (how & 3) != 2;
    service = serving_begin(run.client_is_http2 ? DP_HTTP2 : DP_HTTP1, 2);
    service->protocol = run.upstream_is_http2 ? DP_HTTP2 : DP_HTTP1;
    if (how & 4)
        serving_be_resilient(run.client_is_http2 ? DP_HTTP2 : DP_HTTP1);
    if (how & 16) /* what is not taken at once ends */
        atomic_store(&serving.routed.timeouts.flush_ms, 1);
    if (how & 32)
        worker->streams->shares.most_streams = 3;
    serving_offer();
    run.session = arrive(&run.client);
    CHECK(run.session);
    run.next_id = 1;
    if (run.client_is_http2 && !(how & 8)) {
        write_to(run.client, preface, PREFACE_BYTES);
        write_to(run.client, settings, sizeof settings);
    }
    turn();
}

static void close_reader(struct reader *reader)
{
    if (reader->inflater)
        nghttp2_hd_inflate_del(reader->inflater);
}

static void end(void)
{
    reset_client();
    for (int i = 0; i < ENOUGH_TURNS && serving.closed < serving.sessions; i++) {
        turn();
        if (i > ENOUGH_TURNS / 4)
            usleep(1000);
    }
    CHECK(serving.closed == serving.sessions || !run.client_is_http2);
    if (serving.closed < serving.sessions) /* HTTP/1: its answer is still waited for */
        session_close(run.session, DP_END_EOF, 0);
    serving_end();
    for (int i = 0; i < MOST_UPSTREAMS; i++)
        close_reader(&run.of_upstream[i]);
    close_reader(&run.of_client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memset(&run.of_client, 0, sizeof run.of_client);
    memset(run.of_upstream, 0, sizeof run.of_upstream);
    run.from_us_size = 0;
    run.client_is_slow = false;
    run.input = (struct input){data, size};
    begin(take_u8(&run.input));
    for (int i = 0; i < MAX_STEPS && run.input.left > 0; i++)
        step();
    end();
    return 0;
}
