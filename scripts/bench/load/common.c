/* Latencies, failures and what else the modes share. */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);

    if (memory == NULL) {
        die("calloc");
    }
    return memory;
}

int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

struct span span_from_now(double warm_up, double seconds)
{
    int64_t start = now_ns(), mark = start + (int64_t)(warm_up * 1e9);

    return (struct span){.start = start, .mark = mark, .end = mark + (int64_t)(seconds * 1e9)};
}

/* ---- Failures ---- */

void count_failure(struct failures *failures, int error)
{
    switch (error) {
    case ECONNREFUSED:
        failures->refused++;
        break;
    case ECONNRESET:
        failures->reset++;
        break;
    case EAGAIN: /* SO_RCVTIMEO and SO_SNDTIMEO say so */
    case ETIMEDOUT:
        failures->timed_out++;
        break;
    case EPIPE:
        failures->ended_early++;
        break;
    case EPROTO:
        failures->garbled++;
        break;
    case EREMOTEIO:
        failures->error_status++;
        break;
    default:
        fprintf(stderr, "load: %s\n", strerror(error));
        failures->other++;
    }
}

bool any_failure(const struct failures *failures)
{
    return failures->refused || failures->reset || failures->timed_out || failures->ended_early ||
           failures->garbled || failures->error_status || failures->other;
}

/* ---- Latencies ---- */

static size_t bucket_of(uint64_t nanoseconds)
{
    size_t bucket, power;

    if (nanoseconds < HISTOGRAM_STEPS) {
        return nanoseconds;
    }
    power = (size_t)(63 - __builtin_clzll(nanoseconds)) - 6; /* 2^6 steps */
    bucket = (power + 1) * HISTOGRAM_STEPS + (size_t)(nanoseconds >> power) - HISTOGRAM_STEPS;
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

/* The middle of a bucket. */
static double value_of(size_t bucket)
{
    size_t power;

    if (bucket < HISTOGRAM_STEPS) {
        return (double)bucket;
    }
    power = bucket / HISTOGRAM_STEPS - 1;
    return ((double)(bucket % HISTOGRAM_STEPS + HISTOGRAM_STEPS) + 0.5) * (double)(1ULL << power);
}

void histogram_add(struct histogram *histogram, int64_t nanoseconds)
{
    histogram->counts[bucket_of((uint64_t)nanoseconds)]++;
    histogram->total++;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        into->counts[i] += from->counts[i];
    }
    into->total += from->total;
}

double histogram_us(const struct histogram *histogram, double quantile)
{
    double below = 0, wanted = quantile * (double)histogram->total;
    size_t bucket = 0;

    while (bucket < HISTOGRAM_BUCKETS - 1) {
        below += (double)histogram->counts[bucket];
        if (below >= wanted && below > 0) {
            break;
        }
        bucket++;
    }
    return value_of(bucket) / 1000;
}

void print_result(const struct result *result)
{
    const struct failures *failures = &result->failures;

    printf("{\"seconds\": %.6f, \"amount\": %llu, \"amount_with_warm_up\": %llu", result->seconds,
           (unsigned long long)result->amount, (unsigned long long)result->amount_with_warm_up);
    if (result->latencies.total > 0) {
        printf(", \"p50_us\": %.3f, \"p99_us\": %.3f", histogram_us(&result->latencies, 0.5),
               histogram_us(&result->latencies, 0.99));
    }
    printf(", \"failures\": {\"refused\": %llu, \"reset\": %llu, \"timed out\": %llu, "
           "\"ended early\": %llu, \"garbled\": %llu, \"error status\": %llu, \"other\": %llu}}\n",
           (unsigned long long)failures->refused, (unsigned long long)failures->reset,
           (unsigned long long)failures->timed_out, (unsigned long long)failures->ended_early,
           (unsigned long long)failures->garbled, (unsigned long long)failures->error_status,
           (unsigned long long)failures->other);
    fflush(stdout);
}

/* ---- Sockets ---- */

struct sockaddr_in parse_address(const char *ip, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

    if (inet_pton(AF_INET, ip, &address.sin_addr) != 1) {
        errno = EINVAL;
        die(ip);
    }
    return address;
}

int open_connection(const struct sockaddr_in *to)
{
    struct timeval patience = {.tv_sec = STALL_MS / 1000};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, error;

    if (fd < 0) {
        die("socket");
    }
    if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) != 0) {
        error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    return fd;
}

void watch(int epoll, int fd, uint32_t events, uint64_t data, int operation)
{
    struct epoll_event event = {.events = events, .data.u64 = data};

    if (epoll_ctl(epoll, operation, fd, &event) != 0) {
        die("epoll_ctl");
    }
}

void fill_message(char *message, size_t size, char kind, uint64_t number)
{
    memset(message, kind, size);
    memcpy(message + 1, &number, sizeof(number));
}

int exchange(int fd, char *message, char *answer, size_t size)
{
    ssize_t sent = send(fd, message, size, MSG_NOSIGNAL), got;

    if (sent != (ssize_t)size) {
        return sent < 0 ? errno : EPIPE;
    }
    got = recv(fd, answer, size, MSG_WAITALL);
    if (got != (ssize_t)size) {
        return got < 0 ? errno : EPIPE;
    }
    return memcmp(message, answer, size) == 0 ? 0 : EPROTO;
}
