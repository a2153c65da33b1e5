/* Lookups in rule blobs. The first byte says how the rest is read:
 *
 *   even: as rules, which are compiled here as plainly as contract.h describes it; a lookup must
 *         find what a look at one rule after the other finds
 *   odd:  as a blob of whatever kind; a lookup must stay inside of it and end */
#include "../../hook/rules.h"

#include "fuzz.h"

enum { MAX_RULES = 24, MAX_CUTS = 2 * MAX_RULES + 2 };

struct rule {
    uint8_t first[16], last[16]; /* of the network */
    uint8_t bits;                /* of 128; IPv4 as v4-mapped */
    bool ipv4;
    uint16_t first_port, last_port;
};

struct blob {
    struct mosnhook_rules rules;
    uint8_t space[MAX_CUTS * sizeof(struct mosnhook_boundary) +
                  MAX_RULES * sizeof(struct mosnhook_prefix) +
                  MAX_RULES * 2 * MAX_RULES * sizeof(struct mosnhook_segment)];
};

static bool is_ipv4(const uint8_t ip[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    return memcmp(ip, mapped, sizeof mapped) == 0;
}

static int compare_ips(const void *a, const void *b)
{
    return memcmp(a, b, 16);
}

/* From few bits, so that networks contain each other and addresses are in them. */
static void take_ip(struct input *input, uint8_t ip[16], bool ipv4)
{
    memset(ip, 0, 16);
    if (ipv4)
        ip[10] = ip[11] = 0xff;
    else
        ip[0] = take_u8(input) & 0x81;
    ip[12] = take_u8(input) & 0x83;
    ip[15] = take_u8(input) & 0x83;
}

static void take_rule(struct input *input, struct rule *rule)
{
    uint8_t kind = take_u8(input);

    rule->ipv4 = kind & 1;
    take_ip(input, rule->first, rule->ipv4);
    rule->bits = rule->ipv4 ? 96 + take_u8(input) % 33 : take_u8(input) % 129;
    rule->first_port = kind & 2 ? take_u8(input) % 8 : 0;
    rule->last_port = kind & 4 ? rule->first_port + take_u8(input) % 8 : UINT16_MAX;
    memcpy(rule->last, rule->first, 16);
    for (int bit = rule->bits; bit < 128; bit++) {
        rule->first[bit / 8] &= (uint8_t) ~(0x80 >> bit % 8);
        rule->last[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
    }
    /* A network around the v4-mapped addresses is fine; one that is in them is IPv4's. */
    if (!rule->ipv4 && rule->bits >= 96 && is_ipv4(rule->first))
        rule->ipv4 = true;
}

static bool contains(const struct rule *rule, const uint8_t ip[16])
{
    return rule->ipv4 == is_ipv4(ip) && compare_ips(rule->first, ip) <= 0 &&
           compare_ips(ip, rule->last) <= 0;
}

static bool same_network(const struct rule *a, const struct rule *b)
{
    return a->ipv4 == b->ipv4 && a->bits == b->bits && compare_ips(a->first, b->first) == 0;
}

static uint32_t scan(const struct rule *rules, uint32_t count, const uint8_t ip[16], uint16_t port)
{
    for (uint32_t i = 0; i < count; i++)
        if (contains(&rules[i], ip) && rules[i].first_port <= port && port <= rules[i].last_port)
            return i;
    return MOSNHOOK_NO_RULE;
}

/* ---- compiling ---- */

/* The distinct networks, larger ones first: so a parent comes before its children. */
static uint32_t list_prefixes(const struct rule *rules, uint32_t count,
                              const struct rule **prefixes)
{
    uint32_t found = 0;

    for (unsigned bits = 0; bits <= 128; bits++)
        for (uint32_t i = 0; i < count; i++) {
            bool known = rules[i].bits != bits;

            for (uint32_t j = 0; j < found; j++)
                known |= same_network(prefixes[j], &rules[i]);
            if (!known)
                prefixes[found++] = &rules[i];
        }
    return found;
}

/* The smallest of the first `count` that contains the address, or -1. */
static int32_t innermost(const struct rule **prefixes, uint32_t count, const uint8_t ip[16])
{
    for (uint32_t i = count; i > 0; i--)
        if (contains(prefixes[i - 1], ip))
            return (int32_t)i - 1;
    return -1;
}

static bool next_address(uint8_t ip[16])
{
    for (int i = 15; i >= 0; i--)
        if (++ip[i])
            return true;
    return false;
}

/* Every address at which something may begin. */
static uint32_t list_cuts(const struct rule *rules, uint32_t count, uint8_t cuts[MAX_CUTS][16])
{
    static const uint8_t mapped_first[16] = {[10] = 0xff, [11] = 0xff};
    uint32_t found = 0;

    memcpy(cuts[found++], mapped_first, 16);
    memset(cuts[found], 0, 16);
    cuts[found][9] = 1; /* after the last v4-mapped one */
    found++;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(cuts[found++], rules[i].first, 16);
        memcpy(cuts[found], rules[i].last, 16);
        found += next_address(cuts[found]);
    }
    qsort(cuts, found, 16, compare_ips);
    return found;
}

/* One for each port at which the first rule of this very network changes. */
static uint32_t add_segments(const struct rule *rules, uint32_t count, const struct rule *prefix,
                             struct mosnhook_segment *to)
{
    uint32_t before = MOSNHOOK_NO_RULE, found = 0;

    /* Ports are small, or the last. */
    for (uint32_t port = 0; port <= UINT16_MAX; port = port == 16 ? UINT16_MAX : port + 1) {
        uint32_t rule = MOSNHOOK_NO_RULE;

        for (uint32_t i = 0; i < count && rule == MOSNHOOK_NO_RULE; i++)
            if (same_network(&rules[i], prefix) && rules[i].first_port <= port &&
                port <= rules[i].last_port)
                rule = i;
        if (rule != MOSNHOOK_NO_RULE && rule == before)
            to[found - 1].last_port = (uint16_t)port;
        else if (rule != MOSNHOOK_NO_RULE)
            to[found++] = (struct mosnhook_segment){(uint16_t)port, (uint16_t)port, rule};
        before = rule;
    }
    return found;
}

static void compile(const struct rule *rules, uint32_t count, struct blob *blob)
{
    const struct rule *networks[MAX_RULES];
    uint8_t cuts[MAX_CUTS][16];
    uint32_t cut_count = list_cuts(rules, count, cuts), segment_count = 0;
    uint32_t prefix_count = list_prefixes(rules, count, networks);
    struct mosnhook_boundary *boundaries = (void *)blob->space;
    struct mosnhook_prefix *prefixes = (void *)(boundaries + cut_count);
    struct mosnhook_segment *segments = (void *)(prefixes + prefix_count);

    for (uint32_t i = 0; i < cut_count; i++) {
        memcpy(boundaries[i].start, cuts[i], 16);
        boundaries[i].prefix = innermost(networks, prefix_count, cuts[i]);
    }
    for (uint32_t i = 0; i < prefix_count; i++) {
        uint32_t added = add_segments(rules, count, networks[i], segments + segment_count);

        prefixes[i] = (struct mosnhook_prefix){innermost(networks, i, networks[i]->first),
                                               segment_count, added};
        segment_count += added;
    }
    blob->rules = (struct mosnhook_rules){
        .boundary_count = cut_count, .prefix_count = prefix_count, .segment_count = segment_count};
    blob->rules.size = (uint32_t)((uint8_t *)(segments + segment_count) - (uint8_t *)blob);
}

/* ---- the two kinds of input ---- */

static void look_up_rules(struct input *input)
{
    static struct blob blob;
    struct rule rules[MAX_RULES];
    uint32_t count = take_u8(input) % (MAX_RULES + 1);

    for (uint32_t i = 0; i < count; i++)
        take_rule(input, &rules[i]);
    compile(rules, count, &blob);
    CHECK(mosnhook_rules_fit(&blob.rules, sizeof blob));
    for (int i = 0; i < 64 && (i == 0 || input->left > 0); i++) {
        struct mosnhook_address address = {.port = 0};
        uint8_t kind = take_u8(input);

        take_ip(input, address.ip, kind & 1);
        address.port = kind & 2 ? UINT16_MAX : kind >> 4;
        CHECK(mosnhook_match(&blob.rules, &blob.rules + 1, &address) ==
              scan(rules, count, address.ip, address.port));
    }
}

static void look_up_anything(struct input *input)
{
    struct mosnhook_address address;
    struct mosnhook_rules header;
    uint8_t *copy;
    size_t size;

    take(input, &address, sizeof address);
    take(input, &header, sizeof header);
    /* Of exactly that size: ASan sees a byte too far. */
    size = sizeof header + input->left;
    copy = malloc(size);
    memcpy(copy, &header, sizeof header);
    memcpy(copy + sizeof header, input->at, input->left);
    if (mosnhook_rules_fit(&header, size))
        (void)mosnhook_match(&header, copy + sizeof header, &address);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};

    if (take_u8(&input) & 1)
        look_up_anything(&input);
    else
        look_up_rules(&input);
    return 0;
}
