/* Load over TCP, the far end and the near end, with no more than epoll between them and the kernel.
 *
 *   load serve PORT IP...
 *       Echoes on every IP.
 *   load hold COUNT PORT IP...
 *       Opens COUNT connections, spread over the IPs, exchanges a message on each, prints "holding
 *       COUNT" and keeps them. For every SIGUSR1 it exchanges again and prints "exchanged COUNT".
 *   load churn COUNT WINDOW PORT IP...
 *       COUNT connections, WINDOW at a time, each with one message there and back; prints
 *       "churned COUNT failed N".
 *   load probe blocking|polling THREADS PORT IP...
 *       Connects, exchanges a message and closes, for ever. Prints a line for each attempt:
 *       "started_ms connect_ms errno exchanged", where started_ms is CLOCK_MONOTONIC, errno is
 *       connect's (0: connected) and exchanged is 1 when the message came back.
 *
 * All but churn run until a signal ends them. Exit 1 with a reason on stderr when a connection or a
 * message fails (not: probe, which is there to see failures). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MESSAGE = 64,
    EVENTS = 512,
    HOLD_WINDOW = 256,        /* connections being opened at one time by `hold` */
    STALL_MS = 60000,         /* nothing at all happens for this long: give up */
    PROBE_PATIENCE_S = 60,    /* far above every bound that is tested */
    PROBE_PAUSE_NS = 5000000, /* between two attempts of a thread */
};

static int port;
static int address_count;
static char **addresses;

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_in destination(long number)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

    if (inet_pton(AF_INET, addresses[number % address_count], &to.sin_addr) != 1) {
        errno = EINVAL;
        die(addresses[number % address_count]);
    }
    return to;
}

static void watch(int epoll, int fd, uint32_t events, uint64_t data, int operation)
{
    struct epoll_event event = {.events = events, .data.u64 = data};

    if (epoll_ctl(epoll, operation, fd, &event) != 0) {
        die("epoll_ctl");
    }
}

static int wait_for(int epoll, struct epoll_event *events, int patience_ms)
{
    int ready = epoll_wait(epoll, events, EVENTS, patience_ms);

    if (ready == 0) {
        errno = ETIMEDOUT;
    }
    if (ready <= 0) {
        die("nothing happens");
    }
    return ready;
}

static void say(const char *word, long count)
{
    printf("%s %ld\n", word, count);
    fflush(stdout);
}

/* ---- serve ---- */

static void accept_all(int epoll, int listener)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        watch(epoll, fd, EPOLLIN, (uint64_t)fd, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED) {
        die("accept");
    }
}

/* A message is far smaller than the send buffer of a socket whose reader answers to it. */
static void echo(int fd)
{
    char buffer[4096];
    ssize_t got = recv(fd, buffer, sizeof(buffer), 0);

    if (got <= 0 || send(fd, buffer, (size_t)got, MSG_NOSIGNAL) != got) {
        close(fd);
    }
}

static void serve(void)
{
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(0), last_listener = 0, on = 1;

    for (int i = 0; i < address_count; i++) {
        struct sockaddr_in here = destination(i);

        last_listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(last_listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (bind(last_listener, (struct sockaddr *)&here, sizeof(here)) != 0 ||
            listen(last_listener, 4096) != 0) {
            die(addresses[i]);
        }
        watch(epoll, last_listener, EPOLLIN, (uint64_t)last_listener, EPOLL_CTL_ADD);
    }
    for (;;) {
        int ready = wait_for(epoll, events, -1);

        for (int i = 0; i < ready; i++) {
            int fd = (int)events[i].data.u64;

            if (fd <= last_listener) {
                accept_all(epoll, fd);
            } else {
                echo(fd);
            }
        }
    }
}

/* ---- hold and churn: a message that names its connection ---- */

static uint64_t pack(long number, int fd)
{
    return (uint64_t)number << 32 | (uint32_t)fd;
}

static void fill(char *message, long number)
{
    memset(message, 0, MESSAGE);
    snprintf(message, MESSAGE, "connection %ld", number);
}

static int open_one(int epoll, long number)
{
    struct sockaddr_in to = destination(number);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        die("socket");
    }
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0 && errno != EINPROGRESS) {
        die("connect");
    }
    watch(epoll, fd, EPOLLOUT, pack(number, fd), EPOLL_CTL_ADD);
    return fd;
}

static void ask(int fd, long number)
{
    char message[MESSAGE];

    fill(message, number);
    if (send(fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) {
        die("send");
    }
}

/* The connection is there, or its error is. */
static int connected(int fd)
{
    int error = 0;
    socklen_t size = sizeof(error);

    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    return error == 0;
}

static int answered(int fd, long number)
{
    char expected[MESSAGE], got[MESSAGE];

    fill(expected, number);
    errno = 0;
    return recv(fd, got, MESSAGE, MSG_WAITALL) == MESSAGE && memcmp(expected, got, MESSAGE) == 0;
}

static void exchange_on_all(int epoll, const int *fds, long count)
{
    struct epoll_event events[EVENTS];
    long done = 0;

    for (long i = 0; i < count; i++) {
        ask(fds[i], i);
    }
    while (done < count) {
        int ready = wait_for(epoll, events, STALL_MS);

        for (int i = 0; i < ready; i++) {
            if (!answered((int)(uint32_t)events[i].data.u64, (long)(events[i].data.u64 >> 32))) {
                die("an answer is not the question");
            }
            done++;
        }
    }
    say("exchanged", count);
}

static void hold(long count)
{
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(0);
    int *fds = calloc((size_t)count, sizeof(*fds));
    long opened = 0, done = 0;
    sigset_t again;
    int received;

    if (fds == NULL) {
        die("calloc");
    }
    sigemptyset(&again);
    sigaddset(&again, SIGUSR1);
    sigprocmask(SIG_BLOCK, &again, NULL);
    while (done < count) {
        int ready;

        while (opened < count && opened - done < HOLD_WINDOW) {
            fds[opened] = open_one(epoll, opened);
            opened++;
        }
        ready = wait_for(epoll, events, STALL_MS);
        for (int i = 0; i < ready; i++) {
            int fd = (int)(uint32_t)events[i].data.u64;
            long number = (long)(events[i].data.u64 >> 32);

            if (events[i].events & EPOLLIN) {
                if (!answered(fd, number)) {
                    die("an answer is not the question");
                }
                done++;
            } else {
                if (!connected(fd)) {
                    die("connect");
                }
                ask(fd, number);
                watch(epoll, fd, EPOLLIN, events[i].data.u64, EPOLL_CTL_MOD);
            }
        }
    }
    say("holding", count);
    while (sigwait(&again, &received) == 0) {
        exchange_on_all(epoll, fds, count);
    }
    free(fds);
}

static void churn(long count, long window)
{
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(0);
    long opened = 0, done = 0, failed = 0;

    while (done < count) {
        int ready;

        while (opened < count && opened - done < window) {
            open_one(epoll, opened++);
        }
        ready = wait_for(epoll, events, STALL_MS);
        for (int i = 0; i < ready; i++) {
            int fd = (int)(uint32_t)events[i].data.u64;
            long number = (long)(events[i].data.u64 >> 32);

            if ((events[i].events & EPOLLIN) == 0 && connected(fd)) {
                ask(fd, number);
                watch(epoll, fd, EPOLLIN, events[i].data.u64, EPOLL_CTL_MOD);
                continue;
            }
            if (!answered(fd, number)) {
                failed++;
            }
            close(fd);
            done++;
        }
    }
    printf("churned %ld failed %ld\n", count, failed);
    exit(failed == 0 ? 0 : 1);
}

/* ---- probe ---- */

static int polling;

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int connect_patiently(int fd, const struct sockaddr_in *to)
{
    struct pollfd writable = {.fd = fd, .events = POLLOUT};

    if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) == 0) {
        return 0;
    }
    if (!polling || errno != EINPROGRESS) {
        return errno;
    }
    if (poll(&writable, 1, PROBE_PATIENCE_S * 1000) != 1) {
        return ETIMEDOUT;
    }
    return connected(fd) ? 0 : errno;
}

static int exchange_patiently(int fd, long number)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    char message[MESSAGE];

    fill(message, number);
    return send(fd, message, MESSAGE, MSG_NOSIGNAL) == MESSAGE &&
           poll(&readable, 1, PROBE_PATIENCE_S * 1000) == 1 && answered(fd, number);
}

static void *probe(void *argument)
{
    struct timespec pause = {.tv_nsec = PROBE_PAUSE_NS};

    for (long number = (long)(intptr_t)argument;; number++) {
        struct sockaddr_in to = destination(number);
        int fd = socket(AF_INET, SOCK_STREAM | (polling ? SOCK_NONBLOCK : 0), 0);
        int64_t started = now_ms(), took;
        int error, exchanged;
        char line[96];
        int length;

        error = connect_patiently(fd, &to);
        took = now_ms() - started;
        exchanged = error == 0 && exchange_patiently(fd, number);
        close(fd);
        length = snprintf(line, sizeof(line), "%lld %lld %d %d\n", (long long)started,
                          (long long)took, error, exchanged);
        /* One write for a line, so that threads do not mix theirs. */
        if (write(STDOUT_FILENO, line, (size_t)length) != length) {
            die("write");
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void start_probes(int threads)
{
    for (int i = 0; i < threads; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, probe, (void *)(intptr_t)i) != 0) {
            die("pthread_create");
        }
    }
    for (;;) {
        pause();
    }
}

/* ---- */

static void raise_fd_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* The words that follow a mode, before PORT and IP...; -1 for no mode at all. */
static int words_of(const char *mode)
{
    if (strcmp(mode, "serve") == 0) {
        return 0;
    }
    if (strcmp(mode, "hold") == 0) {
        return 1;
    }
    if (strcmp(mode, "churn") == 0 || strcmp(mode, "probe") == 0) {
        return 2;
    }
    return -1;
}

int main(int argc, char **argv)
{
    int words = argc > 1 ? words_of(argv[1]) : -1;

    if (words < 0 || argc < words + 4) {
        fprintf(stderr, "usage: load serve|hold|churn|probe ... (see the source)\n");
        return 2;
    }
    port = atoi(argv[words + 2]);
    addresses = argv + words + 3;
    address_count = argc - words - 3;
    raise_fd_limit();
    switch (argv[1][0]) {
    case 's':
        serve();
        break;
    case 'h':
        hold(atol(argv[2]));
        break;
    case 'c':
        churn(atol(argv[2]), atol(argv[3]));
        break;
    default:
        polling = strcmp(argv[2], "polling") == 0;
        start_probes(atoi(argv[3]));
    }
    return 0;
}
