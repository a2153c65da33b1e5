/* Connects, then allows itself nothing but to receive and to exit (seccomp), and reads a pipe, a
 * socket pair and the connection to their ends in every way that there is.
 *
 *   sandboxed ADDRESS PORT      IPv4; its peer sends "data" and an end
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define ALLOW(number)                                        \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##number, 0, 1), \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void check(int right, const char *what)
{
    if (right)
        return;
    perror(what);
    exit(1);
}

static void enter_sandbox(void)
{
    static struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read),
        ALLOW(readv),
        ALLOW(recvfrom),
        ALLOW(recvmsg),
        ALLOW(splice),
        ALLOW(ioctl),
        ALLOW(write),
        ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};

    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

/* "data", then the end. */
static void read_to_the_end(int fd)
{
    char bytes[8];
    struct iovec vector = {bytes, 1};
    int waiting = 0;

    check(ioctl(fd, FIONREAD, &waiting) == 0, "FIONREAD");
    check(read(fd, bytes, 1) == 1, "read");
    check(readv(fd, &vector, 1) == 1, "readv");
    check(read(fd, bytes, sizeof bytes) == 2, "read what is left");
    check(ioctl(fd, FIONREAD, &waiting) == 0 && waiting == 0, "FIONREAD");
    check(read(fd, bytes, sizeof bytes) == 0, "read the end");
    check(readv(fd, &vector, 1) == 0, "readv the end");
}

static void receive_the_end(int fd, int full_pipe)
{
    char bytes[8];
    struct iovec vector = {bytes, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

    check(recv(fd, bytes, sizeof bytes, MSG_WAITALL) == 0, "recv");
    check(recvfrom(fd, bytes, sizeof bytes, 0, NULL, NULL) == 0, "recvfrom");
    check(recvmsg(fd, &message, 0) == 0, "recvmsg");
    check(splice(fd, NULL, full_pipe, NULL, 1, SPLICE_F_NONBLOCK) <= 0, "splice");
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int connection = socket(AF_INET, SOCK_STREAM, 0), pair[2], with_end[2], empty[2];
    char bytes[8];

    if (count != 3)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    check(inet_pton(AF_INET, arguments[1], &address.sin_addr) == 1, "address");
    check(connect(connection, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    check(recv(connection, bytes, 4, MSG_PEEK | MSG_WAITALL) == 4, "what is sent");
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(with_end) == 0, "pair");
    check(write(pair[0], "data", 4) == 4 && write(with_end[1], "data", 4) == 4, "write");
    check(close(pair[0]) == 0 && close(with_end[1]) == 0 && pipe2(empty, O_NONBLOCK) == 0, "close");
    enter_sandbox();

    read_to_the_end(with_end[0]);
    read_to_the_end(pair[1]);
    read_to_the_end(connection);
    receive_the_end(pair[1], empty[1]);
    receive_the_end(connection, empty[1]);
    check(read(empty[0], bytes, 1) < 0 && errno == EAGAIN, "read nothing");
    _exit(0);
}
