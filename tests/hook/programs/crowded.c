/* Connects where no descriptor is left, and cannot be had, and tells what the process looks like
 * afterwards.
 *
 * crowded IP PORT */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIMIT = 40 };

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* Whether somebody else (a child) finds the file locked. */
static int is_locked(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK);
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static int count_entries(DIR *directory)
{
    int count = 0;

    rewinddir(directory);
    while (readdir(directory))
        count++;
    return count - 2; /* . and .. */
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct rlimit limit = {LIMIT, LIMIT}, after;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    DIR *fds = opendir("/proc/self/fd"), *tasks = opendir("/proc/self/task");
    int file = fileno(tmpfile()), fd = socket(AF_INET, SOCK_STREAM, 0), result;
    sigset_t before, now;

    if (count != 3 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    for (int number = 1; number < SIGRTMIN; number++)
        signal(number, count_signal);
    setrlimit(RLIMIT_NOFILE, &limit);
    if (fcntl(file, F_SETLK, &lock) < 0)
        return 3;
    while (dup(0) >= 0)
        ;
    sigprocmask(SIG_BLOCK, NULL, &before);
    result = connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0;
    sigprocmask(SIG_BLOCK, NULL, &now);
    getrlimit(RLIMIT_NOFILE, &after);
    printf("pid=%d\n", getpid());
    printf("connect=%d\nfds=%d\ntasks=%d\n", result, count_entries(fds), count_entries(tasks));
    printf("limits=%d %d\n", (int)after.rlim_cur, (int)after.rlim_max);
    printf("signals=%d\n", (int)signals);
    printf("mask=%d\n", sigismember(&now, SIGUSR1) == sigismember(&before, SIGUSR1));
    printf("children=%d\n", waitpid(-1, NULL, __WALL) < 0 ? errno : 0);
    printf("locked=%d\n", is_locked(file));
    return 0;
}
