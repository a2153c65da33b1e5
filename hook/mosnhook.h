/* The connect hook's own parts, from the bottom up. See docs/hook.md for what it does.
 *
 * All of it runs inside of somebody else's connect(): nothing here allocates, takes a lock, uses
 * thread-local storage or calls what is not async-signal-safe. */
#ifndef MOSNHOOK_H
#define MOSNHOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "address.h"
#include "contract.h"

#define MOSNHOOK_EXPORT __attribute__((visibility("default")))

enum {
    MS = 1000000, /* nanoseconds */

    /* How long a sidecar that is alive but full gets to make room. */
    FULL_BUDGET_MS = 1000,
    FULL_BUDGET_NONBLOCKING_MS = 100,

    AWAY_CHECK_MS = 20,       /* how often when_away `wait` looks for a sidecar */
    HEARTBEAT_CHECK_MS = 250, /* how often a waiting call looks at the sign of life */
};

/* Synchronous signals ("this instruction failed"), as a mask. They do not interrupt waiting calls.
 */
#define SYNCHRONOUS_SIGNALS                                                                       \
    (1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1) | 1ull << (SIGILL - 1) | 1ull << (SIGFPE - 1) | \
     1ull << (SIGTRAP - 1) | 1ull << (SIGSYS - 1))

struct iovec;
struct msghdr;
struct mmsghdr;
struct pollfd;

/* ---- libc.c: the functions that the hook stands before, as the next library has them ---- */

struct libc {
    int (*connect)(int, const struct sockaddr *, socklen_t);
    int (*getpeername)(int, struct sockaddr *, socklen_t *);
    int (*getsockopt)(int, int, int, void *, socklen_t *);
    ssize_t (*sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    ssize_t (*sendmsg)(int, const struct msghdr *, int);
    int (*sendmmsg)(int, struct mmsghdr *, unsigned, int);
    ssize_t (*recv)(int, void *, size_t, int);
    ssize_t (*recvfrom)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
    ssize_t (*recvmsg)(int, struct msghdr *, int);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*readv)(int, const struct iovec *, int);
    ssize_t (*recv_chk)(int, void *, size_t, size_t, int);
    ssize_t (*recvfrom_chk)(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);
    ssize_t (*read_chk)(int, void *, size_t, size_t);
    ssize_t (*splice)(int, int64_t *, int, int64_t *, size_t, unsigned);
    int (*ioctl)(int, unsigned long, ...);

    int (*execve)(const char *, char *const[], char *const[]);
    int (*execvpe)(const char *, char *const[], char *const[]);
    int (*fexecve)(int, char *const[], char *const[]);
    int (*execveat)(int, const char *, char *const[], char *const[], int);
    int (*posix_spawn)(pid_t *, const char *, const void *, const void *, char *const[],
                       char *const[]);
    int (*posix_spawnp)(pid_t *, const char *, const void *, const void *, char *const[],
                        char *const[]);

    int (*poll)(struct pollfd *, unsigned long, int);

    /* NULL where libc has none. */
    int (*pthread_setcancelstate)(int, int *);
    int (*pthread_setcanceltype)(int, int *);
    void (*pthread_cleanup_push)(void *, void (*)(void *), void *);
    void (*pthread_cleanup_pop)(void *, int);
};

/* The table, filled by the first call (the constructor's, as a rule). */
const struct libc *libc(void);

void set_errno(int error);
int get_errno(void);

/* Sets errno and returns -1, unless `error` is 0. */
int errno_result(int error);

/* CLOCK_MONOTONIC in nanoseconds, by a system call: the sidecar's sign of life is by the kernel's
 * clock, and libc's may be another library's (libfaketime). */
int64_t now_ns(void);

/* ---- environment.c: MOSNHOOK_* variables, read once at start-up ---- */

struct environment {
    bool secure; /* AT_SECURE: no variable was read */
    bool disabled;
    bool inherit;
    uint32_t when_away; /* enum mosnhook_when_away */
    uint32_t wait_ms;
    /* Ports of the sidecar on loopback that are worth waiting for, like it: see MOSNHOOK_AWAIT. */
    uint16_t awaited[4];
    size_t awaited_count;
    const char *policy; /* NULL: the usual places */
    const char *log;    /* NULL: silent */
    const char *runtime_directory;
    const char *preload; /* our entry of LD_PRELOAD, NULL if we came another way */
    /* "NAME=value" of every MOSNHOOK_* variable, for children */
    const char *variables[16];
    size_t variable_count;
    char command[MOSNHOOK_COMMAND_SIZE];
};

extern struct environment environment;

/* The value if `entry` is "name=value", else NULL. */
const char *environment_value(const char *entry, const char *name);

/* The first entry of an LD_PRELOAD list that is this library; its length, or 0. */
size_t environment_find_hook(const char *list, const char **entry);

bool text_equal(const char *a, const char *b);

/* Whether the hook is switched on. */
bool hook_active(void);

/* ---- pointers.c: for the application's pointers; sizes are not 0 ---- */

bool pointer_readable(const void *at, size_t size);

/* Whether these 8 bytes can be written, which it does. Also true if they are not aligned. */
bool word_writable(void *at);

/* At start-up: a pointer into the main thread's stack, above all of its frames. */
void pointers_start(const void *on_main_stack);

/* Whether connect()'s address can be read. Also false if `fd` is not a socket. */
bool address_readable(int fd, const struct sockaddr *address, socklen_t length);

/* ---- address.c; the predicates are in address.h ---- */

/* What connect() would go to, with the unspecified address as loopback. False if it is not an IPv4
 * or IPv6 address. */
bool address_from_sockaddr(const struct sockaddr *from, socklen_t length,
                           struct mosnhook_address *to);

/* For a socket of this family: IPv4 becomes v4-mapped on AF_INET6. Returns the length; 0 for an
 * IPv6 address on AF_INET. */
socklen_t address_to_sockaddr(const struct mosnhook_address *from, int family,
                              struct sockaddr_storage *to);

/* Whether it is multicast or broadcast, to which TCP cannot connect. */
bool address_is_for_many(const struct mosnhook_address *address);

/* ---- page.c: the policy page ---- */

/* What the page says about one destination, at one moment. */
struct page_view {
    bool known;          /* the page could be read; else the environment decides */
    bool excluded;       /* not to be captured */
    bool asks;           /* the sidecar may want it to be connected directly */
    uint32_t generation; /* changes with the page, and from page to page */
    uint32_t state;
    uint32_t transport;
    uint32_t when_away;
    uint32_t wait_ms;
    uint32_t listener_count;
    uint32_t park_count;
    uint32_t server_uid;
    uint8_t ticket[MOSNHOOK_TICKET_SIZE];
    struct mosnhook_address listeners[MOSNHOOK_MAX_LISTENERS];
    struct mosnhook_address parks[MOSNHOOK_MAX_PARKS];
    char control_path[MOSNHOOK_PATH_SIZE];
};

/* Maps the page, or the file that has taken its place. */
void page_open(void);

/* Makes no system call, unless the page is being written. */
void page_look(const struct mosnhook_address *destination, struct page_view *view);

/* Whether there is a recent sign of life. */
bool page_heartbeat(void);

/* Whether the sidecar redirects data to applications in the kernel. */
bool page_accelerates(void);

/* Whether the sidecar is out of descriptors, as a known page says. */
bool page_full(void);

/* Whether the sidecar takes new connections. */
bool page_serving(const struct page_view *view);

/* Whether there is, or was, a sidecar at all. */
bool page_known(void);

/* Whether the address is one of the page's listeners or parks: what is connected to it is relayed.
 */
bool page_lists(const struct mosnhook_address *address);

/* Whether captured sockets may be connected elsewhere. */
bool page_elsewhere(void);

/* ---- memo.c: what a captured socket remembers, see contract.h ---- */

void memo_write(int fd, enum mosnhook_memo_kind kind, const struct mosnhook_address *destination);
bool memo_read(int fd, struct mosnhook_memo *memo);

/* The socket was disconnected. Does nothing to sockets without a memo. */
void memo_forget(int fd);

/* The original destination of a socket that is connected to `peer`. False without a credible memo.
 */
bool memo_destination(int fd, const struct mosnhook_address *peer,
                      struct mosnhook_address *destination);

/* The true errno of a socket that failed with `error`; `error` if unknown. */
int memo_true_error(int fd, int error);

/* ---- capture.c: the decision, and the way of a captured connect ---- */

enum {
    CAPTURE_CONNECT_DONT_WAIT = 1, /* MSG_DONTWAIT: as if the socket were non-blocking */
};

/* Results besides 0 (connected) and an errno. */
enum {
    OUTCOME_NOT_OURS = -1,        /* left to the real connect */
    OUTCOME_AWAY = -2,            /* no sidecar serves */
    OUTCOME_DIRECT = -3,          /* the sidecar says: connect yourself */
    OUTCOME_OTHER_TRANSPORT = -4, /* this socket or process cannot use unix */
    OUTCOME_CONNECT = -5,         /* the sidecar says: connect it to me, there */
};

/* One connect() in progress. */
struct attempt {
    int fd;
    int family;
    bool blocking;    /* O_NONBLOCK is not set */
    bool waits;       /* the caller blocks until there is a result */
    bool multipath;   /* MPTCP */
    bool fast_open;   /* TCP_FASTOPEN_CONNECT was set (and was switched off by us) */
    bool v6_only;     /* IPV6_V6ONLY was set (and was switched off by us) */
    int64_t deadline; /* by SO_SNDTIMEO, on now_ns's clock; 0: none */
    int64_t give_up;  /* when to give a full sidecar up; 0 if it was not found full */
    int cancel_state; /* the thread's; cancellation is off while we hold something */
    struct mosnhook_address destination;
    /* With OUTCOME_DIRECT (port 0: the destination) and OUTCOME_CONNECT: where to. */
    struct mosnhook_address endpoint;
    struct page_view view;
};

/* Where a connect goes: the application's address, or, after capture() returned OUTCOME_NOT_OURS,
 * the one that the sidecar chose. */
struct target {
    const struct sockaddr *address;
    socklen_t length;
    struct sockaddr_storage replacement; /* that `address` may point to */
};

int capture(int fd, struct target *target, int flags);

/* ---- socket.c: steps that both transports take ---- */

/* Opens a socket of the hook's own, for a moment. Its descriptor or -errno. */
int socket_open(int family, int type, int protocol);

/* The others are about the application's socket. */

/* connect() to one of the sidecar's addresses, without waiting, even if the socket blocks. */
int socket_connect_now(struct attempt *attempt, const struct mosnhook_address *to);

/* The peer, even if the connect has failed or the connection has ended: unlike getpeername(), also
 * in SYN_SENT and after a reset. False if there is none, or the socket was disconnected since. */
bool socket_peer(int fd, int family, struct mosnhook_address *peer);

/* SO_ERROR, which clears it; 0 if there is none. */
int socket_take_error(int fd);

/* Disconnects the socket, which keeps what it is bound to. */
void socket_disconnect(struct attempt *attempt);

/* The kernel's result of a connect() that found an earlier one in progress or finished. A blocking
 * caller waits for it. */
int socket_settle(struct attempt *attempt, int result, const struct mosnhook_address *via);

/* Which of the sidecar's addresses this socket can connect to, the best first, in rotation. Stores
 * indices, returns their number. */
size_t socket_order(const struct attempt *attempt, const struct mosnhook_address *addresses,
                    size_t count, uint8_t order[MOSNHOOK_MAX_LISTENERS]);

/* ---- server.c ---- */

/* Whether the sidecar, or the proxy in its place, has the other end of a connection to one of its
 * listeners. 0, EAGAIN (nobody has it yet), EMFILE (asking takes a descriptor), or OUTCOME_AWAY,
 * also where the kernel cannot be asked. */
int server_check(const struct attempt *attempt, const struct mosnhook_address *here);

/* ---- apart.c ---- */

/* Runs a step that needs descriptors when the process has none left: in a thread with a table of
 * its own, in which only `keep` (-1: nothing) is open. The step makes system calls only, closes
 * what it opens, and does not take long. 0, or -errno if there can be no such thread. */
int apart(int keep, void (*run)(void *), void *argument);

/* ---- wait.c ---- */

/* Waits until `fd` is ready or has hung up. 0, EINPROGRESS (SO_SNDTIMEO is over), EINTR, or
 * OUTCOME_AWAY. A cancellation point; a cancelled thread closes `owned` (-1: nothing). */
int wait_ready(struct attempt *attempt, int fd, short events, int owned);

/* Pauses. 0, EINTR or EINPROGRESS as above. A cancellation point if the caller waits. */
int wait_pause(struct attempt *attempt, int ms);

/* Waits until `fd` is ready or has hung up, or the deadline (on now_ns's clock): for callers that
 * must not block. 0 or EINPROGRESS. */
int wait_until(int64_t deadline, int fd, short events);

/* Whether the kernel would have restarted a waiting call that a handler interrupted. poll() is
 * never restarted, and does not tell which handler it was: so true only if all handlers ask for it
 * (SA_RESTART). Handlers of synchronous signals, which many runtimes have, do not count. Not for
 * calls with a timeout (SO_SNDTIMEO, SO_RCVTIMEO), which are never restarted: see signal(7). */
bool wait_restarts(void);

/* Pauses shortly; neither interruptible nor a cancellation point. */
void wait_briefly(int ms);

/* Whether the sidecar has descriptors left, or gets some within the time of a full one. Only
 * callers that would be refused, and may block, wait for that. */
bool wait_for_room(struct attempt *attempt);

/* Waits a little for a sidecar that is alive but full. False when its time is over. */
bool wait_while_full(struct attempt *attempt);

/* When to give up a sidecar that is alive but full, on now_ns's clock. */
int64_t wait_full_deadline(const struct attempt *attempt);

void cancel_disable(struct attempt *attempt);
void cancel_restore(struct attempt *attempt);

/* ---- transport_unix.c, transport_header.c: 0, an errno, or an outcome ---- */

int transport_unix(struct attempt *attempt);
int transport_header(struct attempt *attempt);

/* ---- log.c ---- */

/* One line about a decision, if MOSNHOOK_LOG asks. `error` is a result as above. */
void log_decision(const struct mosnhook_address *destination, const char *what, int error);

#endif
