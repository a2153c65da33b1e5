/* Many threads that connect at the same time, each to its own destination:
 * `threads COUNT ROUNDS PORT` connects thread i to 10.2.0.i, where a server echoes.
 *
 * Each connection carries its thread and round there and back and must name its own destination as
 * the peer, so a mix-up between threads cannot go unseen. Prints the number of connections that
 * were right; exit 1 when one was not. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_THREADS = 250 };

static int rounds, port;
static int right[MAX_THREADS];

static int talk(int thread, int round)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, peer;
    socklen_t size = sizeof(peer);
    char sent[64] = {0}, echoed[64];
    int ok, fd = socket(AF_INET, SOCK_STREAM, 0);

    to.sin_addr.s_addr = htonl(0x0a020000u + (uint32_t)thread);
    snprintf(sent, sizeof(sent), "thread %d round %d", thread, round);
    ok = fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0 &&
         getpeername(fd, (struct sockaddr *)&peer, &size) == 0 &&
         peer.sin_addr.s_addr == to.sin_addr.s_addr && peer.sin_port == to.sin_port &&
         send(fd, sent, sizeof(sent), MSG_NOSIGNAL) == sizeof(sent) &&
         recv(fd, echoed, sizeof(echoed), MSG_WAITALL) == sizeof(echoed) &&
         memcmp(sent, echoed, sizeof(sent)) == 0;
    if (!ok) {
        perror(sent);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static void *work(void *argument)
{
    int thread = (int)(intptr_t)argument;

    for (int round = 0; round < rounds; round++) {
        right[thread] += talk(thread, round);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[MAX_THREADS];
    int count = argc == 4 ? atoi(argv[1]) : 0, sum = 0;

    if (count < 1 || count > MAX_THREADS) {
        fprintf(stderr, "usage: threads COUNT ROUNDS PORT\n");
        return 2;
    }
    rounds = atoi(argv[2]);
    port = atoi(argv[3]);
    for (int i = 0; i < count; i++) {
        if (pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) != 0) {
            perror("pthread_create");
            return 1;
        }
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        sum += right[i];
    }
    printf("right %d\n", sum);
    return sum == count * rounds ? 0 : 1;
}
