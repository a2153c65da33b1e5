#include "l7/http2_past.h"

#include <stddef.h>

/* Ids have 31 bits. */
static uint32_t entry_of(uint32_t id, bool reset)
{
    return id << 1 | reset;
}

void http2_past_opened(struct http2_past *past, uint32_t id)
{
    uint32_t next = past->newest ? past->newest + 2 : 1; /* a client's are odd */

    if (id > next) {
        past->skipped_from = next;
        past->skipped_to = id - 2;
    }
    past->newest = id;
}

void http2_past_ended(struct http2_past *past, uint32_t id, bool reset)
{
    past->ended[past->next] = entry_of(id, reset);
    past->next = (uint8_t)((past->next + 1) % PAST_STREAMS);
}

enum http2_fate http2_past_fate(const struct http2_past *past, uint32_t id)
{
    if (id >= past->skipped_from && id <= past->skipped_to)
        return FATE_SKIPPED;
    for (size_t i = 0; i < PAST_STREAMS; i++)
        if (past->ended[i] >> 1 == id)
            return past->ended[i] & 1 ? FATE_RESET : FATE_ENDED;
    return FATE_UNKNOWN;
}

void http2_past_forget(struct http2_past *past, uint32_t id)
{
    for (size_t i = 0; i < PAST_STREAMS; i++)
        if (past->ended[i] >> 1 == id)
            past->ended[i] = 0;
}
