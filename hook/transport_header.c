/* The `header` transport: the connection to the sidecar begins with a PROXY protocol v2 header
 * (haproxy's proxy-protocol.txt, section 2.2). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    PROXY_V2 = 0x21, /* version 2, command PROXY */
    PROXY_TCP4 = 0x11,
    PROXY_TCP6 = 0x21,
    PROXY_PREFIX = 16, /* signature, version, family, length */
    HEADER_ROOM = 128, /* 16 + 36 + the TLVs: 7 + 19 + 19 + 7 */

    HANDSHAKE_MS = 5, /* on loopback it is over when connect() returns, except with odd queueing */
};

static const uint8_t signature[12] = "\r\n\r\n\0\r\nQUIT\n";

struct header {
    uint8_t bytes[HEADER_ROOM];
    size_t size;
};

static void put(struct header *header, const void *bytes, size_t size)
{
    __builtin_memcpy(header->bytes + header->size, bytes, size);
    header->size += size;
}

static void put_u16(struct header *header, uint16_t value)
{
    uint16_t wire = htons(value);

    put(header, &wire, sizeof wire);
}

static void put_tlv(struct header *header, uint8_t type, const void *value, uint16_t size)
{
    put(header, &type, 1);
    put_u16(header, size);
    put(header, value, size);
}

static void put_tlv_u32(struct header *header, uint8_t type, uint32_t value)
{
    uint32_t wire = htonl(value);

    put_tlv(header, type, &wire, sizeof wire);
}

/* 4 or 16 bytes of the address. */
static void put_ip(struct header *header, const struct mosnhook_address *address, bool ipv4)
{
    if (ipv4)
        put(header, address->ip + 12, 4);
    else
        put(header, address->ip, 16);
}

static void build_header(struct header *header, const struct attempt *attempt,
                         const struct mosnhook_address *source)
{
    const struct mosnhook_address *destination = &attempt->destination;
    bool ipv4 = address_is_ipv4(source) && address_is_ipv4(destination);
    uint8_t kind[2] = {PROXY_V2, ipv4 ? PROXY_TCP4 : PROXY_TCP6};
    uint16_t command = 0, length;

    while (command < sizeof environment.command && environment.command[command])
        command++;
    header->size = 0;
    put(header, signature, sizeof signature);
    put(header, kind, sizeof kind);
    put_u16(header, 0); /* the length, below */
    put_ip(header, source, ipv4);
    put_ip(header, destination, ipv4);
    put_u16(header, source->port);
    put_u16(header, destination->port);
    put_tlv_u32(header, MOSNHOOK_TLV_PID, (uint32_t)sys_getpid());
    put_tlv(header, MOSNHOOK_TLV_COMMAND, environment.command, command);
    put_tlv(header, MOSNHOOK_TLV_TICKET, attempt->view.ticket, sizeof attempt->view.ticket);
    if (destination->scope_id)
        put_tlv_u32(header, MOSNHOOK_TLV_SCOPE_ID, destination->scope_id);
    length = htons((uint16_t)(header->size - PROXY_PREFIX));
    __builtin_memcpy(header->bytes + PROXY_PREFIX - sizeof length, &length, sizeof length);
}

/* Sends all at once, into an empty send buffer. 0 or an errno. */
static int send_header(const struct attempt *attempt, const struct mosnhook_address *source)
{
    struct header header;
    long sent;

    build_header(&header, attempt, source);
    sent = sys_sendto(attempt->fd, header.bytes, header.size, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
    if (sent == (long)header.size)
        return 0;
    return sent < 0 ? (int)-sent : EMSGSIZE;
}

/* Sends the header to the sidecar, and to nobody else. An errno, or OUTCOME_AWAY if somebody else
 * has the other end. EAGAIN if there was no handshake, because the listener's accept queue is full.
 */
static int introduce(const struct attempt *attempt)
{
    struct sockaddr_storage local = {.ss_family = AF_UNSPEC};
    socklen_t length = sizeof local;
    struct pollfd writable = {.fd = attempt->fd, .events = POLLOUT};
    struct mosnhook_address source;
    int result;

    if (sys_getsockname(attempt->fd, &local, &length) < 0 ||
        !address_from_sockaddr((struct sockaddr *)&local, length, &source))
        return ENOTCONN;
    result = server_check(attempt, &source);
    if (result == EAGAIN) {
        sys_poll(&writable, 1, HANDSHAKE_MS);
        result = server_check(attempt, &source);
    }
    return result == 0 ? send_header(attempt, &source) : result;
}

/* One round over the listeners. Results as of transport_header, and EAGAIN if all are full. */
static int try_listeners(struct attempt *attempt)
{
    const struct page_view *view = &attempt->view;
    struct mosnhook_address via;
    uint8_t order[MOSNHOOK_MAX_LISTENERS];
    size_t count = socket_order(attempt, view->listeners, view->listener_count, order);
    int last = OUTCOME_AWAY;

    for (size_t i = 0; i < count; i++) {
        int result;

        via = view->listeners[order[i]];
        result = socket_connect_now(attempt, &via);
        if (result == EADDRNOTAVAIL || result == ENETUNREACH) {
            last = last == OUTCOME_AWAY ? result : last;
            continue;
        }
        if (result != EINPROGRESS)
            return socket_settle(attempt, result, &via);
        result = introduce(attempt);
        if (result == 0) {
            memo_write(attempt->fd, MOSNHOOK_MEMO_RELAYED, &attempt->destination);
            if (!attempt->waits)
                return EINPROGRESS;
            /* Completes the connect in the kernel's eyes: the next one says EISCONN. */
            result = socket_settle(attempt, socket_connect_now(attempt, &via), &via);
            return result == EISCONN ? 0 : result;
        }
        socket_disconnect(attempt);
        if (result == EAGAIN || result == ENOTCONN)
            last = EAGAIN;
        if (result == EMFILE)
            return EMFILE;
    }
    return last;
}

int transport_header(struct attempt *attempt)
{
    int result;

    do
        result = try_listeners(attempt);
    while (result == EAGAIN && wait_while_full(attempt));
    return result == EAGAIN ? OUTCOME_AWAY : result;
}
