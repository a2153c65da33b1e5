/* What each client leaves to others. */
#include "unit.h"

#include <arpa/inet.h>
#include <string.h>

#include "intercept/session.h"
#include "l7/share.h"
#include "l7/streams.h"

enum { MOST = 1024 };

static struct streams streams;
static struct worker worker = {.diag = -1, .streams = &streams};
static struct shares *const shares = &streams.shares;
static struct blocks *const blocks = &streams.blocks;

static int set_up(void **state)
{
    (void)state;
    memset(&streams, 0, sizeof streams);
    shares->most_streams = MOST;
    blocks->most = 1 << 20;
    return 0;
}

static uint32_t take_all(struct share *share)
{
    uint32_t count = 0;

    while (share_take_stream(shares, share))
        count++;
    return count;
}

static void test_each_leaves_an_eighth_of_what_others_leave(void **state)
{
    (void)state;
    assert_int_equal(take_all(&shares->of[0]), MOST / 8 * 7);
    assert_int_equal(take_all(&shares->of[1]), MOST / 8 / 8 * 7);
    assert_int_equal(take_all(&shares->of[2]), MOST / 8 / 8 / 8 * 7);
}

static void test_what_is_given_back_is_for_all(void **state)
{
    (void)state;
    for (uint32_t taken = take_all(&shares->of[0]); taken > 0; taken--)
        share_give_stream(shares, &shares->of[0]);
    assert_int_equal(take_all(&shares->of[1]), MOST / 8 * 7);
}

static void test_bytes_are_shared_likewise(void **state)
{
    struct share one = {.bytes = (1 << 20) / 8 * 7}, other = {.bytes = 0};

    (void)state;
    blocks->used = one.bytes;
    assert_false(share_may_hold(&one, blocks, 1));
    assert_true(share_may_hold(&other, blocks, 1 << 16));
}

static struct share *of(const char *host, uint32_t uid)
{
    struct session session = {.worker = &worker, .uid = uid, .downstream.watch.fd = -1};
    uint8_t *ip = session.origin.source.ip;

    if (inet_pton(AF_INET6, host, ip) != 1) {
        ip[10] = ip[11] = 0xff;
        assert_int_equal(inet_pton(AF_INET, host, ip + 12), 1);
    }
    return share_of(&worker, &session);
}

static void test_a_client_is_a_user_or_a_host(void **state)
{
    const uint32_t unknown = UINT32_MAX;

    (void)state;
    assert_ptr_equal(of("127.0.0.1", 1), of("10.0.0.1", 1));
    assert_ptr_not_equal(of("127.0.0.1", 1), of("127.0.0.1", 2));
    assert_ptr_equal(of("10.0.0.1", unknown), of("10.0.0.1", unknown));
    assert_ptr_not_equal(of("10.0.0.1", unknown), of("10.0.0.2", unknown));
    assert_ptr_equal(of("2001:db8::1", unknown), of("2001:db8::2", unknown));
    assert_ptr_not_equal(of("2001:db8::1", unknown), of("2001:db8:0:1::1", unknown));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_each_leaves_an_eighth_of_what_others_leave, set_up),
        cmocka_unit_test_setup(test_what_is_given_back_is_for_all, set_up),
        cmocka_unit_test_setup(test_bytes_are_shared_likewise, set_up),
        cmocka_unit_test_setup(test_a_client_is_a_user_or_a_host, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
