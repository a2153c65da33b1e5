/* Cancels a thread that waits in connect(), when a byte arrives on stdin; then says whether all
 * descriptors but the socket's are gone and what became of the socket.
 *
 * cancel IP PORT */
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in address = {.sin_family = AF_INET};

static int count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void *wait_in_connect(void *fd)
{
    connect(*(int *)fd, (struct sockaddr *)&address, sizeof address);
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    void *result = NULL;
    char byte;
    int fd = socket(AF_INET, SOCK_STREAM, 0), before;

    if (count != 3 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    before = count_descriptors();
    if (pthread_create(&thread, NULL, wait_in_connect, &fd) != 0 || read(0, &byte, 1) != 1)
        return 2;
    printf("while=%d\n", count_descriptors() - before);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    printf("cancelled=%d\n", result == PTHREAD_CANCELED);
    printf("after=%d\n", count_descriptors() - before);
    printf("blocking=%d\n", !(fcntl(fd, F_GETFL) & O_NONBLOCK));
    return 0;
}
