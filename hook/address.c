/* Socket addresses and the contract's own form of them. */
#include <arpa/inet.h>
#include <netinet/in.h>

#include "mosnhook.h"

static const uint8_t ipv4_loopback[4] = {127, 0, 0, 1};
static const uint8_t ipv6_loopback[16] = {[15] = 1};

/* The least that the kernel asks for: sockaddr_in6 without the scope id (SIN6_LEN_RFC2133). */
enum { IPV6_LENGTH_MIN = 24 };

bool address_is_for_many(const struct mosnhook_address *address)
{
    static const uint8_t broadcast[4] = {255, 255, 255, 255};

    if (address_is_ipv4(address))
        return (address->ip[12] & 0xf0) == 0xe0 ||
               __builtin_memcmp(address->ip + 12, broadcast, sizeof broadcast) == 0;
    return address->ip[0] == 0xff;
}

bool address_from_sockaddr(const struct sockaddr *from, socklen_t length,
                           struct mosnhook_address *to)
{
    if (length < sizeof from->sa_family)
        return false;
    *to = (struct mosnhook_address){.port = 0};
    if (from->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *ipv4 = (const void *)from;

        __builtin_memcpy(to->ip, address_ipv4_prefix, sizeof address_ipv4_prefix);
        __builtin_memcpy(to->ip + 12, &ipv4->sin_addr, 4);
        to->port = ntohs(ipv4->sin_port);
    } else if (from->sa_family == AF_INET6 && length >= IPV6_LENGTH_MIN) {
        const struct sockaddr_in6 *ipv6 = (const void *)from;

        __builtin_memcpy(to->ip, &ipv6->sin6_addr, 16);
        to->port = ntohs(ipv6->sin6_port);
        /* The kernel heeds the scope of link-local addresses only. */
        if (length >= sizeof *ipv6 && to->ip[0] == 0xfe && (to->ip[1] & 0xc0) == 0x80)
            to->scope_id = ipv6->sin6_scope_id;
    } else {
        return false;
    }
    if (address_is_unspecified(to)) {
        if (address_is_ipv4(to))
            __builtin_memcpy(to->ip + 12, ipv4_loopback, sizeof ipv4_loopback);
        else
            __builtin_memcpy(to->ip, ipv6_loopback, sizeof ipv6_loopback);
    }
    return true;
}

socklen_t address_to_sockaddr(const struct mosnhook_address *from, int family,
                              struct sockaddr_storage *to)
{
    if (family == AF_INET) {
        struct sockaddr_in *ipv4 = (void *)to;

        if (!address_is_ipv4(from))
            return 0;
        *ipv4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(from->port)};
        __builtin_memcpy(&ipv4->sin_addr, from->ip + 12, 4);
        return sizeof *ipv4;
    } else {
        struct sockaddr_in6 *ipv6 = (void *)to;

        *ipv6 = (struct sockaddr_in6){.sin6_family = AF_INET6,
                                      .sin6_port = htons(from->port),
                                      .sin6_scope_id = from->scope_id};
        __builtin_memcpy(&ipv6->sin6_addr, from->ip, 16);
        return sizeof *ipv6;
    }
}
