/* Descriptors that others passed to us. Anything may be behind one, and a close() that happens to
 * be the last may wait: for the peer of a lingering socket, for the daemon of a FUSE file system,
 * for the driver of a device. The worker cannot find out beforehand, since whoever passed it can
 * still change it. So those of other users are closed by a thread that has nothing else to do, and
 * so is their connection of the control socket, in whose queue may be more.
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
    REAPER_IDLE_S = 2,  /* until its threads end */
    REAPER_STACK = 64 * 1024,
};

/* ---- the threads that close ---- */

/* Users share reapers by chance; a user whose closes wait keeps few others from theirs. */
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
    atomic_uint references; /* the data plane's, and those of the threads */
    atomic_int pending;     /* descriptors that are not closed yet */
    struct reaper each[REAPERS];
};

/* With the lock held: until there is something to close. False when there was nothing for long. */
static bool await_fd(struct reaper *reaper)
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

static void *reap(void *argument)
{
    struct reaper *reaper = argument;
    struct foreign *foreign = reaper->all;

    pthread_mutex_lock(&reaper->lock);
    while (await_fd(reaper)) {
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

/* With the lock held. What cannot be started now is when the next descriptor comes. */
static void start_thread(struct reaper *reaper)
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
    if (pthread_create(&thread, &attributes, reap, reaper) == 0)
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

/* The first reaper is for those whom we trust. */
static void reap_later(struct foreign *foreign, bool trusted, uint32_t uid, int fd)
{
    struct reaper *reaper =
        &foreign->each[trusted ? 0 : 1 + (uid * 0x9e3779b1u >> 16) % (REAPERS - 1)];
    bool pushed;

    atomic_fetch_add_explicit(&foreign->pending, 1, memory_order_relaxed);
    pthread_mutex_lock(&reaper->lock);
    pushed = reaper_push(reaper, fd);
    if (reaper->idle < reaper->count && reaper->threads < REAPER_THREADS)
        start_thread(reaper);
    pthread_cond_signal(&reaper->filled);
    pthread_mutex_unlock(&reaper->lock);
    if (pushed)
        return;
    close(fd); /* out of memory: late is better than never */
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

    /* All three: 6 is also the number of a netlink protocol, and of raw sockets for TCP. */
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

/* Not SO_LINGER reset and then closed: it is the application's, which may go on to use it. */
void foreign_close(struct foreign *foreign, uint32_t uid, int *fd)
{
    bool trusted = foreign_is_trusted(foreign, uid);

    if (*fd < 0)
        return;
    if (trusted && !close_would_wait(*fd))
        close(*fd);
    else
        reap_later(foreign, trusted, uid, *fd);
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
    loop_unwatch(&worker->loop, watch); /* before it has been closed */
    reap_later(worker->foreign, false, uid, watch->fd);
    watch->fd = -1;
}

void foreign_close_listener(struct foreign *foreign, int fd)
{
    reap_later(foreign, false, UINT32_MAX, fd);
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
