/* Requests on the control socket, with any descriptors: a data plane of one worker, whose loop is
 * turned here, step by step.
 *
 * An input is a list of steps: what a hooked application, or one that only looks like it, may do.
 * At the end, when everything is closed, as many descriptors are open as at the beginning; the data
 * plane's own assertions say that nothing else is left. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/plane.h"
#include "base/sockaddr.h"
#include "net/foreign.h"

#include "fuzz.h"

enum {
    MAX_STEPS = 24,
    MAX_OPEN = 64, /* descriptors of the application */
    MAX_SENT = 8,  /* with one message */
    ENOUGH_TURNS = 8,
    PATIENCE_MS = 5000,
};

enum { MPTCP = 262 };

struct application {
    int control; /* -1: closed */
    int fds[MAX_OPEN];
    size_t count;
};

static int server = -1; /* accepts, by its queue */
static struct mosnhook_address served, closed_port;
static struct mosnhook_page page;

static void connect_to(int fd, const struct mosnhook_address *address)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(address, &name);

    (void)connect(fd, (struct sockaddr *)&name, length);
}

static int bound_socket(struct mosnhook_address *address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0);
    CHECK(address_of_local(fd, address) == 0);
    return fd;
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    server = bound_socket(&served);
    CHECK(listen(server, 4096) == 0 && fcntl(server, F_SETFL, O_NONBLOCK) == 0);
    (void)bound_socket(&closed_port); /* nobody else gets the port, and nobody listens there */
    return 0;
}

/* ---- the data plane ---- */

/* Everything goes where the input says: by one rule for all addresses. */
static void set_routes(struct dp *dp, uint8_t how)
{
    struct {
        struct mosnhook_rules rules;
        struct mosnhook_boundary boundary;
        struct mosnhook_prefix prefix;
        struct mosnhook_segment segment;
    } blob = {
        .rules = {sizeof blob, 1, 1, 1},
        .prefix = {-1, 0, 1},
        .segment = {0, UINT16_MAX, 0},
    };
    struct mosnhook_address endpoints[2] = {how & 4 ? closed_port : served,
                                            how & 8 ? closed_port : served};
    struct dp_route route = {
        .action = how % 3, .balance = how >> 4 & 1, .endpoint_count = how & 32 ? 1 : 2};

    CHECK(dp_set_routes(dp, DP_OUTBOUND, &blob.rules, &route, 1, endpoints, 2) == 0);
    CHECK(dp_set_routes(dp, DP_INBOUND, &blob.rules, &route, 1, endpoints, 2) == 0);
}

/* As dp_start leaves it, but for the thread. */
static struct dp *make_plane(uint8_t how, struct sockaddr_un *control, socklen_t *length)
{
    static const struct dp_timeouts timeouts = {1000, 1000, 1000, 1000, 1000};
    static const struct dp_listener settings = {.transport = DP_TRANSPORT_UNIX};
    struct dp *dp = dp_create(1, &timeouts);
    struct mosnhook_address parks[2] = {loopback_address[0], loopback_address[1]};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    CHECK(dp && listener >= 0);
    *control = (struct sockaddr_un){.sun_family = AF_UNIX};
    /* The kernel picks an abstract name. */
    CHECK(bind(listener, (struct sockaddr *)control, sizeof control->sun_family) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)control, length) == 0);
    CHECK(listen(listener, 8) == 0);
    CHECK(dp_add_listener(dp, listener, &settings) == 0);
    for (int i = 0; i < 2; i++)
        (void)dp_add_park(dp, &parks[i]); /* a host may have no IPv6 */
    set_routes(dp, how);
    dp_set_page(dp, &page);
    CHECK(plane_prepare(dp) == 0);
    dp->budget.most = 256;
    return dp;
}

static void turn(struct dp *dp)
{
    uint64_t one = 1;

    /* So that it does not wait. */
    CHECK(write(dp->workers[0].mail.fd, &one, sizeof one) == sizeof one);
    loop_turn(&dp->workers[0].loop);
}

/* ---- the application ---- */

static int keep(struct application *application, int fd)
{
    CHECK(fd >= 0);
    if (application->count == MAX_OPEN) {
        close(fd);
        return application->fds[0];
    }
    return application->fds[application->count++] = fd;
}

static int tcp(struct application *application, int family, int protocol, bool blocking)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK), protocol);

    /* There may be no MPTCP, or no IPv6. */
    if (fd < 0)
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return keep(application, fd);
}

static int parked(struct application *application, const struct dp *dp, bool ipv4)
{
    int fd = tcp(application, ipv4 ? AF_INET : AF_INET6, 0, false);

    for (size_t i = 0; i < dp->parks.count; i++)
        if (address_is_ipv4(&dp->parks.each[i].address) == ipv4)
            connect_to(fd, &dp->parks.each[i].address);
    return fd;
}

static int pick_fd(struct application *application, const struct dp *dp, struct input *input)
{
    struct linger linger = {1, 1};
    uint8_t kind = take_u8(input);
    int fd, pair[2];

    switch (kind % 14) {
    case 0:
    case 1:
        return parked(application, dp, true);
    case 2:
        return parked(application, dp, false);
    case 3:
        return tcp(application, AF_INET, 0, false);
    case 4:
        return tcp(application, AF_INET, 0, true);
    case 5:
        return tcp(application, AF_INET, MPTCP, kind & 128);
    case 6:
        fd = tcp(application, AF_INET, 0, false);
        connect_to(fd, &served);
        return fd;
    case 7:
        fd = parked(application, dp, true);
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        return fd;
    case 8:
        return keep(application, socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    case 9:
        CHECK(pipe2(pair, O_CLOEXEC) == 0);
        keep(application, pair[0]);
        return keep(application, pair[1]);
    case 10:
        return keep(application, memfd_create("any", MFD_CLOEXEC));
    case 11:
        return keep(application, epoll_create1(EPOLL_CLOEXEC));
    case 12:
        return application->control; /* in itself: only the kernel's collector frees that */
    default:
        if (application->count == 0) /* what was the first one may be the data plane's by now */
            return tcp(application, AF_INET, 0, false);
        return application->fds[take_u8(input) % application->count];
    }
}

static void open_control(struct application *application, const struct sockaddr_un *name,
                         socklen_t length)
{
    if (application->control >= 0)
        close(application->control);
    application->control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(application->control >= 0);
    (void)connect(application->control, (const struct sockaddr *)name, length);
}

/* A request that is right but for what the input says. */
static size_t take_message(struct input *input, struct mosnhook_request *request)
{
    uint8_t wrong = take_u8(input);

    *request = (struct mosnhook_request){
        .flags = take_u8(input) & (MOSNHOOK_WAITS | MOSNHOOK_PARKED | MOSNHOOK_ASKS),
        .destination = {.ip = {[10] = 0xff, [11] = 0xff, 192, 0, 2, 7}, .port = 80},
        .command = "any",
    };
    if (wrong & 8)
        take(input, &request->flags, sizeof request->flags);
    if (wrong & 16)
        take(input, &request->destination, sizeof request->destination);
    if (wrong & 32)
        take(input, request->command, sizeof request->command);
    request->magic = wrong & 1 ? (uint32_t)wrong << 8 : MOSNHOOK_MAGIC;
    request->version = wrong & 2 ? wrong : MOSNHOOK_VERSION;
    return wrong & 4 ? take_u8(input) % (sizeof *request + 1) : sizeof *request;
}

static void send_request(struct application *application, const struct dp *dp, struct input *input)
{
    struct mosnhook_request request = {.magic = 0};
    struct iovec vector = {&request, take_message(input, &request)};
    size_t count = take_u8(input) % 4 ? 1 : take_u8(input) % (MAX_SENT + 1);
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_SENT * sizeof(int))];
    } rights = {.header = {CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    int fds[MAX_SENT] = {0};

    for (size_t i = 0; i < count; i++)
        fds[i] = pick_fd(application, dp, input);
    memcpy(CMSG_DATA(&rights.header), fds, count * sizeof(int));
    if (count > 0) {
        message.msg_control = &rights;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    }
    (void)sendmsg(application->control, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Something else becomes of a socket that was sent. */
static void meddle(struct application *application, struct input *input)
{
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    uint8_t how = take_u8(input);
    size_t which;

    if (application->count == 0)
        return;
    which = take_u8(input) % application->count;
    switch (how % 6) {
    case 0:
        close(application->fds[which]);
        application->fds[which] = application->fds[--application->count];
        break;
    case 1:
        (void)connect(application->fds[which], &none, sizeof none);
        break;
    case 2:
        (void)listen(application->fds[which], 1);
        break;
    case 3:
        (void)fcntl(application->fds[which], F_SETFL, O_NONBLOCK);
        connect_to(application->fds[which], how & 128 ? &served : &closed_port);
        break;
    case 4:
        (void)shutdown(application->fds[which], how >> 6 & 1 ? SHUT_WR : SHUT_RDWR);
        break;
    default:
        (void)send(application->fds[which], "data", 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

/* False when nobody waits. */
static bool serve(void)
{
    int fd = accept4(server, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0)
        return false;
    (void)send(fd, "hello", 5, MSG_NOSIGNAL);
    close(fd);
    return true;
}

static void step(struct application *application, struct dp *dp, struct input *input,
                 const struct sockaddr_un *name, socklen_t length)
{
    char answer[128];

    switch (take_u8(input) % 8) {
    case 0:
    case 1:
        send_request(application, dp, input);
        break;
    case 2:
        open_control(application, name, length);
        break;
    case 3:
        (void)recv(application->control, answer, sizeof answer, MSG_DONTWAIT);
        break;
    case 4:
        meddle(application, input);
        break;
    case 5:
        (void)serve();
        break;
    case 6:
        (void)shutdown(application->control, SHUT_WR);
        break;
    default:
        turn(dp);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct application application = {.control = -1};
    struct sockaddr_un name;
    socklen_t length = sizeof name;
    struct dp_record records[4];
    int before = count_fds();
    struct dp *dp = make_plane(take_u8(&input), &name, &length);

    turn(dp);
    open_control(&application, &name, length);
    keep(&application, memfd_create("first", MFD_CLOEXEC));
    for (int i = 0; i < MAX_STEPS && input.left > 0; i++)
        step(&application, dp, &input, &name, length);
    turn(dp);
    close(application.control);
    for (size_t i = 0; i < application.count; i++)
        close(application.fds[i]);
    for (int i = 0; i < ENOUGH_TURNS; i++) {
        turn(dp);
        (void)serve();
    }
    (void)dp_take_closed(dp, records, 4);
    dp_stop(dp);
    while (foreign_pending(dp->foreign) > 0) /* other threads close what came from others */
        sched_yield();
    dp_destroy(dp);
    while (serve())
        continue;
    /* Threads close what is no TCP socket. */
    for (int i = 0; count_fds() != before && i < PATIENCE_MS; i++)
        usleep(1000);
    CHECK(count_fds() == before);
    return 0;
}
