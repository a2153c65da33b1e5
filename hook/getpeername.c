/* getpeername(): a captured socket's peer is its original destination. */
#include "mosnhook.h"

/* The socket's original destination as a socket address. The kernel writes to our memory here, not
 * to the application's yet. */
static socklen_t find_destination(int fd, struct sockaddr_storage *name)
{
    socklen_t length = sizeof *name;
    struct mosnhook_address actual, destination;

    if (libc()->getpeername(fd, (struct sockaddr *)name, &length) != 0 ||
        !address_from_sockaddr((struct sockaddr *)name, length, &actual) ||
        !memo_destination(fd, &actual, &destination))
        return 0;
    return address_to_sockaddr(&destination, name->ss_family, name);
}

MOSNHOOK_EXPORT int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    struct sockaddr_storage name;
    socklen_t size = 0, room = 0;
    int saved_errno = get_errno(), result;

    if (hook_active() && page_known())
        size = find_destination(fd, &name);
    if (size > 0 && pointer_readable(length, sizeof *length))
        room = *length;
    set_errno(saved_errno);
    /* As in the kernel: the name is cut to the room there is, and the length is that of the whole
     * name. */
    result = libc()->getpeername(fd, address, length);
    if (result == 0 && size > 0 && room > 0)
        __builtin_memcpy(address, &name, size < room ? size : room);
    return result;
}
