/* Descriptors that others passed to us. Anything may be behind one, and the last close() of it may
 * wait: for the peer of a lingering socket, for the daemon of a FUSE file system, for the driver of
 * a device. A worker cannot find out beforehand, since whoever passed the descriptor can still
 * change it. So reaper threads, which do nothing else, close the descriptors of other users, and
 * their connections of the control socket, whose queues may hold more.
 *
 * Root and the user as whom we run could stop us anyway. Their sockets are closed at once, unless
 * close() would wait. */
#include "net/foreign.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"

enum {
    REAPERS = 32,
    REAPER_THREADS = 4, /* of one reaper: as many closes may wait before others have to */
    REAPER_IDLE_S = 2,  /* before its threads end */
    REAPER_STACK = 64 * 1024,
};

/* ---- the threads that close ---- */

/* Users share reapers by hash; a user whose closes wait holds up few others. */
struct reaper {
    struct foreign *all;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    int *fds; /* a stack: all of them are equally late */
    size_t count, capacity;
    unsigned threads, idle;
};

struct foreign {
    uint32_t uid;           /* as whom we run */
    uint64_t namespace;     /* see namespace_of */
    atomic_uint references; /* the data plane's, and the threads' */
    atomic_int pending;     /* descriptors that wait to be closed */
    struct reaper each[REAPERS];
};

/* Waits, with the lock held, for something to close. False after REAPER_IDLE_S without. */
static bool reaper_await(struct reaper *reaper)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += REAPER_IDLE_S;
    while (reaper->count == 0) {
        int result;

        reaper->idle++;
        result = pthread_cond_timedwait(&reaper->filled, &reaper->lock, &until);
        reaper->idle--;
        if (result == ETIMEDOUT)
            break;
    }
    return reaper->count > 0;
}

static void *reaper_run(void *argument)
{
    struct reaper *reaper = argument;
    struct foreign *foreign = reaper->all;

    pthread_mutex_lock(&reaper->lock);
    while (reaper_await(reaper)) {
        int fd = reaper->fds[--reaper->count];

        pthread_mutex_unlock(&reaper->lock);
        close(fd);
        atomic_fetch_sub_explicit(&foreign->pending, 1, memory_order_relaxed);
        pthread_mutex_lock(&reaper->lock);
    }
    reaper->threads--;
    pthread_mutex_unlock(&reaper->lock);
    foreign_release(foreign);
    return NULL;
}

/* With the lock held. A thread that cannot be started now is started for the next descriptor. */
static void reaper_start_thread(struct reaper *reaper)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the control thread's */
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, REAPER_STACK);
    atomic_fetch_add_explicit(&reaper->all->references, 1, memory_order_relaxed);
    if (pthread_create(&thread, &attributes, reaper_run, reaper) == 0)
        reaper->threads++;
    else
        atomic_fetch_sub_explicit(&reaper->all->references, 1, memory_order_relaxed);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* False when out of memory. */
static bool reaper_push(struct reaper *reaper, int fd)
{
    if (reaper->count == reaper->capacity) {
        size_t capacity = reaper->capacity ? 2 * reaper->capacity : REAPERS;
        int *larger = realloc(reaper->fds, capacity * sizeof *larger);

        if (!larger)
            return false;
        reaper->fds = larger;
        reaper->capacity = capacity;
    }
    reaper->fds[reaper->count++] = fd;
    return true;
}

/* The first reaper is for trusted users. */
static void reaper_close(struct foreign *foreign, bool trusted, uint32_t uid, int fd)
{
    struct reaper *reaper =
        &foreign->each[trusted ? 0 : 1 + (uid * 0x9e3779b1u >> 16) % (REAPERS - 1)];
    bool pushed;

    atomic_fetch_add_explicit(&foreign->pending, 1, memory_order_relaxed);
    pthread_mutex_lock(&reaper->lock);
    pushed = reaper_push(reaper, fd);
    if (reaper->idle < reaper->count && reaper->threads < REAPER_THREADS)
        reaper_start_thread(reaper);
    pthread_cond_signal(&reaper->filled);
    pthread_mutex_unlock(&reaper->lock);
    if (pushed)
        return;
    close(fd); /* out of memory: a close that may wait is better than none */
    atomic_fetch_sub_explicit(&foreign->pending, 1, memory_order_relaxed);
}

/* ---- what the worker may do itself ---- */

static int read_option(int fd, int name)
{
    int value = -1;
    socklen_t length = sizeof value;

    return getsockopt(fd, SOL_SOCKET, name, &value, &length) < 0 ? -1 : value;
}

int foreign_protocol(int fd)
{
    int domain = read_option(fd, SO_DOMAIN), protocol;

    /* Domain and type, too: netlink and raw sockets have a protocol 6 as well. */
    if ((domain != AF_INET && domain != AF_INET6) || read_option(fd, SO_TYPE) != SOCK_STREAM)
        return -1;
    protocol = read_option(fd, SO_PROTOCOL);
    return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP ? protocol : -1;
}

/* The cookie of the socket's network namespace; 0 where the kernel does not tell. */
static uint64_t namespace_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;

    return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) < 0 ? 0 : cookie;
}

bool foreign_namespace_is_known(const struct foreign *foreign)
{
    return foreign->namespace != 0;
}

bool foreign_is_here(const struct foreign *foreign, int fd)
{
    return namespace_of(fd) == foreign->namespace;
}

static bool close_would_wait(int fd)
{
    struct linger linger = {.l_onoff = 0};
    socklen_t length = sizeof linger;

    if (foreign_protocol(fd) < 0)
        return true;
    return getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length) < 0 ||
           (linger.l_onoff && linger.l_linger > 0);
}

bool foreign_is_trusted(const struct foreign *foreign, uint32_t uid)
{
    return uid == 0 || uid == foreign->uid;
}

/* Clearing SO_LINGER first is no way: the socket is the application's, which may go on using it. */
void foreign_close(struct foreign *foreign, uint32_t uid, int *fd)
{
    bool trusted = foreign_is_trusted(foreign, uid);

    if (*fd < 0)
        return;
    if (trusted && !close_would_wait(*fd))
        close(*fd);
    else
        reaper_close(foreign, trusted, uid, *fd);
    *fd = -1;
}

void foreign_close_watch(struct worker *worker, uint32_t uid, struct watch *watch)
{
    if (watch->fd < 0)
        return;
    if (foreign_is_trusted(worker->foreign, uid)) {
        loop_close_watch(&worker->loop, watch);
        return;
    }
    loop_unwatch(&worker->loop, watch); /* at once: the close comes later */
    reaper_close(worker->foreign, false, uid, watch->fd);
    watch->fd = -1;
}

void foreign_close_listener(struct foreign *foreign, int fd)
{
    reaper_close(foreign, false, UINT32_MAX, fd);
}

/* ---- life ---- */

static uint64_t own_namespace(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint64_t namespace = fd < 0 ? 0 : namespace_of(fd);

    close_fd(&fd);
    return namespace;
}

struct foreign *foreign_create(void)
{
    struct foreign *foreign = calloc(1, sizeof *foreign);
    pthread_condattr_t monotonic;

    if (!foreign)
        return NULL;
    foreign->uid = geteuid();
    foreign->namespace = own_namespace();
    atomic_init(&foreign->references, 1);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (size_t i = 0; i < REAPERS; i++) {
        foreign->each[i].all = foreign;
        pthread_mutex_init(&foreign->each[i].lock, NULL);
        pthread_cond_init(&foreign->each[i].filled, &monotonic);
    }
    pthread_condattr_destroy(&monotonic);
    return foreign;
}

void foreign_release(struct foreign *foreign)
{
    if (!foreign || atomic_fetch_sub_explicit(&foreign->references, 1, memory_order_acq_rel) > 1)
        return;
    for (size_t i = 0; i < REAPERS; i++) {
        pthread_cond_destroy(&foreign->each[i].filled);
        pthread_mutex_destroy(&foreign->each[i].lock);
        free(foreign->each[i].fds);
    }
    free(foreign);
}

int foreign_pending(const struct foreign *foreign)
{
    return atomic_load_explicit(&foreign->pending, memory_order_relaxed);
}
