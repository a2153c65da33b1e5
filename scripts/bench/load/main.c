/* The load of the benchmark, both ends of it.
 *
 *   load serve IP PORT
 *   load upload|download IP PORT WARM_UP SECONDS
 *   load requests IP PORT WARM_UP SECONDS CONNECTIONS BYTES
 *   load connects IP PORT WARM_UP SECONDS CLIENTS BYTES
 *   load http|bolt|dubbo IP PORT WARM_UP SECONDS CONNECTIONS IN_FLIGHT BYTES
 *   load http-upload|http-download IP PORT WARM_UP SECONDS BYTES
 *   load idle|http-idle IP PORT CONNECTIONS
 *   load connect-cost
 *
 * All but `serve` and `connect-cost` print one line of JSON in the end: what was done in how many
 * seconds (without the warm-up), latencies, and failures, with any of which the exit status is 1.
 */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct result result;

static bool is_mode(int argc, char **argv, const char *mode, int words)
{
    return argc == words + 2 && strcmp(argv[1], mode) == 0;
}

static long positive(const char *word, long limit)
{
    long number = atol(word);

    if (number < 1 || number > limit) {
        fprintf(stderr, "load: expected 1 to %ld, not %s\n", limit, word);
        exit(2);
    }
    return number;
}

static size_t message_size(const char *word)
{
    size_t size = (size_t)positive(word, MESSAGE_MAX);

    return size < 64 ? 64 : size; /* room for the number in it */
}

static const struct protocol *protocol_named(const char *name)
{
    static const struct protocol *const all[] = {&http, &bolt, &dubbo};

    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        if (strcmp(all[i]->name, name) == 0) {
            return all[i];
        }
    }
    return NULL;
}

/* `argv` from the warm-up on, of a mode that is a protocol's name. */
static void call(const struct protocol *protocol, const struct sockaddr_in *address, char **argv)
{
    size_t size = (size_t)positive(argv[4], PAYLOAD_MAX);

    calls(protocol, address, atof(argv[0]), atof(argv[1]), positive(argv[2], 1000000),
          positive(argv[3], 1024), size < BODY_MIN ? BODY_MIN : size, &result);
}

static void bulk_of_http(const struct sockaddr_in *address, char **argv, enum direction direction)
{
    uint64_t size = (uint64_t)positive(argv[2], 1L << 40);

    http_bulk(address, span_from_now(atof(argv[0]), atof(argv[1])), direction,
              size < BODY_MIN ? BODY_MIN : size, &result);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address;
    double warm_up = argc > 5 ? atof(argv[4]) : 0, seconds = argc > 5 ? atof(argv[5]) : 0;

    if (is_mode(argc, argv, "connect-cost", 0)) {
        connect_cost();
        return 0;
    }
    if (argc < 4) {
        fprintf(stderr, "usage: load MODE ... (see the source)\n");
        return 2;
    }
    address = parse_address(argv[2], argv[3]);
    if (is_mode(argc, argv, "serve", 2)) {
        serve(&address);
    } else if (is_mode(argc, argv, "upload", 4)) {
        upload(&address, span_from_now(warm_up, seconds), &result);
    } else if (is_mode(argc, argv, "download", 4)) {
        download(&address, span_from_now(warm_up, seconds), &result);
    } else if (is_mode(argc, argv, "requests", 6)) {
        requests(&address, warm_up, seconds, positive(argv[6], 1000000), message_size(argv[7]),
                 &result);
    } else if (is_mode(argc, argv, "connects", 6)) {
        connects(&address, span_from_now(warm_up, seconds), positive(argv[6], 10000),
                 message_size(argv[7]), &result);
    } else if (is_mode(argc, argv, "idle", 3)) {
        idle(&address, positive(argv[4], 1000000), echo_once, &result);
    } else if (is_mode(argc, argv, "http-idle", 3)) {
        idle(&address, positive(argv[4], 1000000), http_once, &result);
    } else if (is_mode(argc, argv, "http-upload", 5)) {
        bulk_of_http(&address, argv + 4, TO_SERVER);
    } else if (is_mode(argc, argv, "http-download", 5)) {
        bulk_of_http(&address, argv + 4, TO_CLIENT);
    } else if (argc == 9 && protocol_named(argv[1]) != NULL) {
        call(protocol_named(argv[1]), &address, argv + 4);
    } else {
        fprintf(stderr, "usage: load MODE ... (see the source)\n");
        return 2;
    }
    print_result(&result);
    return any_failure(&result.failures) ? 1 : 0;
}
