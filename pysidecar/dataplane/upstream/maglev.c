#include "upstream/maglev.h"

#include <stdlib.h>

#include "base/random.h"
#include "upstream/weighing.h"

enum {
    SMALL = 65537, /* as the paper has it: a hundred slots for each endpoint at least, so that all
                    * have nearly the same share */
    LARGE = 655373,
    MOST_OF_SMALL = 650, /* endpoints */
    NOBODY = UINT32_MAX,
};

/* An endpoint's order of slots: `at`, and from there on in steps of `skip`. */
struct order {
    uint32_t at, skip;
    uint64_t owed; /* of weight, since the last slot */
};

static void begin(struct order *order, const struct dp_endpoint *endpoint, uint32_t size)
{
    uint64_t hash = address_hash(&endpoint->address);

    *order = (struct order){
        .at = (uint32_t)(hash % size),
        .skip = (uint32_t)(random_mix(hash + 1) % (size - 1)) + 1,
    };
}

/* The next slot in its order that nobody has. */
static void take(struct maglev *maglev, struct order *order, uint32_t endpoint)
{
    while (maglev->slots[order->at] != NOBODY)
        order->at = (order->at + order->skip) % maglev->size;
    maglev->slots[order->at] = endpoint;
}

/* In each round as many slots as there are endpoints, whatever their weights are: so it takes as
 * long as there are slots. */
static void fill(struct maglev *maglev, struct order *orders, const struct dp_endpoint *endpoints,
                 uint32_t count)
{
    uint64_t sum = 0, price;
    uint32_t taken = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += endpoints[i].weight;
    price = sum / count; /* at least 1, as weights are */
    for (uint32_t i = 0; taken < maglev->size; i = (i + 1) % count) {
        orders[i].owed += endpoints[i].weight;
        for (; orders[i].owed >= price && taken < maglev->size; taken++) {
            orders[i].owed -= price;
            take(maglev, &orders[i], i);
        }
    }
}

struct maglev *maglev_create(const struct dp_endpoint *endpoints, uint32_t count)
{
    uint32_t size = count <= MOST_OF_SMALL ? SMALL : LARGE;
    struct maglev *maglev = malloc(sizeof *maglev + size * sizeof *maglev->slots);
    struct order *orders = calloc(count, sizeof *orders);

    if (!maglev || !orders) {
        free(maglev);
        free(orders);
        return NULL;
    }
    maglev->size = size;
    for (uint32_t i = 0; i < size; i++)
        maglev->slots[i] = NOBODY;
    for (uint32_t i = 0; i < count; i++)
        begin(&orders[i], &endpoints[i], size);
    fill(maglev, orders, endpoints, count);
    free(orders);
    return maglev;
}

void maglev_free(struct maglev *maglev)
{
    free(maglev);
}

uint32_t maglev_at(const struct maglev *maglev, uint64_t hash, uint32_t attempt)
{
    if (attempt > 0)
        hash = random_mix(hash + attempt);
    return maglev->slots[hash % maglev->size];
}
