/* What it costs to find the rule for a request: nanoseconds of processor time for each, printed as
 * a line. Arguments: a way (host, domain, service, glob), and how many rules there are, each for a
 * name of its own. `glob` is what has no place in the index, so that the rules are gone through. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "l7/rulebook.h"

enum { NAME_BYTES = 64, REQUESTS = 4096, ROUNDS = 200 };

static struct way {
    const char *name, *value, *asked; /* forms of what a rule and a request say */
    enum dp_protocol protocol;
    enum dp_subject subject;
    enum dp_pattern pattern;
} ways[] = {
    {"host", "orders-%u.shop.example.com", "orders-%u.shop.example.com", DP_HTTP1, DP_SUBJECT_HOST,
     DP_PATTERN_EXACT},
    {"domain", "*.orders-%u.example.com", "eu.orders-%u.example.com", DP_HTTP1, DP_SUBJECT_HOST,
     DP_PATTERN_GLOB},
    {"service", "com.example.orders.Service%u:1.0", "com.example.orders.Service%u:1.0", DP_BOLT,
     DP_SUBJECT_SERVICE, DP_PATTERN_EXACT},
    {"glob", "orders-%u.*com", "orders-%u.shop.example.com", DP_HTTP1, DP_SUBJECT_HOST,
     DP_PATTERN_GLOB},
};

static struct rulebook make_rules(const struct way *way, uint32_t count)
{
    struct dp_predicate *predicates = calloc(count, sizeof *predicates);
    struct dp_rule *rules = calloc(count, sizeof *rules);
    struct dp_text *texts = calloc(count + 1, sizeof *texts);
    char *characters = calloc(count, NAME_BYTES);
    struct dp_services table = {.rules = rules,
                                .predicates = predicates,
                                .texts = texts,
                                .rule_count = count,
                                .predicate_count = count,
                                .text_count = count + 1};
    struct rulebook book;

    for (uint32_t i = 0; i < count; i++) {
        char *name = &characters[(size_t)i * NAME_BYTES];

        snprintf(name, NAME_BYTES, way->value, i);
        texts[i + 1] = (struct dp_text){i * NAME_BYTES, (uint32_t)strlen(name)};
        predicates[i] =
            (struct dp_predicate){.subject = way->subject, .pattern = way->pattern, .value = i + 1};
        rules[i] = (struct dp_rule){.protocol = way->protocol,
                                    .scopes = 1u << DP_SCOPE_OUTBOUND,
                                    .first_predicate = i,
                                    .predicate_count = 1};
    }
    if (!rulebook_create(&book, &table, characters))
        exit(1);
    return book;
}

int main(int argc, char **argv)
{
    static char names[REQUESTS][NAME_BYTES];
    static struct message requests[REQUESTS];
    const struct way *way = ways;
    uint32_t count, rounds = ROUNDS;
    struct timespec from, to;
    struct rulebook book;

    if (argc != 3)
        return 2;
    while (strcmp(way->name, argv[1]) != 0)
        if (++way == ways + sizeof ways / sizeof *ways)
            return 2;
    count = (uint32_t)strtoul(argv[2], NULL, 10);
    if (way->pattern == DP_PATTERN_GLOB && count > 100 && strcmp(way->name, "glob") == 0)
        rounds = 1;
    book = make_rules(way, count);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        snprintf(names[i], NAME_BYTES, way->asked, (uint32_t)((uint64_t)i * 2654435761u % count));
        requests[i].service = (struct text){names[i], (uint32_t)strlen(names[i])};
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    for (uint32_t k = 0; k < rounds; k++)
        for (uint32_t i = 0; i < REQUESTS; i++)
            if (rulebook_match(&book, DP_SCOPE_OUTBOUND, way->protocol, &requests[i]).rule ==
                NO_RULE)
                return 1;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    printf("%.1f\n",
           ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) /
               rounds / REQUESTS);
    return 0;
}
