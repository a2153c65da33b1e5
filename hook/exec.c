/* The exec family: a child whose environment was emptied stays hooked.
 *
 * Adds our LD_PRELOAD entry and MOSNHOOK_* variables where they are missing, on the caller's stack:
 * after vfork or in a signal handler there is no other memory. */
#include <errno.h>
#include <stdarg.h>

#include "mosnhook.h"

enum {
    ENTRIES_MAX = 4096, /* of an environment that is extended; a longer one is passed on as it is */
    PRELOAD_SIZE = 4096,
};

extern char **environ __attribute__((weak));

enum exec_kind { EXECVE, EXECVPE, FEXECVE, EXECVEAT, POSIX_SPAWN, POSIX_SPAWNP };

struct exec_call {
    enum exec_kind kind;
    int fd; /* FEXECVE, EXECVEAT */
    int flags;
    const char *path;
    char *const *arguments;
    pid_t *pid;
    const void *actions;
    const void *attributes;
};

static int run(const struct exec_call *call, char *const entries[])
{
    switch (call->kind) {
    case EXECVE:
        return libc()->execve(call->path, call->arguments, entries);
    case EXECVPE:
        return libc()->execvpe(call->path, call->arguments, entries);
    case FEXECVE:
        return libc()->fexecve(call->fd, call->arguments, entries);
    case EXECVEAT:
        return libc()->execveat(call->fd, call->path, call->arguments, entries, call->flags);
    case POSIX_SPAWN:
        return libc()->posix_spawn(call->pid, call->path, call->actions, call->attributes,
                                   call->arguments, entries);
    case POSIX_SPAWNP:
        return libc()->posix_spawnp(call->pid, call->path, call->actions, call->attributes,
                                    call->arguments, entries);
    }
    return errno_result(ENOSYS);
}

/* Whether the environment has a variable of the same name. */
static bool has_variable(char *const entries[], const char *variable)
{
    for (; *entries; entries++) {
        size_t i = 0;

        while (variable[i] != '=' && variable[i] == (*entries)[i])
            i++;
        if (variable[i] == '=' && (*entries)[i] == '=')
            return true;
    }
    return false;
}

static size_t append(char *to, size_t size, const char *text)
{
    while (*text && size < PRELOAD_SIZE - 1)
        to[size++] = *text++;
    to[size] = 0;
    return size;
}

/* "LD_PRELOAD=<ours>:<theirs>"; false if it has no room. */
static bool merge_preload(char merged[PRELOAD_SIZE], const char *theirs)
{
    size_t size = append(merged, 0, "LD_PRELOAD=");

    size = append(merged, size, environment.preload);
    if (theirs && *theirs) {
        size = append(merged, size, ":");
        size = append(merged, size, theirs);
    }
    return size < PRELOAD_SIZE - 1;
}

/* The index of LD_PRELOAD in the environment, or the environment's length. */
static size_t find_preload(char *const entries[], const char **value)
{
    size_t at = 0;

    *value = NULL;
    while (entries[at] && !(*value = environment_value(entries[at], "LD_PRELOAD")))
        at++;
    return at;
}

static bool is_complete(char *const entries[])
{
    const char *preload, *entry;

    find_preload(entries, &preload);
    if (!preload || !environment_find_hook(preload, &entry))
        return false;
    for (size_t i = 0; i < environment.variable_count; i++)
        if (!has_variable(entries, environment.variables[i]))
            return false;
    return true;
}

static int run_extended(const struct exec_call *call, char *const entries[], size_t count)
{
    char *extended[count + 2 + sizeof environment.variables / sizeof *environment.variables];
    char merged[PRELOAD_SIZE];
    const char *preload, *entry;
    size_t at = find_preload(entries, &preload);

    __builtin_memcpy(extended, entries, count * sizeof *entries);
    if (!preload || !environment_find_hook(preload, &entry)) {
        if (!merge_preload(merged, preload))
            return run(call, entries);
        extended[at] = merged;
        count += at == count;
    }
    extended[count] = NULL;
    for (size_t i = 0; i < environment.variable_count; i++)
        if (!has_variable(entries, environment.variables[i]))
            extended[count++] = (char *)environment.variables[i];
    extended[count] = NULL;
    return run(call, extended);
}

static int start(const struct exec_call *call, char *const entries[])
{
    static char *const none[] = {NULL};
    size_t count = 0;

    if (!entries) /* Linux takes NULL for an empty environment */
        entries = none;
    while (entries[count])
        count++;
    if (!environment.inherit || !environment.preload || !hook_active() || count > ENTRIES_MAX ||
        is_complete(entries))
        return run(call, entries);
    return run_extended(call, entries, count);
}

static char *const *current_environment(void)
{
    return &environ ? environ : NULL;
}

MOSNHOOK_EXPORT int execve(const char *path, char *const arguments[], char *const entries[])
{
    return start(&(struct exec_call){.kind = EXECVE, .path = path, .arguments = arguments},
                 entries);
}

MOSNHOOK_EXPORT int execv(const char *path, char *const arguments[])
{
    return execve(path, arguments, current_environment());
}

MOSNHOOK_EXPORT int execvpe(const char *file, char *const arguments[], char *const entries[])
{
    return start(&(struct exec_call){.kind = EXECVPE, .path = file, .arguments = arguments},
                 entries);
}

MOSNHOOK_EXPORT int execvp(const char *file, char *const arguments[])
{
    return execvpe(file, arguments, current_environment());
}

MOSNHOOK_EXPORT int fexecve(int fd, char *const arguments[], char *const entries[])
{
    return start(&(struct exec_call){.kind = FEXECVE, .fd = fd, .arguments = arguments}, entries);
}

MOSNHOOK_EXPORT int execveat(int directory, const char *path, char *const arguments[],
                             char *const entries[], int flags)
{
    return start(&(struct exec_call){.kind = EXECVEAT,
                                     .fd = directory,
                                     .path = path,
                                     .arguments = arguments,
                                     .flags = flags},
                 entries);
}

MOSNHOOK_EXPORT int posix_spawn(pid_t *pid, const char *path, const void *actions,
                                const void *attributes, char *const arguments[],
                                char *const entries[])
{
    return start(&(struct exec_call){.kind = POSIX_SPAWN,
                                     .path = path,
                                     .arguments = arguments,
                                     .pid = pid,
                                     .actions = actions,
                                     .attributes = attributes},
                 entries);
}

MOSNHOOK_EXPORT int posix_spawnp(pid_t *pid, const char *file, const void *actions,
                                 const void *attributes, char *const arguments[],
                                 char *const entries[])
{
    return start(&(struct exec_call){.kind = POSIX_SPAWNP,
                                     .path = file,
                                     .arguments = arguments,
                                     .pid = pid,
                                     .actions = actions,
                                     .attributes = attributes},
                 entries);
}

/* ---- Argument lists: counted, then copied, as libc does it ---- */

static size_t count_arguments(va_list list)
{
    size_t count = 1;

    while (va_arg(list, char *))
        count++;
    return count;
}

/* `count` arguments, the first included, then the NULL. */
static void copy_arguments(char *arguments[], const char *first, size_t count, va_list list)
{
    arguments[0] = (char *)first;
    for (size_t i = 1; i <= count; i++)
        arguments[i] = va_arg(list, char *);
}

MOSNHOOK_EXPORT int execl(const char *path, const char *first, ...)
{
    va_list list;
    size_t count;

    va_start(list, first);
    count = count_arguments(list);
    va_end(list);
    {
        char *arguments[count + 1];

        va_start(list, first);
        copy_arguments(arguments, first, count, list);
        va_end(list);
        return execve(path, arguments, current_environment());
    }
}

MOSNHOOK_EXPORT int execlp(const char *file, const char *first, ...)
{
    va_list list;
    size_t count;

    va_start(list, first);
    count = count_arguments(list);
    va_end(list);
    {
        char *arguments[count + 1];

        va_start(list, first);
        copy_arguments(arguments, first, count, list);
        va_end(list);
        return execvpe(file, arguments, current_environment());
    }
}

MOSNHOOK_EXPORT int execle(const char *path, const char *first, ...)
{
    va_list list;
    size_t count;

    va_start(list, first);
    count = count_arguments(list);
    va_end(list);
    {
        char *arguments[count + 1];
        char *const *entries;

        va_start(list, first);
        copy_arguments(arguments, first, count, list);
        entries = va_arg(list, char *const *);
        va_end(list);
        return execve(path, arguments, entries);
    }
}
