#include "intercept/header.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "base/owner.h"
#include "base/sockaddr.h"
#include "intercept/clients.h"
#include "intercept/listener.h"
#include "net/budget.h"

enum {
    PREFIX_SIZE = 16,       /* signature, version and command, family, length */
    MAX_HEADER_SIZE = 4096, /* the format allows 64 KiB, which nobody sends: it is a mistake */
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
    enum dp_end end; /* DP_END_NONE, or what is wrong with it */
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

static void header_parse(struct header *header, const uint8_t *bytes, size_t count)
{
    size_t known = count < sizeof signature ? count : sizeof signature;
    size_t size, addresses;

    memset(header, 0, sizeof *header);
    header->end = DP_END_HEADER_MALFORMED;
    /* Do not wait for all 16 bytes: a client that speaks something else may send fewer. */
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

/* In constant time, so that nobody finds the ticket out byte by byte. */
static bool has_ticket(const struct mosnhook_page *page, const struct header *header)
{
    uint8_t differs = !page || !header->has_ticket;

    for (size_t i = 0; page && i < sizeof header->ticket; i++)
        differs |= header->ticket[i] ^ page->ticket[i];
    return !differs;
}

/* Source and user are the kernel's word, not the client's. */
static void take_header(struct session *session, const struct header *header)
{
    ssize_t count = channel_read(&session->downstream, session->worker->scratch, header->size);

    if (count != (ssize_t)header->size) {
        session_close(session, DP_END_DOWNSTREAM_RESET, count < 0 ? errno : 0);
        return;
    }
    timer_cancel(&session->worker->loop.timers, &session->timer);
    session->origin.original_destination = header->destination;
    session->pid = clients_has_process(session->uid, header->pid) ? header->pid : 0;
    session->header_size = (uint32_t)header->size;
    session->hooked = header->pid != 0;
    memcpy(session->command, header->command, sizeof session->command);
    session_downstream_waits(session);
    trace_request(session->worker, session->id, session->command, session->pid,
                  &session->origin.original_destination);
    session_arrived(session);
}

/* `admitted`: the kernel says that the user may use us. Otherwise the header needs the ticket. */
static void read_header(struct session *session, bool admitted)
{
    struct channel *downstream = &session->downstream;
    struct worker *worker = session->worker;
    struct header header;
    ssize_t count = recv(downstream->watch.fd, worker->scratch, MAX_HEADER_SIZE, MSG_PEEK);

    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count < 0) {
        session_close(session, DP_END_DOWNSTREAM_RESET, errno);
        return;
    }
    header_parse(&header, worker->scratch, (size_t)count);
    if (header.end != DP_END_NONE)
        session_close(session, header.end, 0);
    else if (header.size > 0 && !admitted && !has_ticket(worker->page, &header))
        session_close(session, DP_END_DENIED, 0);
    else if (header.size > 0)
        take_header(session, &header);
    else if (count == 0 || downstream->hung_up)
        session_close(session, DP_END_HEADER_TRUNCATED, 0);
}

static void header_changed(struct channel *channel, uint32_t events)
{
    (void)events;
    read_header(OWNER(channel, struct session, downstream), true);
}

/* The header mostly came with the connection, and surely did if the client is gone. */
static void read_at_once(struct session *session, bool admitted)
{
    session->downstream.readable = true;
    session->downstream.writable = true;
    read_header(session, admitted);
    if (session_state(session) != SESSION_ARRIVING)
        return;
    if (!admitted)
        session_close(session, DP_END_DENIED, 0);
    else if (!clients_may_wait(session))
        session_close(session, DP_END_TOO_MANY_WAIT, 0);
}

static void header_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_open(worker, listener, &intercept_connected, FDS_PER_RELAY);
    bool admitted = false;
    int error;

    if (!session) {
        close(fd);
        return;
    }
    session->downstream.watch.fd = fd;
    error = address_of_peer(fd, &session->origin.source);
    if (error == 0)
        admitted = clients_admit(session);
    if (error == 0 && !admitted && session->uid != UINT32_MAX) {
        session_close(session, DP_END_DENIED, 0);
        return;
    }
    if (!clients_may_have_fds(session)) {
        session_close(session, DP_END_TOO_MANY_FDS, EMFILE);
        return;
    }
    session->downstream.changed = header_changed;
    loop_set_timer(&worker->loop, &session->timer, timeout_of(&worker->timeouts->header_ms),
                   session_arrival_expired);
    if (error == 0)
        error = channel_watch(&worker->loop, &session->downstream);
    if (error == -ENOTCONN) /* reset while it waited to be accepted */
        session_close(session, DP_END_DOWNSTREAM_RESET, ECONNRESET);
    else if (error < 0)
        session_close(session, DP_END_NO_RESOURCES, -error);
    else
        read_at_once(session, admitted);
}

const struct intercept intercept_header = {
    .fds = FDS_PER_RELAY,
    .is_tcp = true,
    .accept = header_accept,
    .refuse = session_refuse_connected,
};
