/* A binary heap by deadline, with each connection's place in the connection, so that moving and
 * cancelling need no search. Idle deadlines are not moved at every byte: they are looked at again
 * when they come (see worker.c), so the heap is touched a few times in a connection's life. */
#include <assert.h>
#include <stdlib.h>

#include "internal.h"

static void place(struct timers *timers, size_t index, struct connection *connection)
{
    timers->heap[index] = connection;
    connection->timer_index = (int32_t)index;
}

static void sift_up(struct timers *timers, size_t index, struct connection *connection)
{
    while (index > 0) {
        size_t parent = (index - 1) / 2;

        if (timers->heap[parent]->deadline_ms <= connection->deadline_ms)
            break;
        place(timers, index, timers->heap[parent]);
        index = parent;
    }
    place(timers, index, connection);
}

static void sift_down(struct timers *timers, size_t index, struct connection *connection)
{
    for (;;) {
        size_t child = 2 * index + 1;

        if (child >= timers->count)
            break;
        if (child + 1 < timers->count &&
            timers->heap[child + 1]->deadline_ms < timers->heap[child]->deadline_ms)
            child++;
        if (connection->deadline_ms <= timers->heap[child]->deadline_ms)
            break;
        place(timers, index, timers->heap[child]);
        index = child;
    }
    place(timers, index, connection);
}

bool timer_set(struct timers *timers, struct connection *connection, uint64_t deadline_ms)
{
    timer_cancel(timers, connection);
    if (timers->count == timers->capacity) {
        size_t capacity = timers->capacity ? timers->capacity * 2 : 64;
        struct connection **heap = realloc(timers->heap, capacity * sizeof *heap);

        if (!heap)
            return false;
        timers->heap = heap;
        timers->capacity = capacity;
    }
    connection->deadline_ms = deadline_ms;
    sift_up(timers, timers->count++, connection);
    return true;
}

void timer_cancel(struct timers *timers, struct connection *connection)
{
    struct connection *last;
    size_t index;

    if (connection->timer_index < 0)
        return;
    index = (size_t)connection->timer_index;
    assert(index < timers->count && timers->heap[index] == connection);
    connection->timer_index = -1;
    last = timers->heap[--timers->count];
    if (last == connection)
        return;
    if (index > 0 && timers->heap[(index - 1) / 2]->deadline_ms > last->deadline_ms)
        sift_up(timers, index, last);
    else
        sift_down(timers, index, last);
}

struct connection *timer_expired(struct timers *timers, uint64_t now_ms)
{
    struct connection *first = timers->count ? timers->heap[0] : NULL;

    if (!first || first->deadline_ms > now_ms)
        return NULL;
    timer_cancel(timers, first);
    return first;
}
