#include "upstream/weighing.h"

#include <stdlib.h>
#include <string.h>

#include "base/random.h"

enum {
    MOST_TURNS = 1 << 16, /* of one round; or four for each endpoint */
    MOST_POINTS = 1 << 18,
    POINTS = 160, /* for the least weight: as ketama has for a server */
};

static uint32_t greatest_divisor(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

/* How often an endpoint is there: as often as it weighs, divided by what all weights share, times
 * `times`; less where the sum would be more than `most`. */
struct shares {
    uint64_t numerator, denominator;
};

static struct shares shares_of(const struct weighing *weighing, uint64_t times, uint64_t most)
{
    uint64_t sum = 0;
    uint32_t divisor = 0;

    for (uint32_t i = 0; i < weighing->count; i++) {
        divisor = greatest_divisor(weighing->weights[i], divisor);
        sum += weighing->weights[i];
    }
    if (sum / divisor <= most / times)
        return (struct shares){times, divisor};
    return (struct shares){most, sum};
}

static uint32_t share_of(const struct shares *shares, uint32_t weight)
{
    uint64_t share = weight * shares->numerator / shares->denominator;

    return share ? (uint32_t)share : 1;
}

uint64_t address_hash(const struct mosnhook_address *address)
{
    uint64_t words[3], hash = 0;

    memcpy(words, address, sizeof words);
    for (int i = 0; i < 3; i++)
        hash = random_mix(hash ^ words[i]);
    return hash;
}

/* Each round the same number, of which none has two turns near each other where it can be helped;
 * and not all begin at the same place. */
static uint32_t place_of_turn(uint32_t endpoint, uint32_t turn, uint32_t turns)
{
    uint32_t begin = endpoint * UINT32_C(2654435769); /* golden ratio: far from all before it */

    return (uint32_t)(((uint64_t)turn << 32 | begin) / turns);
}

static uint32_t place_of_point(uint64_t hash, uint32_t point)
{
    return (uint32_t)(random_mix(hash + (point + 1) * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
}

static bool set_places(struct weighing *weighing, const struct dp_endpoint *endpoints)
{
    uint64_t most = weighing->ring ? MOST_POINTS : MOST_TURNS;
    struct shares shares;
    uint64_t *each;
    size_t count = 0, at = 0;
    bool done;

    if (most < 4 * (uint64_t)weighing->count)
        most = 4 * (uint64_t)weighing->count;
    shares = shares_of(weighing, weighing->ring ? POINTS : 1, most);
    for (uint32_t i = 0; i < weighing->count; i++)
        count += share_of(&shares, weighing->weights[i]);
    each = malloc(count * sizeof *each);
    if (!each)
        return false;
    for (uint32_t i = 0; i < weighing->count; i++) {
        uint32_t share = share_of(&shares, weighing->weights[i]);
        uint64_t hash = address_hash(&endpoints[i].address);

        for (uint32_t k = 0; k < share; k++)
            each[at++] =
                place_of(weighing->ring ? place_of_point(hash, k) : place_of_turn(i, k, share), i);
    }
    done = places_set(&weighing->places, each, (uint32_t)count);
    free(each);
    return done;
}

struct weighing *weighing_create(const struct dp_endpoint *endpoints, uint32_t count, bool ring)
{
    struct weighing *weighing = calloc(1, sizeof *weighing + count * sizeof *weighing->weights);

    if (!weighing)
        return NULL;
    weighing->ring = ring;
    weighing->count = count;
    for (uint32_t i = 0; i < count; i++)
        weighing->weights[i] = endpoints[i].weight;
    if (!set_places(weighing, endpoints)) {
        free(weighing);
        return NULL;
    }
    return weighing;
}

void weighing_free(struct weighing *weighing)
{
    if (weighing)
        places_free(&weighing->places);
    free(weighing);
}

bool weights_differ(const struct dp_endpoint *endpoints, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        if (endpoints[i].weight != endpoints[0].weight)
            return true;
    return false;
}

bool weighing_is(const struct weighing *weighing, const struct dp_endpoint *endpoints,
                 uint32_t count, bool ring)
{
    if (weighing->count != count || weighing->ring != ring)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (weighing->weights[i] != endpoints[i].weight)
            return false;
    return true;
}
