#include "l7/wanted.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/stack.h"

enum { MOST_NOTES = 1024, MOST_WAITING = 4096 };

struct wanted_note {
    struct wanted_note *next;
    struct dp_wanted what;
};

/* False: there are as many already. */
static bool enter(atomic_uint *count, unsigned most)
{
    if (atomic_fetch_add_explicit(count, 1, memory_order_relaxed) < most)
        return true;
    atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
    return false;
}

bool wanted_tell(struct wanted *wanted, const struct dp_wanted *what)
{
    struct wanted_note *note, *before;
    uint64_t one = 1;

    if (!enter(&wanted->count, MOST_NOTES))
        return false;
    note = malloc(sizeof *note);
    if (!note) {
        atomic_fetch_sub_explicit(&wanted->count, 1, memory_order_relaxed);
        return false;
    }
    note->what = *what;
    STACK_PUSH_CHAIN(&wanted->notes, note, note, next, &before);
    if (!before && wanted->event >= 0 && write(wanted->event, &one, sizeof one) < 0)
        return true; /* at its limit it is readable all the same */
    return true;
}

bool wanted_enter(struct wanted *wanted)
{
    return enter(&wanted->waiting, MOST_WAITING);
}

void wanted_leave(struct wanted *wanted)
{
    atomic_fetch_sub_explicit(&wanted->waiting, 1, memory_order_relaxed);
}

size_t wanted_take(struct wanted *wanted, struct dp_wanted *what, size_t max)
{
    size_t taken = 0;

    if (!wanted->left)
        wanted->left = STACK_TAKE(&wanted->notes);
    while (wanted->left && taken < max) {
        struct wanted_note *note = wanted->left;

        wanted->left = note->next;
        what[taken++] = note->what;
        free(note);
        atomic_fetch_sub_explicit(&wanted->count, 1, memory_order_relaxed);
    }
    return taken;
}

void wanted_close(struct wanted *wanted)
{
    struct dp_wanted what;

    while (wanted_take(wanted, &what, 1) > 0)
        ;
}
