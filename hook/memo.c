/* The memo of a captured socket, its TCP_FASTOPEN_KEY, see contract.h.
 *
 * A memo can be stale: a socket that a raw system call disconnected may have gone elsewhere. And
 * whoever has the socket can forge it, to deceive somebody to whom he passes it. So a memo is
 * believed only if the kernel says that the socket is connected to an address that memos are about,
 * and that our own user made it, or root, who could deceive us anyway. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "mosnhook.h"
#include "sys.h"

#ifndef TCP_FASTOPEN_KEY
#define TCP_FASTOPEN_KEY 33
#endif

_Static_assert(sizeof(struct mosnhook_memo) == 32,
               "two keys of 16 bytes, as the kernel takes them");

/* This process has connected a socket directly, whatever the page of a later sidecar says. */
static bool went_elsewhere; /* atomic */

static void write_memo(int fd, const struct mosnhook_memo *memo)
{
    sys_setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, memo, sizeof *memo);
}

void memo_write(int fd, enum mosnhook_memo_kind kind, const struct mosnhook_address *destination)
{
    struct mosnhook_memo memo = {
        .magic = MOSNHOOK_MEMO_MAGIC, .kind = (uint16_t)kind, .destination = *destination};

    if (kind == MOSNHOOK_MEMO_DIRECT)
        __atomic_store_n(&went_elsewhere, true, __ATOMIC_RELAXED);
    write_memo(fd, &memo);
}

bool memo_read(int fd, struct mosnhook_memo *memo)
{
    socklen_t length = sizeof *memo;

    return sys_getsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, memo, &length) == 0 &&
           length == sizeof *memo && memo->magic == MOSNHOOK_MEMO_MAGIC;
}

/* A key can be replaced, but not removed. Keeps the errno: a disconnect does not clear a failed
 * connect's error. */
void memo_forget(int fd)
{
    struct mosnhook_memo memo;

    if (!memo_read(fd, &memo) || memo.error != 0)
        return;
    memo = (struct mosnhook_memo){.magic = MOSNHOOK_MEMO_MAGIC, .kind = MOSNHOOK_MEMO_NONE};
    write_memo(fd, &memo);
}

static bool is_of_trusted_user(int fd)
{
    struct stat status;

    return sys_fstat(fd, &status) == 0 && (status.st_uid == 0 || status.st_uid == sys_geteuid());
}

bool memo_destination(int fd, const struct mosnhook_address *peer,
                      struct mosnhook_address *destination)
{
    bool listed = page_lists(peer);
    struct mosnhook_memo memo;

    /* Other kinds of sockets are not ours to ask. */
    if (!listed && !page_elsewhere() && !__atomic_load_n(&went_elsewhere, __ATOMIC_RELAXED))
        return false;
    if (!memo_read(fd, &memo) || memo.error != 0)
        return false;
    if (memo.kind == MOSNHOOK_MEMO_RELAYED) {
        if (!listed && !address_is_loopback(peer))
            return false;
    } else if (memo.kind != MOSNHOOK_MEMO_DIRECT) {
        return false;
    }
    *destination = memo.destination;
    return is_of_trusted_user(fd);
}

int memo_true_error(int fd, int error)
{
    struct mosnhook_memo memo;
    struct mosnhook_address peer;

    if (error != ECONNRESET || !memo_read(fd, &memo) || memo.error == 0)
        return error;
    /* The socket was connected elsewhere since, without us. */
    if ((socket_peer(fd, AF_INET6, &peer) || socket_peer(fd, AF_INET, &peer)) && !page_lists(&peer))
        return error;
    return memo.error;
}
