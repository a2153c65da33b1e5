/* Starts a program with an environment that is empty, or nearly, by each function there is.
 *
 * spawn HOW PROGRAM ARGUMENT ARGUMENT */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* An environment of nothing but this LD_PRELOAD. */
static char *const *only(const char *preload)
{
    static char variable[4096];
    static char *const entries[] = {variable, NULL};

    snprintf(variable, sizeof variable, "LD_PRELOAD=%s", preload);
    return entries;
}

int main(int count, char **arguments)
{
    static char *const none[] = {NULL};
    static char *const other[] = {"LD_PRELOAD=", "PATH=/usr/bin", NULL};
    char *const *child = arguments + 2;
    static const char *how, *program; /* static: they outlive vfork */
    pid_t pid = -1;
    int status = -1;

    if (count != 5)
        return 2;
    how = arguments[1];
    program = arguments[2];
    if (strcmp(how, "posix_spawn") == 0)
        posix_spawn(&pid, program, NULL, NULL, child, none);
    else if (strcmp(how, "posix_spawnp") == 0)
        posix_spawnp(&pid, program, NULL, NULL, child, none);
    else if (strcmp(how, "vfork") == 0) {
        pid = vfork();
        if (pid == 0) {
            execve(program, child, none);
            _exit(127);
        }
    } else {
        pid = fork();
    }
    if (pid == 0) {
        if (strcmp(how, "execve") == 0)
            execve(program, child, none);
        else if (strcmp(how, "execve-null") == 0)
            execve(program, child, NULL);
        else if (strcmp(how, "execve-other") == 0)
            execve(program, child, other);
        else if (strcmp(how, "execve-part") == 0)
            execve(program, child, only(getenv("LD_PRELOAD")));
        else if (strcmp(how, "execve-merge") == 0)
            execve(program, child, only(getenv("NEIGHBOUR")));
        else if (strcmp(how, "execvpe") == 0)
            execvpe(program, child, none);
        else if (strcmp(how, "execle") == 0)
            execle(program, program, child[1], child[2], (char *)NULL, none);
        else if (strcmp(how, "fexecve") == 0)
            fexecve(open(program, O_RDONLY | O_CLOEXEC), child, none);
#ifdef __GLIBC__
        else if (strcmp(how, "execveat") == 0)
            execveat(AT_FDCWD, program, child, none, 0);
#endif
        clearenv();
        if (strcmp(how, "execv") == 0)
            execv(program, child);
        else if (strcmp(how, "execvp") == 0)
            execvp(program, child);
        else if (strcmp(how, "execl") == 0)
            execl(program, program, child[1], child[2], (char *)NULL);
        else if (strcmp(how, "execlp") == 0)
            execlp(program, program, child[1], child[2], (char *)NULL);
        _exit(126);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 125;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 124;
}
