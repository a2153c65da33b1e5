/* What it costs to read a head of HTTP/1.1, and to write it again: nanoseconds for each, printed as
 * a line: request, answer, one byte of a head that drips. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "l7/codec.h"

enum { TIMES = 200000, DRIPPING = 30000 };

static const char request[] = "GET /api/v2/orders/12345?expand=items HTTP/1.1\r\n"
                              "Host: orders.example.com:8080\r\n"
                              "User-Agent: curl/8.4.0\r\n"
                              "Accept: */*\r\n"
                              "Accept-Encoding: gzip, deflate\r\n"
                              "X-Request-Id: 3f2504e0-4f89-11d3\r\n"
                              "Connection: keep-alive\r\n\r\n";
static const char answer[] = "HTTP/1.1 200 OK\r\n"
                             "Server: nginx/1.22.1\r\n"
                             "Date: Fri, 02 Jan 2026 03:04:05 GMT\r\n"
                             "Content-Type: application/octet-stream\r\n"
                             "Content-Length: 100\r\n"
                             "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
                             "Connection: keep-alive\r\n"
                             "ETag: \"6745-64\"\r\n"
                             "Accept-Ranges: bytes\r\n\r\n";
static const struct limits limits = {.line_bytes = 8192, .head_bytes = 65536, .fields = 100};

static double now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* Of reading and writing one. */
static double measure(const char *data, size_t size, bool response)
{
    struct adjustment adjustment = {.facts = {.keep_alive = true}};
    double start = now_ns();

    for (int i = 0; i < TIMES; i++) {
        struct decoder decoder = {.limits = &limits, .response = response};
        struct encoder encoder = {.chunked = false};
        struct message message;
        uint8_t to[2048];
        size_t consumed;

        if (codec_http1.decode(&decoder, (const uint8_t *)data, size, &consumed, &message) !=
                CODEC_HEAD ||
            codec_http1.encode(&encoder, &message, &adjustment, to, sizeof to) == 0)
            abort();
    }
    return (now_ns() - start) / TIMES;
}

/* Of one byte more. */
static double measure_dripping(void)
{
    struct decoder decoder = {.limits = &limits};
    static char data[DRIPPING];
    double start;

    memset(data, 'a', sizeof data);
    memcpy(data, request, sizeof request - 3); /* without its end */
    start = now_ns();
    for (size_t size = 1; size <= sizeof data; size++) {
        struct message message;
        size_t consumed;

        if (codec_http1.decode(&decoder, (const uint8_t *)data, size, &consumed, &message) !=
            CODEC_MORE)
            abort();
    }
    return (now_ns() - start) / DRIPPING;
}

int main(void)
{
    printf("%.0f %.0f %.0f\n", measure(request, sizeof request - 1, false),
           measure(answer, sizeof answer - 1, true), measure_dripping());
    return 0;
}
