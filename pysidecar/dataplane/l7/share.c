#include "l7/share.h"

#include <string.h>

#include "base/random.h"
#include "base/sockaddr.h"
#include "intercept/session.h"
#include "l7/streams.h"
#include "net/diag.h"

/* A client may have this many times what nobody has: one alone gets 7/8, two get 7/15 each. */
enum { MOST_OF_FREE = 7 };

/* A network of IPv6 is one client: whoever has one of its addresses may have them all. */
static uint64_t key_of_host(const struct mosnhook_address *source)
{
    uint64_t high, low;

    memcpy(&high, source->ip, sizeof high);
    memcpy(&low, source->ip + sizeof high, sizeof low);
    return address_is_ipv4(source) ? random_mix(low) : random_mix(high + 1);
}

static bool is_of_this_host(const struct mosnhook_address *source,
                            const struct mosnhook_address *here)
{
    return memcmp(source->ip, here->ip, sizeof source->ip) == 0 || address_is_loopback(source);
}

static uint64_t key_of(struct worker *worker, const struct session *session)
{
    const struct mosnhook_address *source = &session->origin.source;
    struct mosnhook_address here;
    uint32_t uid = session->uid;

    if (uid == UINT32_MAX && address_of_local(session->downstream.watch.fd, &here) == 0 &&
        is_of_this_host(source, &here))
        uid = diag_user(&worker->diag, source, &here);
    return uid == UINT32_MAX ? key_of_host(source) : random_mix(uid);
}

struct share *share_of(struct worker *worker, const struct session *session)
{
    return &worker->streams->shares.of[key_of(worker, session) % SHARE_SLOTS];
}

bool share_take_stream(struct shares *shares, struct share *share)
{
    if (share->streams >= (uint64_t)MOST_OF_FREE * (shares->most_streams - shares->streams))
        return false;
    share->streams++;
    shares->streams++;
    return true;
}

void share_give_stream(struct shares *shares, struct share *share)
{
    share->streams--;
    shares->streams--;
}

bool share_may_hold(const struct share *share, const struct blocks *blocks, size_t size)
{
    return share->bytes + size <= MOST_OF_FREE * (uint64_t)(blocks->most - blocks->used);
}
