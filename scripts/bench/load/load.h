/* The load of the benchmark: what its modes share. */
#ifndef LOAD_H
#define LOAD_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BLOCK = 1 << 20, /* bulk data comes in blocks, whose first byte says whether another follows */
    CHUNK = 256 << 10, /* for a read or a write of bulk data */
    MESSAGE_MAX = 64 << 10,
    EVENTS = 512,
    STALL_MS = 10000, /* nothing happens for this long: a failure */

    /* The first byte of a connection says what the server shall do with it. */
    ECHO = 'E',
    ONCE = 'O', /* an answer, and the server closes */
    UPLOAD = 'U',
    DOWNLOAD = 'D',
    LAST_BLOCK = 'L',
};

/* ---- What went wrong: any of these and a round has no result ---- */

struct failures {
    uint64_t refused, reset, timed_out, ended_early, garbled, other;
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

/* ---- The modes ---- */

_Noreturn void serve(const struct sockaddr_in *here);
void upload(const struct sockaddr_in *to, struct span span, struct result *result);
void download(const struct sockaddr_in *to, struct span span, struct result *result);
void requests(const struct sockaddr_in *to, double warm_up, double seconds, long connections,
              size_t size, struct result *result);
void connects(const struct sockaddr_in *to, struct span span, long clients, size_t size,
              struct result *result);
void idle(const struct sockaddr_in *to, long connections, struct result *result);
void connect_cost(void);

#endif
