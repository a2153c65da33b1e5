/* getpeername() at its edges, on one captured connection.
 *
 * peername IP PORT */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6}, peer;
    unsigned char guarded[64];
    socklen_t length = sizeof peer;
    int fd = socket(AF_INET6, SOCK_STREAM, 0), other;
    char text[INET6_ADDRSTRLEN];

    if (count != 3 || inet_pton(AF_INET6, arguments[1], &address.sin6_addr) != 1)
        return 2;
    address.sin6_port = htons((uint16_t)atoi(arguments[2]));
    printf("before=%d\n", getpeername(fd, (struct sockaddr *)&peer, &length) < 0 ? errno : 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return 3;

    length = sizeof peer;
    getpeername(fd, (struct sockaddr *)&peer, &length);
    inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text);
    printf("peer=%s %d\nlength=%u\n", text, ntohs(peer.sin6_port), length);

    memset(guarded, 0xaa, sizeof guarded);
    length = 4; /* family and port */
    getpeername(fd, (struct sockaddr *)guarded, &length);
    printf("cut=%d\ncut_length=%u\nbeyond=%x\n", memcmp(guarded, &peer, 4) == 0, length,
           guarded[4]);

    length = 0;
    printf("nothing=%d\n", getpeername(fd, (struct sockaddr *)guarded, &length) < 0 ? errno : 0);
    printf("nothing_length=%u\n", length);
    printf("bad=%d\n", getpeername(-1, (struct sockaddr *)&peer, &length) < 0 ? errno : 0);

    /* The number goes to another socket: a listener's end of a connection. */
    close(fd);
    other = socket(AF_INET, SOCK_STREAM, 0);
    printf("reused=%d\n", other == fd);
    length = sizeof peer;
    printf("fresh=%d\n", getpeername(other, (struct sockaddr *)&peer, &length) < 0 ? errno : 0);
    return 0;
}
