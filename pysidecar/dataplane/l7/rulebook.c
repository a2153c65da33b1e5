#include "l7/rulebook.h"

#include <stdlib.h>

#include "base/random.h"

enum {
    MOST_LABELS = 8, /* of a domain that is in the index */
    MOST_KEYS = 5 + 2 * MOST_LABELS + MAX_FIELDS,
    MOST_NAME = 512, /* bytes of a service with its version */
    NO_LENGTH = UINT32_MAX,
};

/* What is left of a path behind the part that is replaced: there must be one "/" between. */
enum remainder {
    NOT_A_PATH = 0, /* such as "*": nothing is replaced */
    GOES_ON,        /* with a "/" */
    ENDS,           /* or the query begins */
    REMAINDERS,
};

/* ---- comparing ---- */

/* How a request calls its service. */
struct names {
    struct text indexed;   /* by which most rules are found: of HTTP the host, else as `full` */
    struct text target;    /* as it came; of HTTP, that of a call of gRPC */
    struct text full;      /* with its version */
    struct text interface; /* without */
    struct text version, group;
    bool is_none; /* HTTP that calls none: only the host is there */
    char joined[MOST_NAME];
};

static struct text begin_of(struct text text, uint32_t size)
{
    return (struct text){text.at, size};
}

static struct text rest_of(struct text text, uint32_t from)
{
    return (struct text){text.at + from, text.size - from};
}

/* Where the character stands; `size`: nowhere. */
static uint32_t find(struct text text, char character)
{
    const char *at = text.size ? memchr(text.at, character, text.size) : NULL;

    return at ? (uint32_t)(at - text.at) : text.size;
}

static void join_version(struct names *names)
{
    uint32_t size = names->interface.size;

    if (names->version.size == 0 || (size_t)size + 1 + names->version.size > sizeof names->joined)
        return;
    if (size)
        memcpy(names->joined, names->interface.at, size);
    names->joined[size++] = ':';
    memcpy(names->joined + size, names->version.at, names->version.size);
    names->full = (struct text){names->joined, size + names->version.size};
}

/* Bolt's version is a part of the name. */
static void split_version(struct names *names)
{
    uint32_t colon = find(names->full, ':');

    names->version.size = 0;
    if (colon == names->full.size)
        return;
    names->interface = begin_of(names->full, colon);
    names->version = rest_of(names->full, colon + 1);
    names->version.size = find(names->version, ':');
}

static void name(struct names *names, enum dp_protocol protocol, const struct message *request)
{
    bool is_http = protocol == DP_HTTP1;

    names->target = is_http ? request->rpc : request->service;
    names->full = names->interface = names->target;
    names->version = request->version;
    names->group = request->group;
    names->is_none = is_http && request->rpc.size == 0;
    if (protocol == DP_BOLT)
        split_version(names);
    else if (!names->is_none)
        join_version(names);
    names->indexed = is_http ? request->service : names->full;
}

static bool same(char one, char other, bool fold)
{
    return one == other || (fold && lower_case(one) == lower_case(other));
}

/* Goes back to the last "*" only, which is enough: what matched before it stays. */
static bool glob_matches(struct text glob, struct text text, bool fold)
{
    uint32_t at = 0, star = NO_LENGTH, resume = 0;

    for (uint32_t i = 0; i < text.size;) {
        if (at < glob.size && glob.at[at] == '*') {
            star = at++;
            resume = i;
        } else if (at < glob.size && same(glob.at[at], text.at[i], fold)) {
            at++;
            i++;
        } else if (star != NO_LENGTH) {
            at = star + 1;
            i = ++resume;
        } else {
            return false;
        }
    }
    while (at < glob.size && glob.at[at] == '*')
        at++;
    return at == glob.size;
}

static bool text_matches(const struct predicate *predicate, struct text text)
{
    bool fold =
        predicate->subject == DP_SUBJECT_HOST || predicate->subject == DP_SUBJECT_NAME_HEADER;

    if (predicate->pattern == DP_PATTERN_GLOB)
        return glob_matches(predicate->value, text, fold);
    return text_equal(predicate->value, text) ||
           (fold && text_equal_folded(predicate->value, text));
}

static bool path_matches(const struct predicate *predicate, struct text path)
{
    uint32_t size = predicate->value.size;

    if (predicate->subject == DP_SUBJECT_PATH)
        return text_equal(predicate->value, begin_of(path, find(path, '?')));
    return path.size >= size && text_equal(predicate->value, begin_of(path, size)) &&
           (path.size == size ? size > 0 : path.at[size] == '/' || path.at[size] == '?');
}

static bool header_matches(const struct predicate *predicate, const struct message *request)
{
    for (uint32_t i = 0; i < request->field_count; i++)
        if (text_equal_folded(request->fields[i].name, predicate->name) &&
            (predicate->pattern == DP_PATTERN_ANY ||
             text_matches(predicate, request->fields[i].value)))
            return true;
    return false;
}

static bool name_matches(const struct predicate *predicate, const struct names *names)
{
    if (names->is_none)
        return false;
    switch (predicate->subject) {
    case DP_SUBJECT_VERSION:
        return text_matches(predicate, names->version);
    case DP_SUBJECT_GROUP:
        return text_matches(predicate, names->group);
    case DP_SUBJECT_TARGET:
        return text_matches(predicate, names->target);
    default:
        return text_matches(predicate, names->full) || text_matches(predicate, names->interface);
    }
}

static bool predicate_matches(const struct predicate *predicate, const struct message *request,
                              const struct names *names)
{
    switch (predicate->subject) {
    case DP_SUBJECT_HOST:
        return text_matches(predicate, request->service);
    case DP_SUBJECT_PATH:
    case DP_SUBJECT_PATH_PREFIX:
        return path_matches(predicate, request->path);
    case DP_SUBJECT_METHOD:
        return text_matches(predicate, request->method);
    case DP_SUBJECT_HEADER:
    case DP_SUBJECT_NAME_HEADER:
        return header_matches(predicate, request);
    case DP_SUBJECT_SERVICE:
    case DP_SUBJECT_VERSION:
    case DP_SUBJECT_GROUP:
    case DP_SUBJECT_TARGET:
        return name_matches(predicate, names);
    }
    return false;
}

/* `path`: the one of its predicates that says which part of the path is replaced. */
static bool rule_matches(const struct rulebook *book, const struct rule *rule,
                         const struct message *request, const struct names *names,
                         const struct predicate **path)
{
    const struct predicate *predicate = &book->predicates[rule->first_predicate];
    bool matches = true;

    *path = NULL;
    for (uint32_t i = 0; i < rule->predicate_count; i++, predicate++) {
        if (predicate->alternative && matches)
            continue;
        if (!predicate->alternative && !matches)
            return false;
        matches = predicate_matches(predicate, request, names);
        if (matches && predicate->rewrites != NO_RULE)
            *path = predicate;
    }
    return matches;
}

/* ---- the index ---- */

/* HEADER: of a name and a value. CALL: a service of gRPC. ANYTHING: rules that are found under
 * nothing else, by scope. */
enum key_kind { EXACT = 1, BEGINNING, END, HEADER, CALL, ANYTHING };

static uint64_t key_begin(enum dp_protocol protocol, enum key_kind kind)
{
    return random_mix((uint64_t)protocol << 8 | kind);
}

static uint64_t key_add(uint64_t hash, char character)
{
    return (hash ^ (uint8_t)lower_case(character)) * UINT64_C(0x100000001b3);
}

static uint64_t key_add_text(uint64_t hash, struct text text)
{
    for (uint32_t i = 0; i < text.size; i++)
        hash = key_add(hash, text.at[i]);
    return hash;
}

static uint32_t key_end(uint64_t hash)
{
    return (uint32_t)(random_mix(hash) >> 32);
}

static bool is_border(char character)
{
    return character == '.' || character == ':';
}

static uint32_t hash_forwards(enum dp_protocol protocol, enum key_kind kind, struct text text)
{
    return key_end(key_add_text(key_begin(protocol, kind), text));
}

static uint32_t hash_backwards(enum dp_protocol protocol, struct text text)
{
    uint64_t hash = key_begin(protocol, END);

    for (uint32_t i = text.size; i-- > 0;)
        hash = key_add(hash, text.at[i]);
    return key_end(hash);
}

static uint32_t count_borders(struct text text)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < text.size; i++)
        count += is_border(text.at[i]);
    return count;
}

static uint32_t hash_header(enum dp_protocol protocol, struct text name, struct text value)
{
    uint64_t hash = key_add_text(key_begin(protocol, HEADER), name);

    return key_end(key_add_text(key_add(hash, ':'), value));
}

static uint32_t hash_anything(enum dp_protocol protocol, enum dp_scope scope)
{
    return key_end(key_add(key_begin(protocol, ANYTHING), (char)scope));
}

/* Under which hash requests find a rule. */
struct key {
    enum key_kind kind;
    uint32_t hash;
    uint32_t labels; /* of a domain */
};

static bool is_name(enum dp_subject subject)
{
    return subject == DP_SUBJECT_HOST || subject == DP_SUBJECT_SERVICE ||
           subject == DP_SUBJECT_TARGET;
}

static bool is_header(enum dp_subject subject)
{
    return subject == DP_SUBJECT_HEADER || subject == DP_SUBJECT_NAME_HEADER;
}

/* Of a host or a service. False: a rule with that predicate has none. Of services only beginnings
 * are looked for, since they end with their version or without. */
static bool key_of_name(enum dp_protocol protocol, const struct predicate *predicate,
                        struct key *key)
{
    bool is_host = predicate->subject == DP_SUBJECT_HOST;
    struct text text = predicate->value;
    uint32_t star = find(text, '*');

    if (predicate->pattern == DP_PATTERN_EXACT || star == text.size) {
        *key = (struct key){EXACT, hash_forwards(protocol, EXACT, text), 0};
        return true;
    }
    key->labels = count_borders(text);
    if (key->labels > MOST_LABELS || text.size < 2)
        return false;
    if (star == text.size - 1 && is_border(text.at[star - 1])) {
        key->kind = BEGINNING;
        key->hash = hash_forwards(protocol, BEGINNING, begin_of(text, star));
        return true;
    }
    if (!is_host || star != 0 || text.at[1] != '.' || find(rest_of(text, 1), '*') < text.size - 1)
        return false;
    key->kind = END;
    key->hash = hash_backwards(protocol, rest_of(text, 1));
    return true;
}

static bool is_indexed_header(const struct rulebook *book, enum dp_protocol protocol,
                              struct text name)
{
    for (uint32_t i = 0; i < book->header_count[protocol]; i++)
        if (text_equal_folded(book->headers[protocol][i], name))
            return true;
    return false;
}

/* False: others have all the places. */
static bool index_header(struct rulebook *book, enum dp_protocol protocol, struct text name)
{
    uint32_t *count = &book->header_count[protocol];

    if (is_indexed_header(book, protocol, name))
        return true;
    if (*count == MOST_INDEXED_HEADERS)
        return false;
    book->headers[protocol][(*count)++] = name;
    return true;
}

static bool key_of_call(const struct predicate *predicate, struct key *key)
{
    *key = (struct key){CALL, hash_forwards(DP_HTTP1, CALL, predicate->value), 0};
    return predicate->pattern == DP_PATTERN_EXACT;
}

/* Notes what has to be looked for. */
static bool key_of(struct rulebook *book, enum dp_protocol protocol,
                   const struct predicate *predicate, struct key *key)
{
    if (protocol == DP_HTTP1 && is_name(predicate->subject) &&
        predicate->subject != DP_SUBJECT_HOST)
        return key_of_call(predicate, key);
    if (is_name(predicate->subject)) {
        if (!key_of_name(protocol, predicate, key))
            return false;
        if (key->kind == BEGINNING)
            book->beginnings[protocol] |= UINT32_C(1) << key->labels;
        if (key->kind == END)
            book->ends[protocol] |= UINT32_C(1) << key->labels;
        return true;
    }
    if (!is_header(predicate->subject) || predicate->pattern != DP_PATTERN_EXACT ||
        !index_header(book, protocol, predicate->name))
        return false;
    *key = (struct key){HEADER, hash_header(protocol, predicate->name, predicate->value), 0};
    return true;
}

/* Those that a request may have its rule under. */
struct keys {
    uint32_t each[MOST_KEYS];
    uint32_t count;
};

static void add_key(struct keys *keys, uint64_t hash)
{
    keys->each[keys->count++] = key_end(hash);
}

/* The beginnings of a name with so many labels (as bits), and itself with and without its version.
 */
static void add_forwards(struct keys *keys, enum dp_protocol protocol, uint32_t wanted,
                         struct text text)
{
    uint64_t exact = key_begin(protocol, EXACT), begin = key_begin(protocol, BEGINNING);
    bool versioned = protocol == DP_HTTP1;

    for (uint32_t i = 0, labels = 0; i < text.size; i++) {
        if (text.at[i] == ':' && !versioned) {
            add_key(keys, exact);
            versioned = true;
        }
        exact = key_add(exact, text.at[i]);
        begin = key_add(begin, text.at[i]);
        if (is_border(text.at[i]) && labels < MOST_LABELS && wanted >> ++labels & 1)
            add_key(keys, begin);
    }
    add_key(keys, exact);
}

static void add_backwards(struct keys *keys, enum dp_protocol protocol, uint32_t wanted,
                          struct text text)
{
    uint64_t hash = key_begin(protocol, END);

    for (uint32_t i = text.size, labels = 0; i-- > 0 && labels < MOST_LABELS;) {
        hash = key_add(hash, text.at[i]);
        if (is_border(text.at[i]) && wanted >> ++labels & 1)
            add_key(keys, hash);
    }
}

/* Without its version and with it. */
static void add_call(struct keys *keys, const struct names *names)
{
    if (names->is_none)
        return;
    keys->each[keys->count++] = hash_forwards(DP_HTTP1, CALL, names->target);
    if (names->full.size != names->target.size)
        keys->each[keys->count++] = hash_forwards(DP_HTTP1, CALL, names->full);
}

static void add_headers(struct keys *keys, const struct rulebook *book, enum dp_protocol protocol,
                        const struct message *request)
{
    if (book->header_count[protocol] == 0)
        return;
    for (uint32_t i = 0; i < request->field_count; i++)
        if (is_indexed_header(book, protocol, request->fields[i].name))
            keys->each[keys->count++] =
                hash_header(protocol, request->fields[i].name, request->fields[i].value);
}

/* ---- matching ---- */

/* Rules in order, from one place of the index. */
struct cursor {
    const uint64_t *at, *end;
    uint32_t hash;
};

struct candidates {
    struct cursor each[MOST_KEYS];
    uint32_t count;
};

static bool is_over(const struct cursor *cursor)
{
    return cursor->at == cursor->end || *cursor->at >> 32 != cursor->hash;
}

static void add_cursor(struct candidates *candidates, struct cursor cursor)
{
    if (!is_over(&cursor))
        candidates->each[candidates->count++] = cursor;
}

static void find_candidates(struct candidates *candidates, const struct rulebook *book,
                            enum dp_scope scope, enum dp_protocol protocol,
                            const struct message *request, const struct names *names)
{
    const struct places *index = &book->index;
    struct keys keys;

    keys.count = candidates->count = 0;
    if (index->count == 0)
        return;
    keys.each[keys.count++] = hash_anything(protocol, scope);
    add_headers(&keys, book, protocol, request);
    add_forwards(&keys, protocol, book->beginnings[protocol], names->indexed);
    if (book->ends[protocol])
        add_backwards(&keys, protocol, book->ends[protocol], names->indexed);
    if (protocol == DP_HTTP1)
        add_call(&keys, names);
    for (uint32_t i = 0; i < keys.count; i++)
        add_cursor(candidates, (struct cursor){index->each + places_from(index, keys.each[i]),
                                               index->each + index->count, keys.each[i]});
}

/* The next rule, each once; NO_RULE: there is none. */
static uint32_t next_candidate(struct candidates *candidates)
{
    uint32_t next = NO_RULE;

    for (uint32_t i = 0; i < candidates->count; i++)
        if ((uint32_t)*candidates->each[i].at < next)
            next = (uint32_t)*candidates->each[i].at;
    for (uint32_t i = candidates->count; i-- > 0;) {
        struct cursor *cursor = &candidates->each[i];

        while (!is_over(cursor) && (uint32_t)*cursor->at == next)
            cursor->at++;
        if (is_over(cursor))
            *cursor = candidates->each[--candidates->count];
    }
    return next;
}

static const struct rewrite *rewrite_for(const struct rulebook *book, const struct rule *rule,
                                         const struct predicate *path,
                                         const struct message *request)
{
    const struct rewrite *rewrites;
    uint32_t size;

    if (rule->rewrites == NO_RULE)
        return NULL;
    rewrites = &book->rewrites[path ? path->rewrites : rule->rewrites];
    size = rewrites[GOES_ON].path_prefix_size;
    if (request->path.size == 0 || request->path.at[0] != '/')
        return &rewrites[NOT_A_PATH];
    if (request->path.size <= size || request->path.at[size] == '?')
        return &rewrites[ENDS];
    return &rewrites[GOES_ON];
}

/* Whether it may be asked; else it has the same hash. */
static bool is_for(const struct rule *rule, enum dp_scope scope, enum dp_protocol protocol)
{
    return rule->protocol == protocol && rule->scopes >> scope & 1;
}

struct matched rulebook_match(const struct rulebook *book, enum dp_scope scope,
                              enum dp_protocol protocol, const struct message *request)
{
    struct matched matched = {.rule = NO_RULE};
    struct candidates candidates;
    const struct predicate *path;
    struct names names;
    uint32_t rule;

    name(&names, protocol, request);
    find_candidates(&candidates, book, scope, protocol, request, &names);
    while ((rule = next_candidate(&candidates)) != NO_RULE) {
        if (!is_for(&book->rules[rule], scope, protocol) ||
            !rule_matches(book, &book->rules[rule], request, &names, &path))
            continue;
        matched.rule = rule;
        matched.rewrite = rewrite_for(book, &book->rules[rule], path, request);
        break;
    }
    return matched;
}

/* ---- making ---- */

static bool is_path(enum dp_subject subject)
{
    return subject == DP_SUBJECT_PATH || subject == DP_SUBJECT_PATH_PREFIX;
}

static bool rewrites_anything(const struct dp_rule *rule)
{
    return rule->host || rule->path_prefix || rule->original_destination || rule->set_count ||
           rule->remove_count;
}

/* Without the slashes at the end of a prefix, which the remainder brings. */
static struct text without_slashes(struct text text)
{
    while (text.size > 0 && text.at[text.size - 1] == '/')
        text.size--;
    return text;
}

/* What is known of a book before its arrays are there, and how far they are filled. */
struct making {
    struct rulebook *book;
    const struct dp_services *from;
    const char *characters;
    uint32_t rewrite_count, set_count, remove_count;
};

static struct text text_at(const struct making *making, uint32_t text)
{
    return text_of(making->from, making->characters, text);
}

static void make_predicate(const struct making *making, const struct dp_predicate *from,
                           struct predicate *predicate)
{
    *predicate = (struct predicate){
        .subject = from->subject,
        .pattern = from->pattern,
        .alternative = from->alternative,
        .name = text_at(making, from->name),
        .value = text_at(making, from->value),
        .rewrites = NO_RULE,
    };
    if (from->subject == DP_SUBJECT_PATH_PREFIX)
        predicate->value = without_slashes(predicate->value);
}

/* Three, by enum remainder, for what is behind `replaced` bytes. Returns the index of the first. */
static uint32_t add_rewrites(struct making *making, const struct rewrite *rewrite,
                             const struct dp_rule *rule, uint32_t replaced)
{
    struct rewrite *each = &making->book->rewrites[making->rewrite_count];
    struct text prefix = without_slashes(text_at(making, rule->path_prefix));

    for (int i = 0; i < REMAINDERS; i++)
        each[i] = *rewrite;
    if (rule->path_prefix) {
        each[GOES_ON].path_prefix_size = each[ENDS].path_prefix_size = replaced;
        each[GOES_ON].path_prefix = each[ENDS].path_prefix = prefix;
        if (prefix.size == 0)
            each[ENDS].path_prefix = TEXT("/");
    }
    making->rewrite_count += REMAINDERS;
    return making->rewrite_count - REMAINDERS;
}

/* But for the path. */
static struct rewrite make_rewrite(struct making *making, const struct dp_rule *rule)
{
    const struct dp_header *headers = making->from->headers;
    struct rewrite rewrite = {
        .host = text_at(making, rule->host),
        .set = &making->book->set[making->set_count],
        .set_count = rule->set_count,
        .remove = &making->book->remove[making->remove_count],
        .remove_count = rule->remove_count,
        .original_destination = text_at(making, rule->original_destination),
    };

    for (uint32_t i = 0; i < rule->set_count; i++)
        making->book->set[making->set_count++] =
            (struct field){text_at(making, headers[rule->first_set + i].name),
                           text_at(making, headers[rule->first_set + i].value)};
    for (uint32_t i = 0; i < rule->remove_count; i++)
        making->book->remove[making->remove_count++] =
            text_at(making, headers[rule->first_remove + i].name);
    return rewrite;
}

static void make_rule(struct making *making, const struct dp_rule *from, struct rule *rule)
{
    struct predicate *predicates = &making->book->predicates[from->first_predicate];
    struct rewrite rewrite;

    *rule = (struct rule){from->protocol, from->scopes, from->first_predicate,
                          from->predicate_count, NO_RULE};
    for (uint32_t i = 0; i < from->predicate_count; i++)
        make_predicate(making, &making->from->predicates[from->first_predicate + i],
                       &predicates[i]);
    if (!rewrites_anything(from))
        return;
    rewrite = make_rewrite(making, from);
    rule->rewrites = add_rewrites(making, &rewrite, from, 0);
    for (uint32_t i = 0; i < from->predicate_count; i++)
        if (is_path(predicates[i].subject))
            predicates[i].rewrites = add_rewrites(making, &rewrite, from, predicates[i].value.size);
}

/* Zeros at least once: a count may be 0. */
static void *array(size_t count, size_t size)
{
    return calloc(count + 1, size);
}

static bool make_arrays(struct making *making)
{
    const struct dp_services *from = making->from;
    struct rulebook *book = making->book;
    size_t rewrites = 0, set = 0, remove = 0;

    for (uint32_t i = 0; i < from->rule_count; i++) {
        const struct dp_rule *rule = &from->rules[i];

        set += rule->set_count;
        remove += rule->remove_count;
        if (rewrites_anything(rule))
            rewrites += REMAINDERS * (1 + (size_t)rule->predicate_count);
    }
    book->rules = array(from->rule_count, sizeof *book->rules);
    book->predicates = array(from->predicate_count, sizeof *book->predicates);
    book->rewrites = array(rewrites, sizeof *book->rewrites);
    book->set = array(set, sizeof *book->set);
    book->remove = array(remove, sizeof *book->remove);
    return book->rules && book->predicates && book->rewrites && book->set && book->remove;
}

/* The end of a row of alternatives. */
static uint32_t row_end(const struct predicate *predicates, uint32_t at, uint32_t count)
{
    do
        at++;
    while (at < count && predicates[at].alternative);
    return at;
}

/* Entries of a rule for the requests that ask for what is in it. All alternatives of a row must
 * have keys. Returns how many were added; 0: there is no such row. */
static uint32_t index_by_keys(struct rulebook *book, uint32_t number, uint64_t *entries)
{
    const struct rule *rule = &book->rules[number];
    const struct predicate *predicates = &book->predicates[rule->first_predicate];
    uint32_t end;

    for (uint32_t first = 0; first < rule->predicate_count; first = end) {
        struct key key;
        uint32_t added = 0;

        end = row_end(predicates, first, rule->predicate_count);
        while (first + added < end &&
               key_of(book, rule->protocol, &predicates[first + added], &key))
            entries[added++] = place_of(key.hash, number);
        if (first + added == end)
            return added;
    }
    return 0;
}

/* Appends a rule to the index. Returns how many entries were added. */
static uint32_t index_rule(struct rulebook *book, uint32_t number, uint64_t *entries)
{
    const struct rule *rule = &book->rules[number];
    uint32_t added = index_by_keys(book, number, entries);

    if (added > 0)
        return added;
    for (uint32_t scope = 0; scope < DP_SCOPES; scope++)
        if (rule->scopes >> scope & 1)
            entries[added++] = place_of(hash_anything(rule->protocol, scope), number);
    return added;
}

/* False when out of memory. */
static bool make_index(struct rulebook *book, const struct dp_services *from)
{
    size_t most = from->predicate_count + (size_t)DP_SCOPES * from->rule_count;
    uint64_t *entries = array(most, sizeof *entries);
    uint32_t count = 0;
    bool done;

    if (!entries)
        return false;
    for (uint32_t i = 0; i < from->rule_count; i++)
        count += index_rule(book, i, &entries[count]);
    done = places_set(&book->index, entries, count);
    free(entries);
    return done;
}

bool rulebook_create(struct rulebook *book, const struct dp_services *from, const char *characters)
{
    struct making making = {.book = book, .from = from, .characters = characters};

    *book = (struct rulebook){.rules = NULL};
    if (!make_arrays(&making))
        return false;
    for (uint32_t i = 0; i < from->rule_count; i++)
        make_rule(&making, &from->rules[i], &book->rules[i]);
    return make_index(book, from);
}

void rulebook_free(struct rulebook *book)
{
    free(book->rules);
    free(book->predicates);
    free(book->rewrites);
    free(book->set);
    free(book->remove);
    places_free(&book->index);
}
