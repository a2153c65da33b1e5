#include "unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "base/sockaddr.h"

static void assert_round_trip(const struct mosnhook_address *address, int family, socklen_t length)
{
    struct sockaddr_storage name;
    struct mosnhook_address back;

    memset(&name, 0xff, sizeof name);
    memset(&back, 0xff, sizeof back);
    assert_int_equal(address_to_socket(address, &name), length);
    assert_int_equal(name.ss_family, family);
    address_from_socket(&back, &name);
    assert_memory_equal(&back, address, sizeof back);
}

static void test_any_address_comes_back_as_it_was(void **state)
{
    uint64_t random = 1;

    (void)state;
    for (int i = 0; i < 10000; i++) {
        struct mosnhook_address v4 = on_loopback((uint16_t)random_next(&random));
        struct mosnhook_address v6 = v4;

        for (int k = 0; k < 16; k++)
            v6.ip[k] = (uint8_t)random_next(&random);
        v6.scope_id = random_below(&random, 3);
        for (int k = 12; k < 16; k++)
            v4.ip[k] = (uint8_t)random_next(&random);
        assert_round_trip(&v4, AF_INET, sizeof(struct sockaddr_in));
        assert_round_trip(&v6, AF_INET6, sizeof(struct sockaddr_in6));
    }
}

static void test_the_system_reads_what_it_is_given(void **state)
{
    struct mosnhook_address v4 = on_loopback(4711), v6 = loopback_address[1];
    struct sockaddr_storage name;
    char text[INET6_ADDRSTRLEN];

    (void)state;
    address_to_socket(&v4, &name);
    assert_non_null(
        inet_ntop(AF_INET, &((struct sockaddr_in *)&name)->sin_addr, text, sizeof text));
    assert_string_equal(text, "127.0.0.1");
    assert_int_equal(((struct sockaddr_in *)&name)->sin_port, htons(4711));
    address_to_socket(&v6, &name);
    assert_non_null(
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&name)->sin6_addr, text, sizeof text));
    assert_string_equal(text, "::1");
}

static void test_other_families_leave_a_zero_address(void **state)
{
    struct sockaddr_storage name;
    struct mosnhook_address address = on_loopback(1), unspecified = {.ip = {[10] = 0xff, 0xff}};

    (void)state;
    memset(&name, 0xff, sizeof name);
    name.ss_family = AF_UNIX;
    address_from_socket(&address, &name);
    assert_true(address_is_zero(&address));
    assert_false(address_is_zero(&unspecified));
    unspecified = (struct mosnhook_address){.port = 1};
    assert_false(address_is_zero(&unspecified));
}

static void test_both_ends_of_a_connection_are_told(void **state)
{
    struct mosnhook_address local[2], peer[2];
    int fds[2], none = socket(AF_INET, SOCK_STREAM, 0);

    (void)state;
    tcp_pair(fds);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(address_of_local(fds[i], &local[i]), 0);
        assert_int_equal(address_of_peer(fds[i], &peer[i]), 0);
    }
    assert_memory_equal(&local[0], &peer[1], sizeof local[0]);
    assert_memory_equal(&local[1], &peer[0], sizeof local[0]);
    assert_int_equal(address_of_peer(none, &peer[0]), -ENOTCONN);
    assert_int_equal(address_of_local(-1, &peer[0]), -EBADF);
    close(fds[0]);
    close(fds[1]);
    close(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_address_comes_back_as_it_was),
        cmocka_unit_test(test_the_system_reads_what_it_is_given),
        cmocka_unit_test(test_other_families_leave_a_zero_address),
        cmocka_unit_test(test_both_ends_of_a_connection_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
