#include "base/map.h"

#include <assert.h>
#include <stdlib.h>

enum {
    FEWEST_BUCKETS = 16,
    SPARSE = 8, /* buckets an entry from which on there are too many */
};

static struct map_entry **bucket_of(const struct map *map, uint64_t hash)
{
    return &map->buckets[hash & (map->bucket_count - 1)];
}

static struct map_entry *with_hash(struct map_entry *entry, uint64_t hash)
{
    while (entry && entry->hash != hash)
        entry = entry->next;
    return entry;
}

/* False when out of memory: then nothing has changed. */
static bool resize(struct map *map, size_t bucket_count)
{
    struct map_entry **buckets = calloc(bucket_count, sizeof *buckets);

    if (!buckets)
        return false;
    for (size_t i = 0; i < map->bucket_count; i++) {
        struct map_entry *reversed = NULL, *next;

        for (struct map_entry *entry = map->buckets[i]; entry; entry = next) {
            next = entry->next;
            entry->next = reversed;
            reversed = entry;
        }
        for (struct map_entry *entry = reversed; entry; entry = next) {
            struct map_entry **bucket = &buckets[entry->hash & (bucket_count - 1)];

            next = entry->next;
            entry->next = *bucket;
            *bucket = entry;
        }
    }
    free(map->buckets);
    map->buckets = buckets;
    map->bucket_count = bucket_count;
    return true;
}

bool map_add(struct map *map, struct map_entry *entry, uint64_t hash)
{
    struct map_entry **bucket;

    if (map->count >= map->bucket_count &&
        !resize(map, map->bucket_count ? 2 * map->bucket_count : FEWEST_BUCKETS) &&
        map->bucket_count == 0)
        return false; /* one that is too full is merely slow */
    bucket = bucket_of(map, hash);
    entry->hash = hash;
    entry->next = *bucket;
    *bucket = entry;
    map->count++;
    return true;
}

void map_remove(struct map *map, struct map_entry *entry)
{
    struct map_entry **link = bucket_of(map, entry->hash);

    while (*link != entry)
        link = &(*link)->next;
    *link = entry->next;
    map->count--;
    if (map->bucket_count > FEWEST_BUCKETS && map->count < map->bucket_count / SPARSE)
        (void)resize(map, map->bucket_count / 2);
}

struct map_entry *map_first(const struct map *map, uint64_t hash)
{
    return map->bucket_count ? with_hash(*bucket_of(map, hash), hash) : NULL;
}

struct map_entry *map_next(const struct map_entry *entry)
{
    return with_hash(entry->next, entry->hash);
}

void map_close(struct map *map)
{
    assert(map->count == 0);
    free(map->buckets);
    *map = (struct map){.count = 0};
}
