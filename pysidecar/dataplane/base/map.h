/* An intrusive hash table: its elements embed a struct map_entry. It compares hashes only; the
 * caller walks the entries with an equal hash. A zeroed map is empty. */
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

/* False when out of memory. Of entries with an equal hash, the newest is found first. */
bool map_add(struct map *map, struct map_entry *entry, uint64_t hash);
/* The entry must be in the map. */
void map_remove(struct map *map, struct map_entry *entry);
/* The first entry with that hash, and the next with the same one; NULL if there is none. */
struct map_entry *map_first(const struct map *map, uint64_t hash);
struct map_entry *map_next(const struct map_entry *entry);
/* The map must be empty. It can be used again. */
void map_close(struct map *map);

#endif
