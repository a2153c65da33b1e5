#include "unit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE_MS = 30000, LINGER_S = 120 };

static void quietly(void)
{
    static const struct rlimit none;

    setrlimit(RLIMIT_CORE, &none);
    signal(SIGABRT, SIG_DFL);
    close(STDERR_FILENO);
}

bool aborts(void (*call)(void *), void *argument)
{
    pid_t child = fork();
    int status;

    assert_int_not_equal(child, -1);
    if (child == 0) {
        quietly();
        call(argument);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

int open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    assert_non_null(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

struct mosnhook_address on_loopback(uint16_t port)
{
    return (struct mosnhook_address){
        .ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1},
        .port = port,
    };
}

static int bind_on_loopback(struct mosnhook_address *address)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_int_not_equal(fd, -1);
    assert_return_code(bind(fd, (struct sockaddr *)&name, length), 0);
    assert_return_code(getsockname(fd, (struct sockaddr *)&name, &length), 0);
    *address = on_loopback(ntohs(name.sin_port));
    return fd;
}

int closed_port(struct mosnhook_address *address)
{
    return bind_on_loopback(address);
}

int listen_on_loopback(struct mosnhook_address *address)
{
    int fd = bind_on_loopback(address);

    assert_return_code(listen(fd, 16), 0);
    return fd;
}

int fill_queue(int listener)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    int waits = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_not_equal(waits, -1);
    assert_return_code(listen(listener, 0), 0); /* room for one */
    assert_return_code(getsockname(listener, (struct sockaddr *)&name, &length), 0);
    assert_return_code(connect(waits, (struct sockaddr *)&name, length), 0);
    return waits;
}

void await_events(int fd, short events)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};

    assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
}

void tcp_pair(int fds[2])
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct mosnhook_address address;
    int listener = listen_on_loopback(&address);

    name.sin_port = htons(address.port);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_not_equal(fds[0], -1);
    assert_return_code(connect(fds[0], (struct sockaddr *)&name, sizeof name), 0);
    await_events(listener, POLLIN);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_int_not_equal(fds[1], -1);
    close(listener);
    assert_return_code(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
}

int lingering_socket(int *peer)
{
    static const struct linger linger = {.l_onoff = 1, .l_linger = LINGER_S};
    static char bytes[64 * 1024];
    int fds[2];

    tcp_pair(fds);
    while (send(fds[0], bytes, sizeof bytes, 0) > 0)
        ;
    assert_int_equal(errno, EAGAIN);
    assert_return_code(setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    assert_return_code(fcntl(fds[0], F_SETFL, 0), 0); /* a non-blocking one does not wait */
    *peer = fds[1];
    return fds[0];
}
