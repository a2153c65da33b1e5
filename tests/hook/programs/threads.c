/* Threads that connect, exchange a word, ask for the peer, and close, over and over: descriptor
 * numbers are reused all the time.
 *
 * threads THREADS ROUNDS IP FIRST_PORT
 *
 * Each connect goes to another port of FIRST_PORT..FIRST_PORT+9, and its peer is asked for by dup
 * and from another thread. Prints the number of connections that were right. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct in_addr ip;
static int rounds, first_port;
static atomic_int right;

static void *ask_peer(void *descriptor)
{
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    int fd = *(int *)descriptor;

    if (getpeername(fd, (struct sockaddr *)&peer, &length) < 0 || peer.sin_addr.s_addr != ip.s_addr)
        return (void *)-1L;
    return (void *)(long)ntohs(peer.sin_port);
}

static int one(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = ip};
    int fd = socket(AF_INET, SOCK_STREAM, 0), copy;
    pthread_t other;
    void *answer;
    char word[5];

    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return fprintf(stderr, "connect: %s\n", strerror(errno)), 0;
    if (send(fd, "hello", 5, MSG_NOSIGNAL) != 5 || recv(fd, word, 5, MSG_WAITALL) != 5)
        return fprintf(stderr, "exchange: %s\n", strerror(errno)), 0;
    copy = dup(fd);
    close(fd);
    if (ask_peer(&copy) != (void *)(long)port)
        return fprintf(stderr, "wrong peer\n"), 0;
    if (pthread_create(&other, NULL, ask_peer, &copy) != 0 || pthread_join(other, &answer) != 0 ||
        answer != (void *)(long)port)
        return fprintf(stderr, "wrong peer in another thread\n"), 0;
    close(copy);
    return 1;
}

static void *work(void *number)
{
    for (int i = 0; i < rounds; i++)
        right += one(first_port + (i + (int)(long)number) % 10);
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[64];
    int wanted = count == 5 ? atoi(arguments[1]) : 0;

    if (wanted < 1 || wanted > 64 || inet_pton(AF_INET, arguments[3], &ip) != 1)
        return 2;
    rounds = atoi(arguments[2]);
    first_port = atoi(arguments[4]);
    for (long i = 0; i < wanted; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0)
            return 2;
    for (int i = 0; i < wanted; i++)
        pthread_join(threads[i], NULL);
    printf("right=%d\n", right);
    return 0;
}
