/* connect() with few system calls left.
 *
 * sandbox quiet|quiet-static|network|no-unix|no-netlink|no-files|no-memo IP PORT
 *
 * quiet    any system call but connect kills, between two marks
 *          (-static: with an address that is not on the stack)
 * network  what a program with sockets cannot do without is allowed, the rest kills
 * no-unix, no-netlink
 *          socket() of that family fails, as under systemd's RestrictAddressFamilies=
 * no-files socket() fails, as where the system is out of files
 * no-memo  TCP_FASTOPEN_KEY is no option, as with kernels before 5.3; also tells the peer's port */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FASTOPEN_KEY = 33 };

static const int quiet[] = {SYS_connect, SYS_write, SYS_exit_group};
static const int network[] = {
    SYS_connect, SYS_write,      SYS_exit_group,    SYS_socket,         SYS_close,
    SYS_fcntl,   SYS_getsockopt, SYS_setsockopt,    SYS_getsockname,    SYS_getpeername,
    SYS_sendmsg, SYS_sendto,     SYS_recvfrom,      SYS_rt_sigprocmask, SYS_rt_sigaction,
    SYS_getpid,  SYS_geteuid,    SYS_clock_gettime,
#ifdef SYS_poll
    SYS_poll,
#else
    SYS_ppoll,
#endif
};

static void allow_only(const int *calls, size_t count)
{
    struct sock_filter filter[2 * 32 + 2];
    struct sock_fprog program = {0, filter};

    filter[program.len++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < count; i++) {
        filter[program.len++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
        filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(4);
}

static void no_sockets_of(unsigned family)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, family, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(4);
}

static void no_files(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENFILE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(4);
}

static void no_memo(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsockopt, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FASTOPEN_KEY, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(4);
}

static void tell_peer(int fd)
{
    struct sockaddr_in peer = {.sin_port = 0};
    socklen_t length = sizeof peer;

    getpeername(fd, (struct sockaddr *)&peer, &length);
    printf("peer=%d\n", ntohs(peer.sin_port));
    fflush(stdout);
}

static struct sockaddr_in elsewhere;

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char line[32];
    int fd = socket(AF_INET, SOCK_STREAM, 0), result, size;

    if (count != 4 || inet_pton(AF_INET, arguments[2], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[3]));
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return 4;
    if (strncmp(arguments[1], "quiet", 5) == 0)
        allow_only(quiet, sizeof quiet / sizeof *quiet);
    else if (strcmp(arguments[1], "network") == 0)
        allow_only(network, sizeof network / sizeof *network);
    else if (strcmp(arguments[1], "no-memo") == 0)
        no_memo();
    else if (strcmp(arguments[1], "no-files") == 0)
        no_files();
    else
        no_sockets_of(strcmp(arguments[1], "no-unix") == 0 ? AF_UNIX : AF_NETLINK);
    elsewhere = address;
    result =
        connect(fd, (struct sockaddr *)(strstr(arguments[1], "static") ? &elsewhere : &address),
                sizeof address);
    result = result < 0 ? errno : 0;
    if (strcmp(arguments[1], "no-memo") == 0)
        tell_peer(fd);
    size = snprintf(line, sizeof line, "connect=%d\n", result);
    return write(1, line, (size_t)size) != size ? 3 : (_exit(0), 0);
}
