/* A hash table of what has a struct map_entry in it. It compares nothing: whoever looks up goes
 * through the entries with the hash. All zero is an empty map. */
#ifndef PYSIDECAR_BASE_MAP_H
#define PYSIDECAR_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct map_entry {
    struct map_entry *next; /* in its bucket */
    uint64_t hash;
};

struct map {
    struct map_entry **buckets;
    size_t bucket_count; /* a power of two, or 0 */
    size_t count;
};

/* False when out of memory. The newest of those with one hash is found first. */
bool map_add(struct map *map, struct map_entry *entry, uint64_t hash);
/* One that is in the map. */
void map_remove(struct map *map, struct map_entry *entry);
/* The first entry with that hash, and the next one with the same; NULL: there is none. */
struct map_entry *map_first(const struct map *map, uint64_t hash);
struct map_entry *map_next(const struct map_entry *entry);
/* The map must be empty, and is as new. */
void map_close(struct map *map);

#endif
