/* The rules by which requests are told apart. Immutable.
 *
 * A rule that asks for one host or service, for all those in a domain, or for a value of one of a
 * few headers, is found by a hash; only the other ones of the request's scope and protocol are gone
 * through one by one. */
#ifndef PYSIDECAR_L7_RULEBOOK_H
#define PYSIDECAR_L7_RULEBOOK_H

#include "base/places.h"
#include "l7/codec.h"

enum { NO_RULE = UINT32_MAX };

struct predicate {
    enum dp_subject subject;
    enum dp_pattern pattern;
    bool alternative;
    struct text name, value;
    uint32_t rewrites; /* of paths: the rewrites if this one is what matches; else NO_RULE */
};

enum { MOST_INDEXED_HEADERS = 4 };

struct rule {
    enum dp_protocol protocol;
    uint32_t scopes; /* 1 << enum dp_scope each */
    uint32_t first_predicate, predicate_count;
    uint32_t rewrites; /* index of three, by enum remainder; NO_RULE: there are none */
};

struct rulebook {
    struct rule *rules;
    struct predicate *predicates;
    struct rewrite *rewrites;
    struct field *set;
    struct text *remove;
    struct places index; /* rules by hash */
    /* What is in the index, so that only that is looked for: how many labels domains have, as bits,
     * and the names of headers. */
    uint32_t beginnings[DP_PROTOCOLS], ends[DP_PROTOCOLS];
    struct text headers[DP_PROTOCOLS][MOST_INDEXED_HEADERS];
    uint32_t header_count[DP_PROTOCOLS];
};

struct matched {
    uint32_t rule;                 /* NO_RULE: none matches */
    const struct rewrite *rewrite; /* NULL: none */
};

static inline struct text text_of(const struct dp_services *from, const char *characters,
                                  uint32_t text)
{
    return (struct text){characters + from->texts[text].first, from->texts[text].size};
}

/* From a table that is consistent, whose characters stay at `characters`. False when out of memory:
 * then it is to be freed, too. */
bool rulebook_create(struct rulebook *book, const struct dp_services *from, const char *characters);
void rulebook_free(struct rulebook *book);
/* The first rule of that scope that matches a request of that protocol. */
struct matched rulebook_match(const struct rulebook *book, enum dp_scope scope,
                              enum dp_protocol protocol, const struct message *request);

#endif
