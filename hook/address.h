/* Predicates about an address of contract.h. Shared by the hook and the data plane. */
#ifndef MOSNHOOK_ADDRESS_H
#define MOSNHOOK_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "contract.h"

/* The prefix of IPv4 addresses: ::ffff:0:0/96. */
static const uint8_t address_ipv4_prefix[12] = {[10] = 0xff, [11] = 0xff};

static inline bool address_is_ipv4(const struct mosnhook_address *address)
{
    return __builtin_memcmp(address->ip, address_ipv4_prefix, sizeof address_ipv4_prefix) == 0;
}

static inline bool address_is_loopback(const struct mosnhook_address *address)
{
    static const uint8_t ipv6[16] = {[15] = 1};

    return address_is_ipv4(address) ? address->ip[12] == 127
                                    : __builtin_memcmp(address->ip, ipv6, sizeof ipv6) == 0;
}

/* Whether it is 0.0.0.0 or ::, with any port. */
static inline bool address_is_unspecified(const struct mosnhook_address *address)
{
    for (int i = address_is_ipv4(address) ? 12 : 0; i < 16; i++)
        if (address->ip[i])
            return false;
    return true;
}

/* Whether IP and port are equal, whatever the scope. */
static inline bool address_equal(const struct mosnhook_address *a, const struct mosnhook_address *b)
{
    return a->port == b->port && __builtin_memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

#endif
