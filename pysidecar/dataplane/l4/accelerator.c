#include "l4/accelerator.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    /* Redirected bytes that may wait in one socket: enough for a reader that does not run for some
     * milliseconds, and no more than the budget for all connections together. */
    WINDOW_MAX = 4 * 1024 * 1024,
    WINDOW_MIN = 128 * 1024,
    WINDOW_BUDGET = 256 * 1024 * 1024,

    MEMORY_LOOK_MS = 100, /* between two looks at TCP's memory */
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

static char *load_log; /* of the load in progress; its first line says what is wrong */

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

/* The program is of the kind that looks at packets; its packet's mark names the record. */
int accelerator_run(const struct accelerator *accelerator, int program, const struct record *record)
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
        {"ends",
         2 * 2 * connections}, /* closed sockets leave when the application closes its own */
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

/* Makes the link that runs `wake_senders`. -errno on failure. */
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
static bool load_programs(struct accelerator *accelerator, const char *path, char *reason)
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

int accelerator_open(struct accelerator *accelerator, const char *path,
                     const struct dp_acceleration *settings, char *reason)
{
    reason[0] = '\0';
    accelerator->settings = *settings;
    if (!has_capabilities(reason) || !open_libbpf(reason) ||
        !load_programs(accelerator, path, reason)) {
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

void accelerator_remove(const struct accelerator *accelerator, const struct record *record,
                        enum role role)
{
    uint64_t key = record->id * KEYS_PER_CONNECTION + role;
    union bpf_attr attributes;

    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = (uint32_t)accelerator->ends;
    attributes.key = (uint64_t)(uintptr_t)&key;
    bpf(BPF_MAP_DELETE_ELEM, &attributes);
}

/* ---- slots: a queue, so that a used one rests before it is used again ---- */

struct record *accelerator_take(struct accelerator *accelerator, uint64_t now_ms)
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

void accelerator_give_back(struct accelerator *accelerator, struct record *record, uint64_t now_ms)
{
    struct resting_slot slot = {now_ms + ACCELERATOR_REST_MS,
                                (uint32_t)(record - accelerator->records)};
    size_t end;

    pthread_mutex_lock(&accelerator->lock);
    end = (accelerator->first_free + accelerator->free_count++) % accelerator->settings.connections;
    accelerator->free[end] = slot;
    pthread_mutex_unlock(&accelerator->lock);
}

uint32_t accelerator_window(const struct accelerator *accelerator)
{
    /* Without the lock: a moment's difference does not matter. */
    uint32_t free = (uint32_t)__atomic_load_n(&accelerator->free_count, __ATOMIC_RELAXED);
    uint32_t used = accelerator->settings.connections - free;
    uint32_t share = WINDOW_MAX;

    while (share > WINDOW_MIN && (uint64_t)share * used > WINDOW_BUDGET)
        share /= 2; /* in steps, so that it seldom changes */
    return share;
}

/* ---- memory ---- */

/* Whether the kernel calls TCP's memory, which is the machine's, short: from the second number of
 * tcp_mem on, until less than the first is used. */
static bool kernel_is_short(void)
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

/* Wakes senders of ours while memory is short, and a last time when it no longer is. */
static void look_at_memory(struct accelerator *accelerator, uint64_t now_ms)
{
    uint64_t due = atomic_load_explicit(&accelerator->look_at_memory_at_ms, memory_order_relaxed);
    bool is_short;

    if (now_ms < due || !atomic_compare_exchange_strong_explicit(
                            &accelerator->look_at_memory_at_ms, &due, now_ms + MEMORY_LOOK_MS,
                            memory_order_relaxed, memory_order_relaxed))
        return;
    is_short = kernel_is_short();
    if (atomic_exchange_explicit(&accelerator->memory_short, is_short, memory_order_relaxed) ||
        is_short)
        run_iterator(accelerator->wake_senders);
}

bool accelerator_memory_is_short(struct accelerator *accelerator, uint64_t now_ms)
{
    look_at_memory(accelerator, now_ms);
    return atomic_load_explicit(&accelerator->memory_short, memory_order_relaxed);
}
