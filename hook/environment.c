/* The MOSNHOOK_* variables. Read once, before the program can change its environment, into static
 * storage: by the time of an exec the program's own copy may be gone. A program that the kernel
 * runs in secure mode (setuid) reads none of them. */
#include "mosnhook.h"
#include "sys.h"

#include <linux/auxvec.h>
#include <linux/prctl.h>

enum { STORAGE_SIZE = 8192 };

struct environment environment = {.inherit = true};

static char storage[STORAGE_SIZE];
static size_t stored;

extern char **environ __attribute__((weak));
extern unsigned long getauxval(unsigned long type) __attribute__((weak));

static size_t length(const char *text)
{
    size_t size = 0;

    while (text[size])
        size++;
    return size;
}

bool text_equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static bool begins(const char *text, const char *prefix)
{
    while (*prefix && *text == *prefix)
        text++, prefix++;
    return !*prefix;
}

const char *environment_value(const char *entry, const char *name)
{
    size_t size = length(name);

    return begins(entry, name) && entry[size] == '=' ? entry + size + 1 : NULL;
}

/* Copies the text to static storage; NULL when there is no more room. */
static const char *store(const char *text, size_t size)
{
    char *copy = storage + stored;

    if (size >= sizeof storage - stored)
        return NULL;
    __builtin_memcpy(copy, text, size);
    copy[size] = 0;
    stored += size + 1;
    return copy;
}

size_t environment_find_hook(const char *list, const char **entry)
{
    while (*list) {
        const char *name = list;
        size_t size = 0;

        for (; list[size] && list[size] != ':' && list[size] != ' '; size++)
            if (list[size] == '/')
                name = list + size + 1;
        if (begins(name, "libmosnhook") && name < list + size) {
            *entry = list;
            return size;
        }
        list += size + (list[size] != 0);
    }
    return 0;
}

/* "refuse", "direct" or "wait:<seconds>", such as wait:5, wait:0.5 or wait:5s. */
static void read_when_away(const char *text)
{
    uint64_t ms = 0, unit = 1000;

    environment.when_away = MOSNHOOK_AWAY_REFUSE; /* also if the value makes no sense */
    if (text_equal(text, "direct"))
        environment.when_away = MOSNHOOK_AWAY_DIRECT;
    if (!begins(text, "wait:"))
        return;
    for (text += 5; *text >= '0' && *text <= '9' && ms < UINT32_MAX; text++)
        ms = ms * 10 + (uint64_t)(*text - '0') * 1000;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9'; text++)
            ms += (uint64_t)(*text - '0') * (unit /= 10);
    if (!text_equal(text, "") && !text_equal(text, "s"))
        return;
    environment.when_away = MOSNHOOK_AWAY_WAIT;
    environment.wait_ms = ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

/* Ports with commas; the first that makes no sense ends the list. */
static void read_awaited(const char *text)
{
    size_t room = sizeof environment.awaited / sizeof *environment.awaited;

    while (environment.awaited_count < room) {
        uint32_t port = 0;

        for (; *text >= '0' && *text <= '9' && port <= UINT16_MAX; text++)
            port = port * 10 + (uint32_t)(*text - '0');
        if (port == 0 || port > UINT16_MAX || (*text && *text != ','))
            return;
        environment.awaited[environment.awaited_count++] = (uint16_t)port;
        if (!*text++)
            return;
    }
}

static void read_variable(const char *entry)
{
    const char *kept = store(entry, length(entry)), *value;

    if (!kept)
        return;
    if (environment.variable_count < sizeof environment.variables / sizeof *environment.variables)
        environment.variables[environment.variable_count++] = kept;
    if ((value = environment_value(kept, "MOSNHOOK_POLICY")) && *value)
        environment.policy = value;
    else if ((value = environment_value(kept, "MOSNHOOK_LOG")) && *value)
        environment.log = value;
    else if ((value = environment_value(kept, "MOSNHOOK_WHEN_AWAY")))
        read_when_away(value);
    else if ((value = environment_value(kept, "MOSNHOOK_AWAIT")))
        read_awaited(value);
    else if ((value = environment_value(kept, "MOSNHOOK_INHERIT")))
        environment.inherit = !text_equal(value, "0");
    else if ((value = environment_value(kept, "MOSNHOOK_DISABLE")))
        environment.disabled = text_equal(value, "1");
}

static void environment_read(char *const entries[])
{
    for (; entries && *entries; entries++) {
        const char *value, *entry;

        if (begins(*entries, "MOSNHOOK_"))
            read_variable(*entries);
        else if ((value = environment_value(*entries, "XDG_RUNTIME_DIR")))
            environment.runtime_directory = store(value, length(value));
        else if ((value = environment_value(*entries, "LD_PRELOAD"))) {
            size_t size = environment_find_hook(value, &entry);

            environment.preload = size ? store(entry, size) : NULL;
        }
    }
}

/* The dynamic loader does so with its own variables, too: the program may become another user's
 * entirely, and run children that the kernel does not warn of a stranger's environment. */
static void environment_forget(char *entries[])
{
    char **kept = entries;

    for (; entries && *entries; entries++)
        if (!begins(*entries, "MOSNHOOK_"))
            *kept++ = *entries;
    if (kept)
        *kept = NULL;
}

/* Whether the program has privileges that its caller lacks (setuid, setgid, file capabilities), so
 * that its environment cannot be trusted. */
static bool is_secure(void)
{
    return !getauxval || getauxval(AT_SECURE);
}

static bool bypassed; /* atomic */

MOSNHOOK_EXPORT void mosnhook_bypass(int on)
{
    __atomic_store_n(&bypassed, on != 0, __ATOMIC_RELAXED);
}

bool hook_active(void)
{
    return !environment.disabled && !__atomic_load_n(&bypassed, __ATOMIC_RELAXED);
}

/* glibc passes the environment to constructors, musl does not but has set `environ` by now. */
__attribute__((constructor)) static void start(int count, char **arguments, char **entries)
{
    (void)count;
    (void)arguments;
    if (&environ && environ)
        entries = environ;
    environment.secure = is_secure();
    if (environment.secure)
        environment_forget(entries);
    else
        environment_read(entries);
    pointers_start(entries);
    /* The main thread's name, which is the process's; later threads may have others. */
    sys_prctl(PR_GET_NAME, environment.command);
    libc();
    if (!environment.disabled)
        page_open();
}
