/* The load of the benchmark, both ends of it.
 *
 *   load serve IP PORT
 *   load upload|download IP PORT WARM_UP SECONDS
 *   load requests IP PORT WARM_UP SECONDS CONNECTIONS BYTES
 *   load connects IP PORT WARM_UP SECONDS CLIENTS BYTES
 *   load idle IP PORT CONNECTIONS
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
        idle(&address, positive(argv[4], 1000000), &result);
    } else {
        fprintf(stderr, "usage: load MODE ... (see the source)\n");
        return 2;
    }
    print_result(&result);
    return any_failure(&result.failures) ? 1 : 0;
}
