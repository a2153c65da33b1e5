/* getpeername(): a captured socket's peer is where it wanted to go. */
#include "mosnhook.h"

/* As the kernel does it: cut to the room there is, and the length says what it would take. */
static void store(const struct sockaddr_storage *from, socklen_t size, struct sockaddr *to,
                  socklen_t room, socklen_t *length)
{
    __builtin_memcpy(to, from, size < room ? size : room);
    *length = size;
}

MOSNHOOK_EXPORT int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    socklen_t room = length ? *length : 0;
    int result = libc()->getpeername(fd, address, length);
    struct sockaddr_storage whole;
    socklen_t whole_length = sizeof whole;
    struct mosnhook_address actual, destination;

    if (result != 0 || !page_known() || !hook_active() || room < sizeof address->sa_family ||
        (address->sa_family != AF_INET && address->sa_family != AF_INET6))
        return result;
    if (libc()->getpeername(fd, (struct sockaddr *)&whole, &whole_length) != 0 ||
        !address_from_sockaddr((struct sockaddr *)&whole, whole_length, &actual))
        return result;
    if (memo_destination(fd, &actual, &destination)) {
        whole_length = address_to_sockaddr(&destination, whole.ss_family, &whole);
        if (whole_length)
            store(&whole, whole_length, address, room, length);
    }
    return result;
}
