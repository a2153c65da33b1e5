/* The load of the benchmark: what its modes share. */
#ifndef LOAD_H
#define LOAD_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    BLOCK = 1 << 20, /* bulk data comes in blocks, whose first byte says whether another follows */
    CHUNK = 256 << 10, /* for a read or a write of bulk data */
    MESSAGE_MAX = 64 << 10,
    EVENTS = 512,
    PAYLOAD_MAX = 32 << 10, /* of a request or answer that is sent in one piece */
    FRAME_MAX = 1 << 10,    /* what a protocol puts around it */
    STALL_MS = 10000,       /* nothing happens for this long: a failure */

    /* The first byte of a connection says what the server shall do with it; that of another
     * protocol's first request (`protocol_of`) does, too. */
    ECHO = 'E',
    ONCE = 'O', /* an answer, and the server closes */
    UPLOAD = 'U',
    DOWNLOAD = 'D',
    LAST_BLOCK = 'L',
};

/* ---- What went wrong: any of these and a round has no result ---- */

struct failures {
    uint64_t refused, reset, timed_out, ended_early, garbled, error_status, other;
};

void count_failure(struct failures *failures, int error);
bool any_failure(const struct failures *failures);

/* ---- Latencies ---- */

enum {
    HISTOGRAM_STEPS = 64, /* in each power of two of nanoseconds: 1.6% */
    HISTOGRAM_BUCKETS = 40 * HISTOGRAM_STEPS,
};

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS];
    uint64_t total;
};

void histogram_add(struct histogram *histogram, int64_t nanoseconds);
void histogram_merge(struct histogram *into, const struct histogram *from);
double histogram_us(const struct histogram *histogram, double quantile);

/* ---- A measurement ---- */

struct span {
    int64_t start, mark, end; /* warming up until the mark, measuring from there to the end */
};

struct result {
    double seconds;  /* of measuring */
    uint64_t amount; /* bytes, requests or connections while measuring */
    uint64_t amount_with_warm_up;
    struct histogram latencies; /* while measuring; empty for bulk */
    struct failures failures;
};

int64_t now_ns(void);
struct span span_from_now(double warm_up, double seconds);
void print_result(const struct result *result);

/* ---- Sockets ---- */

_Noreturn void die(const char *what);
void *allocate(size_t count, size_t size);
struct sockaddr_in parse_address(const char *ip, const char *port);
int open_connection(const struct sockaddr_in *to); /* blocking; -1 with errno */
void watch(int epoll, int fd, uint32_t events, uint64_t data, int operation);
/* A message there and back, 0 or an errno (EPIPE: ended early, EPROTO: another one came back). */
int exchange(int fd, char *message, char *answer, size_t size);
void fill_message(char *message, size_t size, char kind, uint64_t number);

/* ---- Bulk data ---- */

struct source {
    size_t offset; /* in the block */
    bool stop;     /* asked for: the next block is the last */
    bool in_last;
};

struct sink {
    uint64_t received;
    bool in_last;
};

/* What to send next; `sent` moves on, and is false once the last block is out. */
const char *source_next(const struct source *source, size_t *size);
bool source_sent(struct source *source, size_t size);
/* 1: goes on, 0: that was all, -1: not what was sent. */
int sink_take(struct sink *sink, const char *bytes, size_t size, char more);

/* ---- Bodies of requests and answers: text that begins and ends with whose it is ---- */

enum {
    NONCE_SIZE = 16, /* hexadecimal */
    BODY_MIN = 2 * NONCE_SIZE,
};

struct body {
    char nonce[NONCE_SIZE];
    uint64_t size, offset; /* the offset is how far it is sent or received */
};

void nonce_write(char *to, uint64_t nonce);
void body_write(char *to, const char *nonce, size_t size);
/* What to send next of a long one. */
const char *body_next(const struct body *body, size_t *size);
/* Takes a piece; whether that is what was sent there. Of a long one only samples are looked at. */
bool body_take(struct body *body, const char *bytes, size_t size);

/* ---- Protocols of requests ---- */

/* Bytes that wait for more of their message, or for room in the socket. */
struct rest {
    char *bytes;
    size_t size, room;
};

void rest_append(struct rest *rest, const char *bytes, size_t size);
size_t rest_take(struct rest *rest, char *to); /* moves all of it there; how much it was */
/* Sends `bytes` after what is left of before, and keeps what finds no room. 0 or an errno. */
int rest_send(struct rest *rest, int fd, const char *bytes, size_t size);

/* What the server is about to send, with room for one more answer at any time. */
struct output {
    char bytes[CHUNK + FRAME_MAX + PAYLOAD_MAX];
    size_t size;
};

struct answer {
    size_t length; /* on the wire */
    uint64_t id;   /* of the request, where the protocol has such */
    const char *body;
    size_t size;
};

enum direction { NO_BODY, TO_CLIENT, TO_SERVER };

/* A body that is too long for one piece, on its way. */
struct transfer {
    enum direction direction;
    struct body body;
};

struct protocol {
    const char *name;
    bool in_order; /* the nth answer is the nth request's; else its id says whose it is */
    size_t (*ask)(char *to, uint64_t id, uint64_t nonce, size_t size);
    /* Reads one answer: 0, EAGAIN while it is not all there, EPROTO, or EREMOTEIO where it says
     * that something went wrong. */
    int (*read_answer)(const char *bytes, size_t have, struct answer *answer);
    /* Answers the request at the front; how long that was, 0 while it is not all there, -1 where it
     * is no request. A long body is left in `transfer`. */
    ssize_t (*serve)(const char *bytes, size_t have, struct output *output,
                     struct transfer *transfer);
};

extern const struct protocol http, bolt, dubbo;

const struct protocol *protocol_of(char first_byte); /* NULL: of none */
/* The client's request for a long body, of which the body of the other direction is the answer. */
size_t http_ask_long(char *to, enum direction direction, const struct body *body);
/* The head of an answer, `size` is its body's. As `read_answer`, but for the body. */
int http_read_head(const char *bytes, size_t have, size_t *length, uint64_t *size);
size_t http_write_answer(char *to, const char *nonce, size_t size); /* of the server */

/* The server's end of a connection with requests. */
struct served {
    const struct protocol *protocol;
    struct rest in, out;
    struct transfer transfer;
};

enum serving { NEEDS_INPUT, NEEDS_ROOM, ENDED };

enum serving serve_requests(struct served *served, int fd);
void served_free(struct served *served);

/* The server's end of a connection that speaks HTTP/2, whose answers have bodies of one size. */
#define HTTP2_BODY 100
#define HTTP2_BODY_TEXT "100"

struct http2;

struct http2 *http2_open(void);
/* Answers what came, nothing where there is only room again. */
enum serving http2_serve(struct http2 *http2, int fd, const char *bytes, size_t size);
void http2_free(struct http2 *http2);

/* ---- Bytes of numbers on the wire ---- */

static inline char *put(char *to, uint64_t number, int size)
{
    for (int i = size - 1; i >= 0; i--) {
        to[i] = (char)number;
        number >>= 8;
    }
    return to + size;
}

static inline uint64_t get(const char *from, int size)
{
    uint64_t number = 0;

    for (int i = 0; i < size; i++) {
        number = number << 8 | (unsigned char)from[i];
    }
    return number;
}

/* ---- The modes ---- */

_Noreturn void serve(const struct sockaddr_in *here);
void upload(const struct sockaddr_in *to, struct span span, struct result *result);
void download(const struct sockaddr_in *to, struct span span, struct result *result);
void requests(const struct sockaddr_in *to, double warm_up, double seconds, long connections,
              size_t size, struct result *result);
void connects(const struct sockaddr_in *to, struct span span, long clients, size_t size,
              struct result *result);
void calls(const struct protocol *protocol, const struct sockaddr_in *to, double warm_up,
           double seconds, long connections, long in_flight, size_t size, struct result *result);
void http_bulk(const struct sockaddr_in *to, struct span span, enum direction direction,
               uint64_t size, struct result *result);
/* Uses a new connection once: 0 or an errno. */
typedef int exchange_once(int fd, uint64_t number);
int echo_once(int fd, uint64_t number);
int http_once(int fd, uint64_t number);
void idle(const struct sockaddr_in *to, long connections, exchange_once *once,
          struct result *result);
void connect_cost(void);

#endif
