#include "unit.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "api/inbox.h"
#include "base/clock.h"

#define MINUTE UINT64_C(60000000000)
static const uint64_t noon = 30000 * 1440 * MINUTE;

enum { WORKERS = 2 };

/* What a request may be counted for. */
struct counted {
    struct requests requests;
    struct tally of_standing[WORKERS], of_endpoint[WORKERS];
    struct standing standing;
    struct endpoint endpoint;
};

static void counted_open(struct counted *counted)
{
    memset(counted, 0, sizeof *counted);
    assert_int_equal(requests_create(&counted->requests), 0);
    counted->standing.tallies = counted->of_standing;
    counted->endpoint.workers = WORKERS;
    atomic_init(&counted->endpoint.tallies, counted->of_endpoint);
}

static struct dp_request lasting(uint64_t ms, uint64_t ended_ns)
{
    return (struct dp_request){
        .connection = ms,
        .began_ns = ended_ns - ms * NS_PER_MS,
        .duration_ns = ms * NS_PER_MS,
        .bytes_sent = 3,
        .bytes_received = 50,
        .attempts = 2,
        .status_class = 2,
        .path = "/",
    };
}

static struct dp_tally sum_of(const struct tally *tally)
{
    struct dp_tally sum = {0};

    tally_add(tally, &sum);
    return sum;
}

static uint64_t ended(const struct tally *tally)
{
    struct dp_tally sum = sum_of(tally);
    uint64_t count = 0;

    for (int i = 0; i < DP_STATUS_CLASSES; i++)
        count += sum.statuses[i];
    return count;
}

static void test_each_is_counted_where_it_belongs(void **state)
{
    static struct counted counted;
    struct dp_request request = lasting(3, noon);
    struct endpoint of_a_route = {0};

    (void)state;
    counted_open(&counted);
    requests_ended(&counted.requests, 1, &request, &counted.standing, &counted.endpoint);
    requests_ended(&counted.requests, 1, &request, &counted.standing, NULL);
    requests_ended(&counted.requests, 0, &request, NULL, NULL);
    requests_ended(&counted.requests, 0, &request, NULL, &of_a_route);
    assert_int_equal(ended(&counted.of_standing[0]), 0);
    assert_int_equal(ended(&counted.of_standing[1]), 2);
    assert_int_equal(ended(&counted.of_endpoint[0]), 0);
    assert_int_equal(ended(&counted.of_endpoint[1]), 1);
    assert_int_equal(ended(&counted.requests.unserved), 2);
    requests_destroy(&counted.requests);
}

static void test_sums_are_of_all_that_is_known(void **state)
{
    static struct counted counted;
    struct dp_request request = lasting(3, noon), late = lasting(70000, noon);
    struct dp_tally sum;

    (void)state;
    counted_open(&counted);
    late.status_class = 5;
    late.flags = 1u << DP_FLAG_TIMEOUT | 1u << DP_FLAG_RETRIED;
    requests_ended(&counted.requests, 0, &request, NULL, NULL);
    requests_ended(&counted.requests, 0, &request, NULL, NULL);
    requests_ended(&counted.requests, 0, &late, NULL, NULL);
    sum = sum_of(&counted.requests.unserved);
    assert_int_equal(sum.statuses[2], 2);
    assert_int_equal(sum.statuses[5], 1);
    assert_int_equal(sum.flags[DP_FLAG_TIMEOUT], 1);
    assert_int_equal(sum.flags[DP_FLAG_RETRIED], 1);
    assert_int_equal(sum.flags[DP_FLAG_NO_ROUTE], 0);
    assert_int_equal(sum.attempts, 6);
    assert_int_equal(sum.bytes[0], 9);
    assert_int_equal(sum.bytes[1], 150);
    assert_int_equal(sum.failures, 1);
    assert_int_equal(sum.durations[2][5], 2); /* above 2.5 ms, up to 5 ms */
    assert_int_equal(sum.durations[5][DP_REQUEST_BOUNDS], 1);
    assert_int_equal(sum.duration_us[2], 6000);
    assert_int_equal(sum.duration_us[5], 70000000);
    requests_destroy(&counted.requests);
}

static void test_bounds_belong_to_what_is_below_them(void **state)
{
    (void)state;
    for (unsigned i = 0; i < DP_REQUEST_BOUNDS; i++) {
        static struct counted counted;
        struct dp_request request = lasting(0, noon);
        struct dp_tally sum;

        counted_open(&counted);
        request.duration_ns = dp_request_bounds_ns[i];
        requests_ended(&counted.requests, 0, &request, NULL, NULL);
        request.duration_ns++;
        requests_ended(&counted.requests, 0, &request, NULL, NULL);
        sum = sum_of(&counted.requests.unserved);
        assert_int_equal(sum.durations[2][i], 1);
        assert_int_equal(sum.durations[2][i + 1], 1);
        requests_destroy(&counted.requests);
    }
}

static void test_a_failure_is_the_services_or_the_ways(void **state)
{
    static struct counted counted;
    uint64_t expected = 0;

    (void)state;
    counted_open(&counted);
    for (uint8_t class = 0; class < DP_STATUS_CLASSES; class ++) {
        struct dp_request request = lasting(1, noon);

        request.status_class = class;
        requests_ended(&counted.requests, 0, &request, NULL, NULL);
        expected += class == 5;
    }
    for (unsigned flag = DP_FLAG_NO_ROUTE; flag <= DP_FLAG_LIMIT_REQUESTS; flag++) {
        struct dp_request request = lasting(1, noon);

        request.flags = 1u << flag;
        requests_ended(&counted.requests, 0, &request, NULL, NULL);
        expected += flag <= DP_FLAG_DOWNSTREAM_CLOSED || flag == DP_FLAG_SERVICE_ERROR;
    }
    assert_int_equal(sum_of(&counted.requests.unserved).failures, expected);
    requests_destroy(&counted.requests);
}

static void test_the_latest_are_kept(void **state)
{
    static struct counted counted;
    static struct dp_request recent[RECENT_REQUESTS];

    (void)state;
    counted_open(&counted);
    assert_int_equal(requests_recent(&counted.requests, false, recent, RECENT_REQUESTS), 0);
    for (uint64_t i = 0; i < 3 * RECENT_REQUESTS; i++) {
        struct dp_request request = lasting(i, noon);

        requests_ended(&counted.requests, 0, &request, NULL, NULL);
    }
    for (int again = 0; again < 2; again++) {
        assert_int_equal(requests_recent(&counted.requests, false, recent, RECENT_REQUESTS),
                         RECENT_REQUESTS - 1);
        assert_int_equal(recent[0].connection, 2 * RECENT_REQUESTS + 1);
        assert_int_equal(recent[RECENT_REQUESTS - 2].connection, 3 * RECENT_REQUESTS - 1);
    }
    assert_int_equal(requests_recent(&counted.requests, false, recent, 3), 3);
    assert_int_equal(recent[2].connection, 3 * RECENT_REQUESTS - 1);
    requests_destroy(&counted.requests);
}

/* Also where very many others have ended since. */
static void test_the_latest_failures_are_kept(void **state)
{
    static struct counted counted;
    static struct dp_request recent[FAILED_REQUESTS];

    (void)state;
    counted_open(&counted);
    for (uint64_t i = 0; i < 2 * RECENT_REQUESTS; i++) {
        struct dp_request request = lasting(i, noon);

        request.status_class = i < 3 ? 5 : 2;
        requests_ended(&counted.requests, 0, &request, NULL, NULL);
    }
    assert_int_equal(requests_recent(&counted.requests, true, recent, FAILED_REQUESTS), 3);
    assert_int_equal(recent[0].connection, 0);
    assert_int_equal(recent[2].connection, 2);
    requests_destroy(&counted.requests);
}

static int by_connection(const void *one, const void *other)
{
    const struct dp_request *a = one, *b = other;

    return (a->connection > b->connection) - (a->connection < b->connection);
}

/* In whatever order they come. */
static void test_the_slowest_of_a_minute_are_kept(void **state)
{
    enum { MANY = 1009 };
    struct dp_request slowest[SLOW_REQUESTS];

    (void)state;
    for (uint64_t step = 1; step < MANY; step += 125) {
        static struct counted counted;

        counted_open(&counted);
        for (uint64_t i = 0; i < MANY; i++) {
            struct dp_request request = lasting(i * step % MANY, noon);

            requests_ended(&counted.requests, 0, &request, NULL, NULL);
        }
        assert_int_equal(requests_slowest(&counted.requests, noon, slowest), SLOW_OF_A_MINUTE);
        qsort(slowest, SLOW_OF_A_MINUTE, sizeof *slowest, by_connection);
        for (uint64_t i = 0; i < SLOW_OF_A_MINUTE; i++)
            assert_int_equal(slowest[i].connection, MANY - SLOW_OF_A_MINUTE + i);
        requests_destroy(&counted.requests);
    }
}

/* Not even where nothing came since then. */
static void test_old_ones_are_no_longer_among_the_slowest(void **state)
{
    static struct counted counted;
    struct dp_request slowest[SLOW_REQUESTS];

    (void)state;
    counted_open(&counted);
    for (uint64_t minute = 0; minute < 20; minute++) {
        for (uint64_t i = 0; i < 2 * SLOW_OF_A_MINUTE; i++) {
            struct dp_request request = lasting(100000 - minute, noon + minute * MINUTE);

            requests_ended(&counted.requests, 0, &request, NULL, NULL);
        }
    }
    assert_int_equal(requests_slowest(&counted.requests, noon + 19 * MINUTE - SLOW_FOR_NS, slowest),
                     SLOW_REQUESTS);
    qsort(slowest, SLOW_REQUESTS, sizeof *slowest, by_connection);
    assert_int_equal(slowest[0].connection, 100000 - 19);
    assert_int_equal(slowest[SLOW_REQUESTS - 1].connection, 100000 - 19 + SLOW_MINUTES - 1);
    assert_int_equal(requests_slowest(&counted.requests, noon + 20 * MINUTE, slowest), 0);
    requests_destroy(&counted.requests);
}

static void test_a_tunnel_is_not_slow(void **state)
{
    static struct counted counted;
    struct dp_request tunnel = lasting(3600000, noon), slowest[SLOW_REQUESTS];

    (void)state;
    counted_open(&counted);
    tunnel.flags = 1u << DP_FLAG_UPGRADED;
    requests_ended(&counted.requests, 0, &tunnel, NULL, NULL);
    assert_int_equal(requests_slowest(&counted.requests, 0, slowest), 0);
    requests_destroy(&counted.requests);
}

static atomic_bool done;

/* Each slower than the one before: each of them is kept. */
static void *end_many(void *argument)
{
    struct counted *counted = argument;

    for (uint64_t i = 0; i < 100000; i++) {
        struct dp_request request = lasting(i % 50000, noon);

        request.bytes_sent = request.bytes_received = request.connection;
        requests_ended(&counted->requests, 0, &request, NULL, NULL);
    }
    atomic_store(&done, true);
    return NULL;
}

static void test_a_reader_beside_the_worker_sees_nothing_torn(void **state)
{
    static struct counted counted;
    static struct dp_request found[RECENT_REQUESTS];
    pthread_t worker;

    (void)state;
    counted_open(&counted);
    assert_int_equal(pthread_create(&worker, NULL, end_many, &counted), 0);
    while (!atomic_load(&done)) {
        size_t slow = requests_slowest(&counted.requests, noon, found);
        size_t count =
            slow + requests_recent(&counted.requests, false, found + slow, RECENT_REQUESTS - slow);

        for (size_t i = 0; i < count; i++) {
            assert_int_equal(found[i].duration_ns, found[i].connection * NS_PER_MS);
            assert_int_equal(found[i].bytes_sent, found[i].connection);
            assert_int_equal(found[i].bytes_received, found[i].connection);
        }
    }
    pthread_join(worker, NULL);
    requests_destroy(&counted.requests);
}

/* ---- their lines ---- */

static void fill(struct dp_log_texts *texts, const char *word)
{
    const char **words = (const char **)texts;

    for (size_t i = 0; i < sizeof *texts / sizeof *words; i++)
        words[i] = word;
}

static void test_a_request_has_a_line_while_there_are_such_lines(void **state)
{
    static const uint32_t kinds[] = {0, DP_LOG_CONNECTIONS, DP_LOG_REQUESTS,
                                     DP_LOG_REQUESTS | DP_LOG_QUERIES};
    static const char *const expected[] = {NULL, NULL, "\"path\": \"/a\"", "\"path\": \"/a?b\""};
    struct dp_request request = lasting(1, noon);
    struct dp_log_texts texts;
    struct reports shared = {.event = -1};
    struct report report = {0};
    char lines[DP_LOG_LINE_BYTES];

    (void)state;
    fill(&texts, "word");
    request.protocol = DP_HTTP1;
    strcpy(request.path, "/a?b");
    assert_int_equal(report_create(&report, &shared, 1), 0);
    atomic_store(&shared.texts, &texts);
    for (size_t i = 0; i < COUNT(kinds); i++) {
        size_t size;

        atomic_store(&shared.kinds, kinds[i]);
        report_request(&report, &request);
        assert_int_equal(report.news, expected[i] != NULL);
        report.news = false;
        size = report_take_lines(&report, lines, sizeof lines - 1);
        lines[size] = 0;
        assert_int_equal(size > 0, expected[i] != NULL);
        if (expected[i])
            assert_non_null(strstr(lines, expected[i]));
    }
    report_destroy(&report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_is_counted_where_it_belongs),
        cmocka_unit_test(test_sums_are_of_all_that_is_known),
        cmocka_unit_test(test_bounds_belong_to_what_is_below_them),
        cmocka_unit_test(test_a_failure_is_the_services_or_the_ways),
        cmocka_unit_test(test_the_latest_are_kept),
        cmocka_unit_test(test_the_latest_failures_are_kept),
        cmocka_unit_test(test_the_slowest_of_a_minute_are_kept),
        cmocka_unit_test(test_old_ones_are_no_longer_among_the_slowest),
        cmocka_unit_test(test_a_tunnel_is_not_slow),
        cmocka_unit_test(test_a_reader_beside_the_worker_sees_nothing_torn),
        cmocka_unit_test(test_a_request_has_a_line_while_there_are_such_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
