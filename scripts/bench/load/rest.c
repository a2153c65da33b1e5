/* Bytes that wait: for the rest of their message, or for room in a socket. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void rest_append(struct rest *rest, const char *bytes, size_t size)
{
    if (size == 0) {
        return;
    }
    if (rest->size + size > rest->room) {
        rest->room = 2 * (rest->size + size);
        rest->bytes = realloc(rest->bytes, rest->room);
        if (rest->bytes == NULL) {
            die("realloc");
        }
    }
    memcpy(rest->bytes + rest->size, bytes, size);
    rest->size += size;
}

size_t rest_take(struct rest *rest, char *to)
{
    size_t size = rest->size;

    if (size > 0) {
        memcpy(to, rest->bytes, size);
        rest->size = 0;
    }
    return size;
}

static void drop_front(struct rest *rest, size_t size)
{
    rest->size -= size;
    memmove(rest->bytes, rest->bytes + size, rest->size);
}

/* How much was sent, which is nothing where there is no room; -1 with errno. */
static ssize_t send_some(int fd, const char *bytes, size_t size)
{
    ssize_t sent = size > 0 ? send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;

    return sent < 0 && errno == EAGAIN ? 0 : sent;
}

int rest_send(struct rest *rest, int fd, const char *bytes, size_t size)
{
    ssize_t sent;

    if (rest->size > 0) {
        sent = send_some(fd, rest->bytes, rest->size);
        if (sent < 0) {
            return errno;
        }
        drop_front(rest, (size_t)sent);
    }
    sent = rest->size > 0 ? 0 : send_some(fd, bytes, size);
    if (sent < 0) {
        return errno;
    }
    if ((size_t)sent < size) {
        rest_append(rest, bytes + sent, size - (size_t)sent);
    }
    return 0;
}
