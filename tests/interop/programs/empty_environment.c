/* Starts a program with an empty environment, as servers do that distrust theirs:
 * `empty_environment fork|vfork|spawn PROGRAM ARGUMENT...`; exits with the program's status. */
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *const nothing[] = {NULL};

/* Inlined, so that the child of vfork does not return from the function that made it. */
#define START(make_child, command)                  \
    do {                                            \
        child = make_child();                       \
        if (child == 0) {                           \
            execve((command)[0], command, nothing); \
            _exit(127);                             \
        }                                           \
    } while (0)

int main(int argc, char **argv)
{
    pid_t child = -1;
    int status;

    if (argc < 3) {
        fprintf(stderr, "usage: empty_environment fork|vfork|spawn PROGRAM ARGUMENT...\n");
        return 2;
    }
    if (strcmp(argv[1], "fork") == 0) {
        START(fork, argv + 2);
    } else if (strcmp(argv[1], "vfork") == 0) {
        START(vfork, argv + 2);
    } else if (posix_spawn(&child, argv[2], NULL, NULL, argv + 2, nothing) != 0) {
        child = -1;
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("empty_environment");
        return 1;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}
