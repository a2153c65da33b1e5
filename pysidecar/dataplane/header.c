/* Downstream connections whose first bytes are a PROXY protocol v2 header (haproxy's
 * proxy-protocol.txt, section 2.2). The header is peeked at until it is complete and only then
 * taken, so a partial one needs no memory of ours. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum {
    PREFIX_SIZE = 16,       /* signature, version and command, family, length */
    MAX_HEADER_SIZE = 4096, /* the format allows 64 KiB; nobody sends that, so it is a mistake */
    COMMAND_LOCAL = 0x20,
    COMMAND_PROXY = 0x21,
    FAMILY_TCP4 = 0x11,
    FAMILY_TCP6 = 0x21,
    ADDRESSES_V4 = 12,
    ADDRESSES_V6 = 36,
};

static const uint8_t signature[12] = "\r\n\r\n\0\r\nQUIT\n";

/* What a header says. */
struct header {
    size_t size;     /* bytes of the whole header; 0 while incomplete */
    enum dp_end end; /* DP_END_NONE, or why it is of no use */
    struct mosnhook_address destination;
    uint32_t pid;
    char command[MOSNHOOK_COMMAND_SIZE];
    bool has_ticket;
    uint8_t ticket[MOSNHOOK_TICKET_SIZE];
};

static uint16_t read_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t read_u32(const uint8_t *at)
{
    return (uint32_t)read_u16(at) << 16 | read_u16(at + 2);
}

static void read_v4(struct mosnhook_address *address, const uint8_t *ip, const uint8_t *port)
{
    address->ip[10] = address->ip[11] = 0xff;
    memcpy(address->ip + 12, ip, 4);
    address->port = read_u16(port);
}

static void read_v6(struct mosnhook_address *address, const uint8_t *ip, const uint8_t *port)
{
    memcpy(address->ip, ip, 16);
    address->port = read_u16(port);
}

/* False when the TLVs do not fill their space exactly. Unknown ones are skipped. */
static bool read_tlvs(struct header *header, const uint8_t *at, const uint8_t *stop)
{
    while (at < stop) {
        uint16_t length;

        if (stop - at < 3)
            return false;
        length = read_u16(at + 1);
        if (stop - at - 3 < length)
            return false;
        if (at[0] == MOSNHOOK_TLV_PID && length == 4)
            header->pid = read_u32(at + 3);
        else if (at[0] == MOSNHOOK_TLV_SCOPE_ID && length == 4)
            header->destination.scope_id = read_u32(at + 3);
        else if (at[0] == MOSNHOOK_TLV_COMMAND && length <= sizeof header->command)
            memcpy(header->command, at + 3, length);
        else if (at[0] == MOSNHOOK_TLV_TICKET && length == sizeof header->ticket) {
            memcpy(header->ticket, at + 3, length);
            header->has_ticket = true;
        }
        at += 3 + length;
    }
    return true;
}

static void parse(struct header *header, const uint8_t *bytes, size_t count)
{
    size_t known = count < sizeof signature ? count : sizeof signature;
    size_t size, addresses;

    memset(header, 0, sizeof *header);
    header->end = DP_END_HEADER_MALFORMED;
    /* Not waiting for all 16 bytes: a client that speaks something else may send fewer. */
    if (memcmp(bytes, signature, known) != 0)
        return;
    if (count > 12 && bytes[12] != COMMAND_PROXY && bytes[12] != COMMAND_LOCAL)
        return;
    if (count < PREFIX_SIZE) {
        header->end = DP_END_NONE;
        return;
    }
    size = PREFIX_SIZE + read_u16(bytes + 14);
    if (size > MAX_HEADER_SIZE)
        return;
    if (count < size) {
        header->end = DP_END_NONE;
        return;
    }
    if (bytes[12] == COMMAND_LOCAL || (bytes[13] != FAMILY_TCP4 && bytes[13] != FAMILY_TCP6)) {
        header->end = DP_END_HEADER_NO_ADDRESS;
        return;
    }
    addresses = bytes[13] == FAMILY_TCP4 ? ADDRESSES_V4 : ADDRESSES_V6;
    if (size < PREFIX_SIZE + addresses ||
        !read_tlvs(header, bytes + PREFIX_SIZE + addresses, bytes + size))
        return;
    bytes += PREFIX_SIZE;
    if (addresses == ADDRESSES_V4) {
        read_v4(&header->destination, bytes + 4, bytes + 10);
    } else {
        read_v6(&header->destination, bytes + 16, bytes + 34);
    }
    if (address_is_unspecified(&header->destination))
        return;
    header->end = DP_END_NONE;
    header->size = size;
}

/* In the same time whatever there is: nobody shall find it out byte by byte. */
static bool has_ticket(const struct dp *dp, const struct header *header)
{
    uint8_t differs = !dp->page || !header->has_ticket;

    for (size_t i = 0; dp->page && i < sizeof header->ticket; i++)
        differs |= header->ticket[i] ^ dp->page->ticket[i];
    return !differs;
}

static void read_header(struct connection *connection)
{
    struct side *downstream = &connection->side[DOWNSTREAM];
    struct worker *worker = connection->worker;
    struct header header;
    ssize_t count = recv(downstream->watch.fd, worker->scratch, MAX_HEADER_SIZE, MSG_PEEK);

    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count < 0) {
        connection_close(connection, DP_END_DOWNSTREAM_RESET, errno);
        return;
    }
    parse(&header, worker->scratch, (size_t)count);
    if (header.end != DP_END_NONE) {
        connection_close(connection, header.end, 0);
        return;
    }
    if (header.size == 0) {
        if (count == 0 || downstream->hung_up)
            connection_close(connection, DP_END_HEADER_TRUNCATED, 0);
        return;
    }
    if (!connection->admitted && !has_ticket(worker->dp, &header)) {
        connection_close(connection, DP_END_DENIED, 0);
        return;
    }
    count = recv(downstream->watch.fd, worker->scratch, header.size, 0);
    downstream->plain = false;
    if (count != (ssize_t)header.size) {
        connection_close(connection, DP_END_DOWNSTREAM_RESET, count < 0 ? errno : 0);
        return;
    }
    timer_cancel(&worker->loop.timers, &connection->timer);
    /* Source and user are what the kernel says, not what the client does. */
    connection->original_destination = header.destination;
    connection->pid = clients_has_process(connection->uid, header.pid) ? header.pid : 0;
    connection->header_size = (uint32_t)header.size;
    connection->hooked = header.pid != 0;
    memcpy(connection->command, header.command, sizeof connection->command);
    downstream_waits(connection);
    upstream_start(connection);
}

static void header_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[DOWNSTREAM].watch);

    relay_note_events(connection, DOWNSTREAM, events);
    connection->side[DOWNSTREAM].readable = true;
    connection->side[DOWNSTREAM].writable = true;
    read_header(connection);
}

/* The header mostly came with the connection; with that of a client that is gone it did. */
static void read_at_once(struct connection *connection)
{
    header_ready(&connection->side[DOWNSTREAM].watch, 0);
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) != PHASE_HEADER)
        return;
    if (!connection->admitted)
        connection_close(connection, DP_END_DENIED, 0);
    else if (!clients_may_wait(connection))
        connection_close(connection, DP_END_TOO_MANY_WAIT, 0);
}

void header_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection = connection_open(worker, listener, PHASE_HEADER, FDS_PER_RELAY);
    uint32_t header_ms = atomic_load_explicit(&worker->dp->header_ms, memory_order_relaxed);
    int error;

    if (!connection) {
        close(fd);
        return;
    }
    connection->side[DOWNSTREAM].watch.fd = fd;
    error = address_of_peer(fd, &connection->source);
    if (error == 0)
        connection->admitted = clients_admit(connection);
    if (error == 0 && !connection->admitted && connection->uid != UINT32_MAX) {
        connection_close(connection, DP_END_DENIED, 0);
        return;
    }
    connection->side[DOWNSTREAM].watch.ready = header_ready;
    loop_set_timer(&worker->loop, &connection->timer, header_ms, arrival_expired);
    if (error == 0)
        error = loop_watch(&worker->loop, &connection->side[DOWNSTREAM].watch, SIDE_EVENTS);
    if (error == -ENOTCONN) /* reset while it waited to be accepted */
        connection_close(connection, DP_END_DOWNSTREAM_RESET, ECONNRESET);
    else if (error < 0)
        connection_close(connection, DP_END_NO_RESOURCES, -error);
    else
        read_at_once(connection);
}
