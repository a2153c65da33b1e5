#include "base/places.h"

#include <stdlib.h>

enum {
    PER_BUCKET = 2, /* on average, where places are even */
    FEW = 16,       /* that are sorted by insertion */
};

static uint32_t bucket_of(const struct places *places, uint64_t each)
{
    return (uint32_t)(each >> 32 >> places->shift);
}

static int compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

    return a < b ? -1 : a > b;
}

static void sort(uint64_t *each, uint32_t count)
{
    if (count > FEW) {
        qsort(each, count, sizeof *each, compare);
        return;
    }
    for (uint32_t i = 1; i < count; i++) {
        uint64_t one = each[i];
        uint32_t at = i;

        for (; at > 0 && each[at - 1] > one; at--)
            each[at] = each[at - 1];
        each[at] = one;
    }
}

bool places_set(struct places *places, const uint64_t *each, uint32_t count)
{
    uint32_t buckets = 1;

    *places = (struct places){.count = count, .shift = 32};
    while (buckets < count / PER_BUCKET) {
        buckets *= 2;
        places->shift--;
    }
    places->each = malloc(((size_t)count + 1) * sizeof *places->each);
    places->starts = calloc((size_t)buckets + 1, sizeof *places->starts);
    if (!places->each || !places->starts) {
        places_free(places);
        return false;
    }
    /* Ends first; each one that is put in moves its bucket's to the front, until they are starts.
     */
    for (uint32_t i = 0; i < count; i++)
        places->starts[bucket_of(places, each[i])]++;
    for (uint32_t i = 1; i <= buckets; i++)
        places->starts[i] += places->starts[i - 1];
    for (uint32_t i = count; i-- > 0;)
        places->each[--places->starts[bucket_of(places, each[i])]] = each[i];
    for (uint32_t i = 0; i < buckets; i++)
        sort(&places->each[places->starts[i]], places->starts[i + 1] - places->starts[i]);
    return true;
}

void places_free(struct places *places)
{
    free(places->each);
    free(places->starts);
    *places = (struct places){.count = 0};
}

uint32_t places_from(const struct places *places, uint32_t place)
{
    uint64_t wanted = place_of(place, 0);
    uint32_t bucket, first, last;

    if (places->count == 0)
        return 0;
    bucket = bucket_of(places, wanted);
    first = places->starts[bucket];
    last = places->starts[bucket + 1];
    while (first < last) {
        uint32_t middle = first + (last - first) / 2;

        if (places->each[middle] < wanted)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}
