/* Lines of the access log: each is taken apart again, by other means than those that made it, and
 * says what the record says. */
#include <arpa/inet.h>
#include <ctype.h>
#include <iconv.h>
#include <stdbool.h>
#include <time.h>

#include "../../pysidecar/dataplane/api/json.c"
#include "../../pysidecar/dataplane/api/log_line.c"
#include "../../pysidecar/dataplane/api/request_line.c"

#include "fuzz.h"

enum { MAX_TEXT = DP_PATH_BYTES, MAX_UNITS = 4 * MAX_TEXT };

static iconv_t utf16;
static struct dp_log_texts texts = {
    .directions = {"outbound", "inbound"},
    .transports = {"unix", "header", "redirect", "tproxy", "listener"},
    .actions = {"relay", "refuse", "direct", "requests"},
    .paths = {"relay", "local", "full", "direct"},
    .ends = {[2] = "refused", [31] = "the last"},
    .errnos = {[1] = "EPERM", [DP_ERRNOS - 1] = "ELAST"},
    .protocols = {"tcp", "http", "bolt", "dubbo", "http2", "grpc", "auto"},
    .flags = {[DP_FLAG_TIMEOUT] = "timeout", [DP_FLAGS - 1] = "the last"},
};

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    utf16 = iconv_open("UTF-16LE", "UTF-8");
    CHECK(utf16 != (iconv_t)-1);
    return 0;
}

/* ---- reading a line ---- */

static bool accept_text(const char **at, const char *text)
{
    size_t length = strlen(text);
    bool there = strncmp(*at, text, length) == 0;

    *at += there ? length : 0;
    return there;
}

static void expect(const char **at, const char *text)
{
    CHECK(accept_text(at, text));
}

/* The next characters, up to `end`, without it. */
static const char *until(const char **at, char end, char *to, size_t size)
{
    const char *found = strchr(*at, end);

    CHECK(found && (size_t)(found - *at) < size);
    memcpy(to, *at, (size_t)(found - *at));
    to[found - *at] = 0;
    *at = found;
    return to;
}

static uint64_t read_number(const char **at)
{
    char *end;
    uint64_t number;

    CHECK(isdigit((unsigned char)**at) && ((*at)[0] != '0' || !isdigit((unsigned char)(*at)[1])));
    number = strtoull(*at, &end, 10);
    *at = end;
    return number;
}

static uint16_t read_unit(const char **at)
{
    static const char plain[] = "\"\\\b\f\n\r\t", escaped[] = "\"\\bfnrt";
    char digits[5] = {0}, escape;

    if (**at != '\\')
        return (uint8_t) * (*at)++;
    escape = (*at)[1];
    *at += 2;
    if (escape != 'u') {
        CHECK(strchr(escaped, escape));
        return (uint8_t)plain[strchr(escaped, escape) - escaped];
    }
    memcpy(digits, *at, 4);
    *at += 4;
    return (uint16_t)strtoul(digits, NULL, 16);
}

/* ---- what has to be in it ---- */

static void check_time(const char **at, uint64_t opened_ns)
{
    struct tm date = {0};
    const char *rest = strptime(*at, "%Y-%m-%dT%H:%M:%S.", &date);
    int64_t ms;

    CHECK(rest && isdigit((unsigned char)rest[0]) && rest[3] == 'Z');
    ms = (int64_t)timegm(&date) * 1000 + strtol(rest, NULL, 10);
    CHECK(llabs(ms - (int64_t)(opened_ns / 1000000)) <= 1);
    *at = rest + 4;
}

static void check_address(const char **at, const struct mosnhook_address *address)
{
    static const struct mosnhook_address none;
    struct mosnhook_address read = {.ip = {[10] = 0xff, [11] = 0xff}};
    char host[INET6_ADDRSTRLEN];

    if (accept_text(at, "null")) {
        CHECK(address->port == 0 && memcmp(address->ip, none.ip, sizeof none.ip) == 0);
        return;
    }
    expect(at, "\"");
    if (accept_text(at, "[")) {
        CHECK(inet_pton(
                  AF_INET6,
                  until(at, strcspn(*at, "%") < strcspn(*at, "]") ? '%' : ']', host, sizeof host),
                  read.ip) == 1);
        read.scope_id = accept_text(at, "%") ? (uint32_t)read_number(at) : 0;
        CHECK(read.scope_id == address->scope_id);
        expect(at, "]");
    } else {
        CHECK(inet_pton(AF_INET, until(at, ':', host, sizeof host), read.ip + 12) == 1);
    }
    expect(at, ":");
    CHECK(read_number(at) == address->port);
    CHECK(memcmp(read.ip, address->ip, sizeof read.ip) == 0);
    expect(at, "\"");
}

/* The length of the UTF-8 sequence there, which iconv() takes for one character; 0: it is none. */
static size_t sequence(char *text, size_t left, uint16_t *units, size_t *count)
{
    for (size_t length = 1; length <= 4 && length <= left; length++) {
        char *from = text, *to = (char *)units;
        size_t in = length, out = 4;

        (void)iconv(utf16, NULL, NULL, NULL, NULL);
        if (iconv(utf16, &from, &in, &to, &out) != (size_t)-1 && in == 0) {
            *count = (4 - out) / 2;
            return length;
        }
    }
    return 0;
}

/* Of a text that ends with a NUL, or has `most` bytes. */
static size_t expected_units(const char *padded, size_t most, uint16_t *units)
{
    char text[MAX_TEXT + 1] = {0}, hex[5];
    size_t count = 0;

    memcpy(text, padded, most);
    for (size_t i = 0, added; text[i]; count += added) {
        size_t length = sequence(text + i, strlen(text + i), units + count, &added);

        if (length == 0) {
            snprintf(hex, sizeof hex, "\\x%02x", (uint8_t)text[i]);
            for (added = 0; added < 4; added++)
                units[count + added] = (uint8_t)hex[added];
            length = 1;
        }
        i += length;
    }
    return count;
}

static void check_text(const char **at, const char *key, const char *padded, size_t most)
{
    uint16_t units[MAX_UNITS];
    size_t count = expected_units(padded, most, units);

    expect(at, key);
    if (count == 0) {
        expect(at, "null");
        return;
    }
    expect(at, "\"");
    for (size_t i = 0; i < count; i++)
        CHECK(**at != '"' && read_unit(at) == units[i]);
    expect(at, "\"");
}

/* A number with three digits at most after its point, which is `expected` in parts of a thousandth,
 * `scale` of them in each, and at most `off` off. */
static void check_thousandths(const char **at, __int128 expected, int off, int scale)
{
    __int128 number = read_number(at), digit = 100;

    number *= 1000;
    expect(at, ".");
    CHECK(isdigit((unsigned char)**at));
    for (; isdigit((unsigned char)**at); digit /= 10, (*at)++)
        number += digit * (**at - '0');
    CHECK((*at)[-1] != '0' || (*at)[-2] == '.');
    CHECK(number * scale <= expected + off && number * scale >= expected - off);
}

static void check_known(const char **at, uint64_t number, bool known)
{
    if (known)
        CHECK(read_number(at) == number);
    else
        expect(at, "null");
}

static void check_error(const char **at, const struct dp_record *record)
{
    char text[64] = "null", error[16] = "";
    bool named = record->error > 0 && record->error < DP_ERRNOS && texts.errnos[record->error];

    snprintf(error, sizeof error, "%d", record->error);
    if (texts.ends[record->end])
        snprintf(text, sizeof text, "\"%s%s%s\"", texts.ends[record->end],
                 record->error ? ": " : "",
                 !record->error ? ""
                 : named        ? texts.errnos[record->error]
                                : error);
    expect(at, text);
}

static void expect_name(const char **at, const char *key, const char *name)
{
    char text[64];

    snprintf(text, sizeof text, ", \"%s\": \"%s\"", key, name);
    expect(at, text);
}

static void check_who_and_where(const char **at, const struct dp_record *record)
{
    expect(at, "{\"time\": \"");
    check_time(at, record->opened_ns);
    expect(at, "\"");
    expect_name(at, "type", "connection");
    expect_name(at, "direction", texts.directions[record->direction]);
    expect_name(at, "transport", texts.transports[record->transport]);
    expect(at, ", \"source\": ");
    check_address(at, &record->source);
    expect(at, ", \"original_destination\": ");
    check_address(at, &record->original_destination);
    expect(at, ", \"upstream\": ");
    check_address(at, &record->upstream);
    expect_name(at, "action", texts.actions[record->action]);
    expect_name(at, "path", texts.paths[record->path]);
}

static void check_the_rest(const char **at, const struct dp_record *record)
{
    expect(at, ", \"bytes_sent\": ");
    CHECK(read_number(at) == record->bytes_sent);
    expect(at, ", \"bytes_received\": ");
    CHECK(read_number(at) == record->bytes_received);
    expect(at, ", \"rtt_ms\": ");
    if (record->rtt_us)
        check_thousandths(at, record->rtt_us, 0, 1);
    else
        expect(at, "null");
    expect(at, ", \"duration_ms\": ");
    check_thousandths(at, record->duration_ns, 500, 1000);
    expect(at, ", \"pid\": ");
    check_known(at, record->pid, record->pid != 0);
    expect(at, ", \"uid\": ");
    check_known(at, record->uid, record->uid != UINT32_MAX);
    check_text(at, ", \"process\": ", record->command, sizeof record->command);
    expect(at, ", \"error\": ");
    check_error(at, record);
    expect(at, "}\n");
}

/* ---- the same of a request ---- */

static void check_path(const char **at, const struct dp_request *request, bool query)
{
    char path[DP_PATH_BYTES + 1] = {0};
    bool is_http = request->protocol == DP_HTTP1 || request->protocol == DP_HTTP2 ||
                   request->protocol == DP_GRPC;

    memcpy(path, request->path, DP_PATH_BYTES);
    if (is_http && !query)
        path[strcspn(path, "?")] = 0;
    check_text(at, ", \"path\": ", path, DP_PATH_BYTES);
}

static void check_flags(const char **at, uint32_t flags)
{
    const char *before = "";

    expect(at, ", \"flags\": [");
    for (int flag = 0; flag < DP_FLAGS; flag++)
        if (flags >> flag & 1 && texts.flags[flag]) {
            expect(at, before);
            expect(at, "\"");
            expect(at, texts.flags[flag]);
            expect(at, "\"");
            before = ", ";
        }
    expect(at, "]");
}

static void check_whose(const char **at, const struct dp_request *request)
{
    expect(at, "{\"time\": \"");
    check_time(at, request->began_ns);
    expect(at, "\"");
    expect_name(at, "type", "request");
    expect_name(at, "protocol", texts.protocols[request->protocol]);
    expect_name(at, "direction", texts.directions[request->direction]);
    expect(at, ", \"source\": ");
    check_address(at, &request->source);
    expect(at, ", \"connection\": ");
    CHECK(read_number(at) == request->connection);
    check_text(at, ", \"service\": ", request->service, DP_SERVICE_BYTES);
    check_text(at, ", \"method\": ", request->method, DP_METHOD_BYTES);
}

static void check_id(const char **at, const char *key, const uint8_t *id, size_t size)
{
    static const uint8_t none[DP_TRACE_ID_BYTES];
    char digits[3];

    if (memcmp(id, none, size) == 0)
        return;
    expect(at, key);
    for (size_t i = 0; i < size; i++) {
        snprintf(digits, sizeof digits, "%02x", id[i]);
        expect(at, digits);
    }
    expect(at, "\"");
}

static void check_outcome(const char **at, const struct dp_request *request)
{
    expect(at, ", \"status\": ");
    check_known(at, request->status, request->answered);
    expect(at, ", \"upstream\": ");
    check_address(at, &request->upstream);
    expect(at, ", \"attempts\": ");
    CHECK(read_number(at) == request->attempts);
    expect(at, ", \"bytes_sent\": ");
    CHECK(read_number(at) == request->bytes_sent);
    expect(at, ", \"bytes_received\": ");
    CHECK(read_number(at) == request->bytes_received);
    expect(at, ", \"duration_ms\": ");
    check_thousandths(at, request->duration_ns, 500, 1000);
    expect(at, ", \"first_byte_ms\": ");
    if (request->first_byte_ns)
        check_thousandths(at, request->first_byte_ns, 500, 1000);
    else
        expect(at, "null");
    check_flags(at, request->flags);
    check_id(at, ", \"trace_id\": \"", request->trace_id, sizeof request->trace_id);
    check_id(at, ", \"span_id\": \"", request->span_id, sizeof request->span_id);
    expect(at, "}\n");
}

/* ---- what is written ---- */

static void take_record(struct input *input, uint8_t kind, struct dp_record *record)
{
    take(input, record, sizeof *record);
    record->direction %= DP_DIRECTIONS;
    record->transport %= DP_TRANSPORTS;
    record->action %= DP_ACTIONS;
    record->path %= DP_PATHS;
    record->end %= DP_ENDS;
    if (kind & 1)
        record->error %= DP_ERRNOS;
    if (kind & 2)
        memcpy(record->source.ip, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    if (kind & 4)
        memset(record->upstream.ip + kind % 16, 0, 16 - kind % 16);
}

/* The texts come last: an input that ends before them is a request without. */
static void take_request(struct input *input, uint8_t kind, struct dp_request *request)
{
    take(input, request, sizeof *request);
    request->protocol %= DP_PROTOCOLS;
    request->direction %= DP_DIRECTIONS;
    request->flags &= (uint32_t)((UINT64_C(1) << DP_FLAGS) - 1);
    if (kind & 2)
        memcpy(request->source.ip, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    if (kind & 4)
        request->protocol = DP_HTTP1;
}

static void check(struct input *input, char *line)
{
    uint8_t kind = take_u8(input);
    const char *at = line;
    struct dp_record record;
    struct dp_request request;
    size_t length;

    if (kind & 8) {
        take_request(input, kind, &request);
        length = dp_request_line(&texts, &request, kind & 1, line);
    } else {
        take_record(input, kind, &record);
        length = dp_log_line(&texts, &record, line);
    }
    CHECK(length < DP_LOG_LINE_BYTES);
    line[length] = 0;
    for (size_t i = 0; i + 1 < length; i++)
        CHECK(line[i] >= ' ' && line[i] <= '~');
    if (kind & 8) {
        check_whose(&at, &request);
        check_path(&at, &request, kind & 1);
        check_outcome(&at, &request);
    } else {
        check_who_and_where(&at, &record);
        check_the_rest(&at, &record);
    }
    CHECK(at == line + length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    char *line = malloc(DP_LOG_LINE_BYTES); /* so that ASan watches its end */

    CHECK(line);
    check(&input, line);
    free(line);
    return 0;
}
