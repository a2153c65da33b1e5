/* The short cut through the kernel: what the application sends goes to the upstream's socket, and
 * what we send it goes into its receive queue, without another trip through TCP (see
 * bpf/accelerate.bpf.c for order and flow control).
 *
 * A connection is attached when its traffic shows that this pays. Nothing else changes for it: what
 * the programs do not redirect still comes by TCP and is relayed, now or later in its life.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bpf/record.h"
#include "internal.h"

enum {
    /* Redirected bytes that wait in one socket: enough for a reader that is not running for some
     * milliseconds, and for all connections together no more than the budget. */
    WINDOW_MAX = 4 * 1024 * 1024,
    WINDOW_MIN = 128 * 1024,
    WINDOW_BUDGET = 256 * 1024 * 1024,

    /* What may wait on TCP's way from the application: little, so that a blast that had to take it
     * leaves it soon. The unsent bytes that its socket takes, and our receive buffer. */
    UNSENT_MAX = 1,
    RECEIVE_BUFFER = 64 * 1024,

    /* How often a receiver that is behind is looked after: seldom enough that looking takes no more
     * than a twentieth of the worker's time. And how long, without and with progress. */
    POLL_NS = 200 * 1000,
    POLL_SHARE = 20,
    STALL_MS = 5,
    POLLED_MS = 20,
    RETRY_MS = 10,      /* of one that stalled, and takes bytes by TCP */
    TRIES = 8,          /* to attach a connection, at doubled distances */
    TICK_BUSY_MS = 250, /* how old byte counts may be */
    TICK_IDLE_MS = 1000,
    MEMORY_LOOK_MS = 100, /* between two looks at TCP's memory */
    QUARANTINE_MS = 1000, /* of a slot, so that no program that still runs uses it */
};

/* Whether who is sent to keeps up with it. While it does not, the sender waits for it rather than
 * send by TCP, which would have to be empty before anything can be redirected again. */
enum pace {
    PACE_KEEPS_UP,
    PACE_BEHIND,    /* its window is full */
    PACE_SWITCHING, /* from TCP to redirecting: it has to read everything first */
    PACE_STALLED,   /* it takes too long: TCP holds the sender back */
};

struct receiver {
    enum pace pace;
    uint32_t waiting; /* bytes, at the last poll */
    uint64_t since_ms, progress_ms;
};

struct accelerated {
    struct record *record;
    uint64_t counted;      /* of record->redirected[0]: added to the connection's bytes */
    int room;              /* bytes of the buffer that redirected ones go to */
    bool joined;           /* what we send to the application may be redirected */
    uint64_t leaves_at_ms; /* when it goes back to the relay; 0: it does not */
    /* By the side that is sent to: the application, the upstream. */
    struct receiver receiver[2];
    struct connection *next_polled,
        **previous_polled; /* the worker's list, while one is waited for */
};

/* ---- libbpf, loaded where it is needed ---- */

typedef int (*print_function)(int level, const char *format, va_list arguments);

static struct {
    void *handle;
    print_function (*set_print)(print_function);
    void *(*open)(const char *path);
    void *(*find_map)(const void *object, const char *name);
    int (*set_max_entries)(void *map, uint32_t entries);
    int (*load)(void *object);
    void (*close)(void *object);
    int (*map_fd)(const void *object, const char *name);
    void *(*find_program)(const void *object, const char *name);
    int (*program_fd)(const void *program);
} libbpf;

static char *load_log; /* of the load that is going on: its first line says what is wrong */

static int keep_first_line(int level, const char *format, va_list arguments)
{
    if (level == 0 && load_log && load_log[0] == '\0') {
        vsnprintf(load_log, DP_REASON_SIZE, format, arguments);
        load_log[strcspn(load_log, "\n")] = '\0';
    }
    return 0;
}

static bool open_libbpf(char *reason)
{
    const struct {
        const char *name;
        void **function;
    } functions[] = {
        {"libbpf_set_print", (void **)&libbpf.set_print},
        {"bpf_object__open", (void **)&libbpf.open},
        {"bpf_object__find_map_by_name", (void **)&libbpf.find_map},
        {"bpf_map__set_max_entries", (void **)&libbpf.set_max_entries},
        {"bpf_object__load", (void **)&libbpf.load},
        {"bpf_object__close", (void **)&libbpf.close},
        {"bpf_object__find_map_fd_by_name", (void **)&libbpf.map_fd},
        {"bpf_object__find_program_by_name", (void **)&libbpf.find_program},
        {"bpf_program__fd", (void **)&libbpf.program_fd},
    };

    if (!libbpf.handle)
        libbpf.handle = dlopen("libbpf.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!libbpf.handle) {
        snprintf(reason, DP_REASON_SIZE, "libbpf is missing (%s)", dlerror());
        return false;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        *functions[i].function = dlsym(libbpf.handle, functions[i].name);
        if (!*functions[i].function) {
            snprintf(reason, DP_REASON_SIZE, "libbpf is too old: it has no %s", functions[i].name);
            return false;
        }
    }
    return true;
}

/* ---- the kernel's side ---- */

static long bpf(int command, union bpf_attr *attributes)
{
    return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

/* Runs a program of the kind that looks at packets, for one record. Its answer or -errno. */
static int run_program(const struct accelerator *accelerator, int program,
                       const struct record *record)
{
    struct __sk_buff context = {.mark = (uint32_t)(record - accelerator->records)};
    char packet[64] = {0}; /* the kernel wants one; nobody looks at it */
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    attributes.test.prog_fd = (uint32_t)program;
    attributes.test.data_in = (uint64_t)(uintptr_t)packet;
    attributes.test.data_size_in = sizeof packet;
    attributes.test.ctx_in = (uint64_t)(uintptr_t)&context;
    attributes.test.ctx_size_in = sizeof context;
    return bpf(BPF_PROG_TEST_RUN, &attributes) < 0 ? -errno : (int)attributes.test.retval;
}

static bool has_capabilities(char *reason)
{
    static const struct {
        unsigned number;
        const char *name;
    } needed[] = {
        {CAP_BPF, "CAP_BPF"},
        {CAP_NET_ADMIN, "CAP_NET_ADMIN"},
        {CAP_PERFMON, "CAP_PERFMON"},
    };
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    uint64_t effective;
    size_t length;

    if (syscall(SYS_capget, &header, data) < 0) {
        snprintf(reason, DP_REASON_SIZE, "cannot read the process's capabilities");
        return false;
    }
    effective = data[0].effective | (uint64_t)data[1].effective << 32;
    length = (size_t)snprintf(reason, DP_REASON_SIZE, "missing capabilities:");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!(effective >> needed[i].number & 1) &&
            (needed[i].number == CAP_NET_ADMIN || !(effective >> CAP_SYS_ADMIN & 1)))
            length +=
                (size_t)snprintf(reason + length, DP_REASON_SIZE - length, " %s", needed[i].name);
    if (reason[length - 1] != ':')
        return false;
    reason[0] = '\0';
    return true;
}

static bool size_maps(void *object, uint32_t connections)
{
    const struct {
        const char *name;
        uint32_t entries;
    } maps[] = {
        {"records", connections},
        {"upstreams", connections},
        {"ends", 2 * 2 * connections}, /* closed ones leave when the application does */
    };

    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        if (libbpf.set_max_entries(libbpf.find_map(object, maps[i].name), maps[i].entries) < 0)
            return false;
    return true;
}

static bool load_object(struct accelerator *accelerator, const char *path, char *reason)
{
    bool loaded;

    load_log = reason;
    libbpf.set_print(keep_first_line);
    accelerator->object = libbpf.open(path);
    loaded = accelerator->object &&
             size_maps(accelerator->object, accelerator->settings.connections) &&
             libbpf.load(accelerator->object) >= 0;
    if (!loaded && !reason[0])
        snprintf(reason, DP_REASON_SIZE, "cannot load %s: %s", path, strerror(errno));
    load_log = NULL;
    return loaded;
}

static size_t records_size(const struct accelerator *accelerator)
{
    return accelerator->settings.connections * sizeof(struct record);
}

/* The link by which `wake_senders` can be run, or -errno. */
static int link_iterator(int program)
{
    union bpf_attr attributes;
    int link;

    memset(&attributes, 0, sizeof attributes);
    attributes.link_create.prog_fd = (uint32_t)program;
    attributes.link_create.attach_type = BPF_TRACE_ITER;
    link = (int)bpf(BPF_LINK_CREATE, &attributes);
    return link < 0 ? -errno : link;
}

static void run_iterator(int link)
{
    union bpf_attr attributes;
    char nothing[64];
    int iterator;

    memset(&attributes, 0, sizeof attributes);
    attributes.iter_create.link_fd = (uint32_t)link;
    iterator = (int)bpf(BPF_ITER_CREATE, &attributes);
    if (iterator < 0)
        return;
    while (read(iterator, nothing, sizeof nothing) > 0)
        ;
    close(iterator);
}

/* Loads the programs and maps. False with a reason. */
static bool load(struct accelerator *accelerator, const char *path, char *reason)
{
    union bpf_attr attributes;
    int redirect, records;
    void *memory;

    if (!load_object(accelerator, path, reason))
        return false;
    redirect = libbpf.program_fd(libbpf.find_program(accelerator->object, "redirect"));
    accelerator->ends = libbpf.map_fd(accelerator->object, "ends");
    records = libbpf.map_fd(accelerator->object, "records");
    accelerator->attach = libbpf.program_fd(libbpf.find_program(accelerator->object, "attach"));
    accelerator->join = libbpf.program_fd(libbpf.find_program(accelerator->object, "join"));
    accelerator->probe = libbpf.program_fd(libbpf.find_program(accelerator->object, "probe"));
    memset(&attributes, 0, sizeof attributes);
    attributes.target_fd = (uint32_t)accelerator->ends;
    attributes.attach_bpf_fd = (uint32_t)redirect;
    attributes.attach_type = BPF_SK_MSG_VERDICT;
    if (bpf(BPF_PROG_ATTACH, &attributes) < 0) {
        snprintf(reason, DP_REASON_SIZE, "the kernel has no sockmap: %s", strerror(errno));
        return false;
    }
    accelerator->wake_senders =
        link_iterator(libbpf.program_fd(libbpf.find_program(accelerator->object, "wake_senders")));
    if (accelerator->wake_senders < 0) {
        snprintf(reason, DP_REASON_SIZE, "the kernel cannot iterate over sockets: %s",
                 strerror(-accelerator->wake_senders));
        return false;
    }
    memory = mmap(NULL, records_size(accelerator), PROT_READ | PROT_WRITE, MAP_SHARED, records, 0);
    if (memory == MAP_FAILED) {
        snprintf(reason, DP_REASON_SIZE, "cannot map the records: %s", strerror(errno));
        return false;
    }
    accelerator->records = memory;
    return true;
}

/* Whether the kernel says that TCP's memory, which is the machine's, is short: from the second
 * number of tcp_mem on, until there is less than the first. */
static bool memory_is_short(void)
{
    char text[8192], press[4] = "";
    int fd = open("/proc/net/protocols", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    const char *line;

    if (fd >= 0)
        close(fd);
    text[size < 0 ? 0 : size] = '\0';
    line = strstr(text, "\nTCP ");
    /* The columns: protocol, size, sockets, memory, press. */
    return line && sscanf(line, " TCP %*s %*s %*s %3s", press) == 1 && strcmp(press, "yes") == 0;
}

int dp_accelerate(struct dp *dp, const char *path, const struct dp_acceleration *settings,
                  char *reason)
{
    struct accelerator *accelerator = &dp->accelerator;

    reason[0] = '\0';
    accelerator->settings = *settings;
    if (!has_capabilities(reason) || !open_libbpf(reason) || !load(accelerator, path, reason)) {
        accelerator_close(accelerator);
        return -ENOTSUP;
    }
    accelerator->free = calloc(settings->connections, sizeof *accelerator->free);
    if (!accelerator->free) {
        accelerator_close(accelerator);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < settings->connections; i++)
        accelerator->free[i].slot = i;
    accelerator->free_count = settings->connections;
    pthread_mutex_init(&accelerator->lock, NULL);
    return 0;
}

void accelerator_close(struct accelerator *accelerator)
{
    if (accelerator->records)
        munmap(accelerator->records, records_size(accelerator));
    if (accelerator->wake_senders > 0)
        close(accelerator->wake_senders);
    if (accelerator->object)
        libbpf.close(accelerator->object);
    free(accelerator->free);
    memset(accelerator, 0, sizeof *accelerator);
}

/* ---- slots: a queue, so that a used one rests before it is used again ---- */

static struct record *take_record(struct accelerator *accelerator, uint64_t now_ms)
{
    struct record *record = NULL;

    pthread_mutex_lock(&accelerator->lock);
    if (accelerator->free_count > 0) {
        const struct resting_slot *first = &accelerator->free[accelerator->first_free];

        if (first->until_ms <= now_ms) {
            record = &accelerator->records[first->slot];
            accelerator->first_free =
                (accelerator->first_free + 1) % accelerator->settings.connections;
            accelerator->free_count--;
        }
    }
    pthread_mutex_unlock(&accelerator->lock);
    return record;
}

static void give_record_back(struct accelerator *accelerator, struct record *record,
                             uint64_t now_ms)
{
    struct resting_slot slot = {now_ms + QUARANTINE_MS, (uint32_t)(record - accelerator->records)};
    size_t end;

    pthread_mutex_lock(&accelerator->lock);
    end = (accelerator->first_free + accelerator->free_count++) % accelerator->settings.connections;
    accelerator->free[end] = slot;
    pthread_mutex_unlock(&accelerator->lock);
}

static uint32_t window(const struct accelerator *accelerator)
{
    /* Not under the lock: a moment's difference does not matter. */
    uint32_t free = (uint32_t)__atomic_load_n(&accelerator->free_count, __ATOMIC_RELAXED);
    uint32_t used = accelerator->settings.connections - free;
    uint32_t share = WINDOW_MAX;

    while (share > WINDOW_MIN && (uint64_t)share * used > WINDOW_BUDGET)
        share /= 2; /* in steps, so that it seldom changes */
    return share;
}

/* ---- attaching ---- */

static bool describe_socket(int fd, struct tuple *tuple)
{
    struct mosnhook_address local, remote;

    if (address_of_local(fd, &local) < 0 || address_of_peer(fd, &remote) < 0)
        return false;
    memset(tuple, 0, sizeof *tuple);
    tuple->is_ipv6 = !address_is_ipv4(&local);
    memcpy(tuple->local_ip, tuple->is_ipv6 ? local.ip : local.ip + 12, tuple->is_ipv6 ? 16 : 4);
    memcpy(tuple->remote_ip, tuple->is_ipv6 ? remote.ip : remote.ip + 12, tuple->is_ipv6 ? 16 : 4);
    tuple->local_port = htons(local.port);
    tuple->remote_port = htons(remote.port);
    return true;
}

/* Redirected data does not go through the application's own socket, so its wish has to be carried
 * out by the upstream's. */
static void follow_nodelay(const struct connection *connection, const struct record *record)
{
    int nodelay = (int)record->nodelay;

    setsockopt(connection->side[UPSTREAM].watch.fd, IPPROTO_TCP, TCP_NODELAY, &nodelay,
               sizeof nodelay);
}

/* One of enum answer, or -errno. */
static int attach(struct connection *connection, struct record *record)
{
    const struct accelerator *accelerator = &connection->worker->dp->accelerator;
    int upstream = connection->side[UPSTREAM].watch.fd;
    int downstream = connection->side[DOWNSTREAM].watch.fd;
    bool local = accelerator->settings.path == DP_PATH_LOCAL;
    int small = RECEIVE_BUFFER, unbounded = 0, answer;

    memset(record, 0, sizeof *record);
    record->local = local;
    record->blocking = accelerator->settings.blocking_sockets;
    record->forwarded =
        connection->header_size +
        atomic_load_explicit(&connection->flow[DOWNSTREAM].bytes, memory_order_relaxed);
    if (!describe_socket(downstream, &record->downstream) ||
        !describe_socket(upstream, &record->upstream))
        return ANSWER_NO_SOCKET;
    __atomic_store_n(&record->id, connection->id, __ATOMIC_RELEASE);
    answer = run_program(accelerator, accelerator->attach, record);
    if (answer != ANSWER_OK) {
        __atomic_store_n(&record->id, 0, __ATOMIC_RELEASE);
        return answer;
    }
    if (!local) {
        setsockopt(downstream, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        /* What is redirected to it is bounded by the window, and must never be refused. */
        setsockopt(upstream, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unbounded, sizeof unbounded);
        follow_nodelay(connection, record);
    }
    return ANSWER_OK;
}

/* Redirected bytes need room: the upstream must hold a full window, however small the messages are
 * that it consists of, or the application would be told to try again without being told when; and
 * in our own socket they take room from what comes by TCP. What the kernel does not size by itself,
 * it does not cut down either when memory gets short: so no more than this connection's share. */
static void set_window(struct connection *connection)
{
    struct record *record = connection->accelerated->record;
    uint32_t before = record->window, now = window(&connection->worker->dp->accelerator);
    /* A window that shrinks may be in use for a moment. The kernel doubles the value. */
    int room = (int)(before > now ? before : now) * 2;

    if (room == connection->accelerated->room && before == now)
        return;
    connection->accelerated->room = room;
    if (record->local)
        setsockopt(connection->side[DOWNSTREAM].watch.fd, SOL_SOCKET, SO_RCVBUFFORCE, &room,
                   sizeof room);
    else
        setsockopt(connection->side[UPSTREAM].watch.fd, SOL_SOCKET, SO_SNDBUFFORCE, &room,
                   sizeof room);
    __atomic_store_n(&record->window, now, __ATOMIC_RELEASE);
}

static void remove_from_map(const struct connection *connection, enum end end)
{
    uint64_t key = connection->accelerated->record->id * KEYS_PER_CONNECTION + end;
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = (uint32_t)connection->worker->dp->accelerator.ends;
    attributes.key = (uint64_t)(uintptr_t)&key;
    bpf(BPF_MAP_DELETE_ELEM, &attributes);
}

/* Whether messages to the application may be redirected, or all take TCP. */
static void set_joined(struct connection *connection, bool joined)
{
    const struct accelerator *accelerator = &connection->worker->dp->accelerator;
    struct accelerated *accelerated = connection->accelerated;

    if (joined == accelerated->joined || (joined && accelerated->leaves_at_ms))
        return;
    if (joined)
        joined = run_program(accelerator, accelerator->join, accelerated->record) == ANSWER_OK;
    else
        remove_from_map(connection, END_DOWNSTREAM);
    accelerated->joined = joined;
}

static bool pays(const struct connection *connection)
{
    const struct dp_acceleration *settings = &connection->worker->dp->accelerator.settings;
    uint64_t bytes = 0;

    for (int from = 0; from < 2; from++)
        bytes += atomic_load_explicit(&connection->flow[from].bytes, memory_order_relaxed);
    return bytes >= settings->after_bytes || connection->round_trips >= settings->after_round_trips;
}

void accelerate_if_it_pays(struct connection *connection)
{
    struct accelerator *accelerator = &connection->worker->dp->accelerator;
    struct accelerated *accelerated;
    struct record *record;
    int answer;

    if (connection->worker->loop.now_ms < connection->accelerate_at_ms || !pays(connection))
        return;
    record = take_record(accelerator, connection->worker->loop.now_ms);
    if (!record) {
        connection->accelerable = 0;
        return;
    }
    accelerated = calloc(1, sizeof *accelerated);
    answer = accelerated ? attach(connection, record) : ANSWER_NOT_SUITED;
    /* What speaks against it may pass: the application's end is established later than ours, or its
     * socket still blocks. That a direction has ended does not. */
    connection->accelerable =
        answer == ANSWER_OK || answer == ANSWER_ENDED ? 0 : connection->accelerable - 1;
    connection->accelerate_at_ms =
        connection->worker->loop.now_ms + (1u << (TRIES - connection->accelerable - 1));
    if (answer != ANSWER_OK) {
        give_record_back(accelerator, record, connection->worker->loop.now_ms);
        free(accelerated);
        return;
    }
    accelerated->record = record;
    connection->accelerated = accelerated;
    if (record->local)
        connection->flow[DOWNSTREAM].splicing = connection->flow[UPSTREAM].splicing = false;
    set_joined(connection, !connection->flow[UPSTREAM].splicing);
    set_window(connection); /* from here on there is room to redirect to */
    atomic_store_explicit(&connection->path, record->local ? DP_PATH_LOCAL : DP_PATH_FULL,
                          memory_order_relaxed);
    loop_set_timer(&connection->worker->loop, &connection->timer, TICK_BUSY_MS, relay_expired);
}

uint8_t accelerate_tries(const struct connection *connection)
{
    const struct dp_listener *listener = &connection->listener->settings;

    /* Only the hook makes up for what a redirected socket does not do (see hook/receive.c). */
    return connection->worker->dp->accelerator.object && listener->direction == DP_OUTBOUND &&
                   (listener->transport == DP_TRANSPORT_UNIX ||
                    (listener->transport == DP_TRANSPORT_HEADER && connection->hooked))
               ? TRIES
               : 0;
}

void accelerate_prepare(struct connection *connection)
{
    const struct accelerator *accelerator = &connection->worker->dp->accelerator;
    int unsent = UNSENT_MAX;

    if (accelerator->object && (accelerator->settings.blocking_sockets ||
                                fcntl(connection->application, F_GETFL) & O_NONBLOCK))
        setsockopt(connection->application, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

bool accelerate_reads_both(const struct connection *connection, int from)
{
    return connection->accelerated && connection->accelerated->record->local && from == DOWNSTREAM;
}

void accelerate_forwarded(struct connection *connection, size_t bytes)
{
    struct record *record = connection->accelerated->record;

    __atomic_store_n(&record->forwarded, record->forwarded + bytes, __ATOMIC_RELEASE);
}

/* ---- receivers that do not keep up ---- */

static void poll_receivers(struct timer *timer);

static bool is_waited_for(const struct receiver *receiver)
{
    return receiver->pace == PACE_BEHIND || receiver->pace == PACE_SWITCHING;
}

/* Whether the connection is in the worker's list, by what it waits for. */
static void update_list(struct connection *connection, bool listed)
{
    struct accelerated *accelerated = connection->accelerated;
    struct worker *worker = connection->worker;

    if (listed == !!accelerated->previous_polled)
        return;
    if (listed) {
        if (!worker->polled)
            timer_set(&worker->loop.timers, &worker->poll, worker->loop.now_ns + POLL_NS,
                      poll_receivers);
        accelerated->next_polled = worker->polled;
        accelerated->previous_polled = &worker->polled;
        if (worker->polled)
            worker->polled->accelerated->previous_polled = &accelerated->next_polled;
        worker->polled = connection;
    } else {
        *accelerated->previous_polled = accelerated->next_polled;
        if (accelerated->next_polled)
            accelerated->next_polled->accelerated->previous_polled = accelerated->previous_polled;
        accelerated->previous_polled = NULL;
        if (!worker->polled)
            timer_cancel(&worker->loop.timers, &worker->poll);
    }
}

static void set_pace(struct connection *connection, int to, enum pace pace)
{
    struct accelerated *accelerated = connection->accelerated;
    uint64_t now_ms = connection->worker->loop.now_ms;

    accelerated->receiver[to] = (struct receiver){pace, UINT32_MAX, now_ms, now_ms};
    if (to == DOWNSTREAM)
        __atomic_store_n(&accelerated->record->hold, pace == PACE_STALLED, __ATOMIC_RELEASE);
    update_list(connection, is_waited_for(&accelerated->receiver[DOWNSTREAM]) ||
                                is_waited_for(&accelerated->receiver[UPSTREAM]));
}

bool accelerate_splice(struct connection *connection, int from)
{
    if (!connection->accelerated)
        return true;
    /* Redirected data cannot be spliced, and the bytes of `local` are redirected. */
    if (connection->accelerated->record->local)
        return false;
    /* To redirect is to copy, twice a message: TCP takes a blast's pages as they are. */
    if (from == UPSTREAM) {
        set_joined(connection, false);
        set_pace(connection, DOWNSTREAM, PACE_KEEPS_UP);
    }
    return true;
}

void accelerate_copy(struct connection *connection, int from)
{
    if (connection->accelerated && from == UPSTREAM)
        set_joined(connection, true);
}

/* Bytes that the upstream has not acknowledged. */
static uint32_t unacknowledged(const struct connection *connection)
{
    int bytes = 0;

    return ioctl(connection->side[UPSTREAM].watch.fd, SIOCOUTQ, &bytes) < 0 ? 0 : (uint32_t)bytes;
}

void accelerate_writable(struct connection *connection, int to)
{
    if (connection->accelerated->receiver[to].pace == PACE_STALLED)
        set_pace(connection, to, to == DOWNSTREAM ? PACE_SWITCHING : PACE_BEHIND);
}

bool accelerate_waits(struct connection *connection, int to)
{
    struct accelerated *accelerated = connection->accelerated;
    const struct receiver *receiver = &accelerated->receiver[to];

    if (receiver->pace == PACE_STALLED &&
        connection->worker->loop.now_ms >= receiver->since_ms + RETRY_MS)
        accelerate_writable(connection, to);
    /* That there is something to relay to the upstream means that it had no room. */
    if (receiver->pace == PACE_KEEPS_UP && to == UPSTREAM && !accelerated->record->local &&
        unacknowledged(connection) > accelerated->record->window / 2) {
        set_pace(connection, to, PACE_BEHIND);
        return true;
    }
    return is_waited_for(receiver);
}

void accelerate_sent(struct connection *connection, bool bulk, uint64_t redirected_before)
{
    struct accelerated *accelerated = connection->accelerated;
    const struct record *record = accelerated->record;

    if (!accelerated->joined || accelerated->receiver[DOWNSTREAM].pace != PACE_KEEPS_UP)
        return;
    if (record->redirected[1] == redirected_before) {
        if (bulk) /* it would take TCP's way for ever, since there is always something in it */
            set_pace(connection, DOWNSTREAM, PACE_SWITCHING);
    } else if (record->queued + SCRATCH_SIZE > record->window) {
        set_pace(connection, DOWNSTREAM, PACE_BEHIND);
    }
}

uint64_t accelerate_redirected(const struct connection *connection)
{
    return __atomic_load_n(&connection->accelerated->record->redirected[1], __ATOMIC_RELAXED);
}

/* Looks after a receiver that is waited for. */
static void poll_receiver(struct connection *connection, int to)
{
    struct worker *worker = connection->worker;
    const struct accelerator *accelerator = &worker->dp->accelerator;
    struct accelerated *accelerated = connection->accelerated;
    struct receiver *receiver = &accelerated->receiver[to];
    const struct record *record = accelerated->record;
    uint32_t waiting, enough = receiver->pace == PACE_BEHIND ? record->window / 2 : 0;

    if (to == UPSTREAM)
        waiting = unacknowledged(connection);
    else if (run_program(accelerator, accelerator->probe, record) == ANSWER_OK)
        waiting = record->queued + record->unread;
    else /* it is closed: the end is on its way */
        waiting = UINT32_MAX;
    if (waiting < receiver->waiting)
        receiver->progress_ms = worker->loop.now_ms;
    receiver->waiting = waiting;
    if (waiting <= enough)
        set_pace(connection, to, PACE_KEEPS_UP);
    else if (worker->loop.now_ms >= receiver->progress_ms + STALL_MS ||
             worker->loop.now_ms >= receiver->since_ms + POLLED_MS)
        set_pace(connection, to, PACE_STALLED);
    else
        return;
    task_schedule(&worker->loop.tasks, &connection->task);
}

static void poll_receivers(struct timer *timer)
{
    struct worker *worker = OWNER(timer, struct worker, poll);
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC), took_ns;
    struct connection *next;

    for (struct connection *connection = worker->polled; connection; connection = next) {
        struct accelerated *accelerated = connection->accelerated;

        next = accelerated->next_polled; /* this one may leave the list */
        for (int to = DOWNSTREAM; to <= UPSTREAM; to++)
            if (is_waited_for(&accelerated->receiver[to]))
                poll_receiver(connection, to);
    }
    took_ns = clock_ns(CLOCK_MONOTONIC) - began_ns;
    if (worker->polled)
        timer_set(&worker->loop.timers, timer,
                  worker->loop.now_ns +
                      (took_ns * POLL_SHARE > POLL_NS ? took_ns * POLL_SHARE : POLL_NS),
                  poll_receivers);
}

/* ---- accounting ---- */

/* Adds what went to the upstream without us since the last call. True if there was something. */
static bool count_redirected(struct connection *connection)
{
    struct accelerated *accelerated = connection->accelerated;
    uint64_t sum = __atomic_load_n(&accelerated->record->redirected[0], __ATOMIC_RELAXED);
    uint64_t more = sum - accelerated->counted;

    if (more == 0 || accelerated->record->local)
        return false;
    accelerated->counted = sum;
    follow_nodelay(connection, accelerated->record);
    relay_count_bytes(connection, DOWNSTREAM, more);
    return true;
}

/* TCP's memory is the machine's. When it is short, whoever uses it, nothing is redirected; and
 * senders of ours may have to be woken, a last time when it is no longer short. One of the workers
 * looks. */
static void look_at_memory(struct accelerator *accelerator, uint64_t now_ms)
{
    uint64_t due = atomic_load_explicit(&accelerator->look_at_memory_at_ms, memory_order_relaxed);
    bool is_short;

    if (now_ms < due || !atomic_compare_exchange_strong_explicit(
                            &accelerator->look_at_memory_at_ms, &due, now_ms + MEMORY_LOOK_MS,
                            memory_order_relaxed, memory_order_relaxed))
        return;
    is_short = memory_is_short();
    if (atomic_exchange_explicit(&accelerator->memory_short, is_short, memory_order_relaxed) ||
        is_short)
        run_iterator(accelerator->wake_senders);
}

/* One step back to the relay. True when the sockets are out of their maps: not before the programs
 * that still run are through, and everything that was redirected has been read. */
static bool leave(struct connection *connection)
{
    const struct accelerator *accelerator = &connection->worker->dp->accelerator;
    struct accelerated *accelerated = connection->accelerated;
    struct record *record = accelerated->record;
    int unlocked = 0;

    if (!accelerated->leaves_at_ms) {
        accelerated->leaves_at_ms = connection->worker->loop.now_ms + QUARANTINE_MS;
        __atomic_store_n(&record->window, 0, __ATOMIC_RELEASE);
    }
    if (connection->worker->loop.now_ms < accelerated->leaves_at_ms ||
        run_program(accelerator, accelerator->probe, record) != ANSWER_OK)
        return false;
    if (record->arrived == 0)
        set_joined(connection, false);
    if (accelerated->joined || record->queued > 0)
        return false;
    remove_from_map(connection, END_APPLICATION);
    /* The kernel sizes these buffers again, and cuts them down when memory is short. */
    for (int side = DOWNSTREAM; side <= UPSTREAM; side++)
        setsockopt(connection->side[side].watch.fd, SOL_SOCKET, SO_BUF_LOCK, &unlocked,
                   sizeof unlocked);
    return true;
}

/* Urgent data is one reason: what is redirected to the application has no mark. */
void accelerate_leave(struct connection *connection)
{
    if (!connection->accelerated->leaves_at_ms)
        (void)leave(connection);
}

/* Where TCP's memory is used up, a socket in a sockmap can send nothing, while what waits for it is
 * a part of that memory; an ordinary one may always send a little. So while memory is short,
 * connections become ordinary ones, and stay it: this is seldom. */
uint64_t accelerate_tick(struct connection *connection)
{
    struct accelerated *accelerated = connection->accelerated;
    struct accelerator *accelerator = &connection->worker->dp->accelerator;
    uint64_t now_ms = connection->worker->loop.now_ms;
    bool busy = count_redirected(connection), is_short;

    look_at_memory(accelerator, now_ms);
    is_short = atomic_load_explicit(&accelerator->memory_short, memory_order_relaxed);
    if (accelerated->leaves_at_ms || is_short) {
        /* Somebody has to look until it is over. */
        if (!leave(connection) || is_short)
            return now_ms + TICK_BUSY_MS;
        accelerate_stop(connection);
        accelerate_release(connection);
        task_schedule(&connection->worker->loop.tasks,
                      &connection->task); /* it may have waited for a receiver */
        return UINT64_MAX;
    }
    set_window(connection);
    return now_ms + (busy ? TICK_BUSY_MS : TICK_IDLE_MS);
}

void accelerate_stop(struct connection *connection)
{
    /* First of all: from here on the programs find nothing to redirect to. */
    __atomic_store_n(&connection->accelerated->record->id, 0, __ATOMIC_SEQ_CST);
}

void accelerate_release(struct connection *connection)
{
    struct accelerated *accelerated = connection->accelerated;

    update_list(connection, false);
    count_redirected(connection);
    give_record_back(&connection->worker->dp->accelerator, accelerated->record,
                     connection->worker->loop.now_ms);
    connection->accelerated = NULL;
    free(accelerated);
}
