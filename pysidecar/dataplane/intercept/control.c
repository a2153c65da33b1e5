#include "intercept/control.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/owner.h"
#include "base/sockaddr.h"
#include "intercept/clients.h"
#include "intercept/listener.h"
#include "intercept/park.h"
#include "intercept/unparked.h"
#include "net/budget.h"
#include "net/foreign.h"
#include "net/spares.h"

/* The descriptor that came with the message, or -1. There was room for one. */
static int take_fd(struct msghdr *message)
{
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    int fd = -1;

    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static bool request_is_valid(const struct mosnhook_request *request, ssize_t size)
{
    return size == sizeof *request && request->magic == MOSNHOOK_MAGIC &&
           request->version == MOSNHOOK_VERSION && !address_is_unspecified(&request->destination);
}

/* Whether the socket is fit for its request. A socket that could be parked must be. */
static bool socket_is_valid(const struct mosnhook_request *request, int fd)
{
    int protocol = fd < 0 ? -1 : foreign_protocol(fd);

    return protocol == IPPROTO_TCP ? request->flags & (MOSNHOOK_PARKED | MOSNHOOK_ASKS)
                                   : protocol >= 0 && !(request->flags & MOSNHOOK_PARKED);
}

static bool is_trusted(const struct request *request)
{
    return foreign_is_trusted(request->worker->foreign, request->uid);
}

/* Receives a message, which stays in the queue, and the application's socket with it. Returns what
 * recvmsg() does, and its flags. */
static ssize_t peek_request(struct request *request, struct mosnhook_request *message, int *flags)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {message, sizeof *message};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = control,
                            .msg_controllen = CMSG_LEN(sizeof(int))};
    ssize_t size =
        recvmsg(request->control.fd, &header, MSG_PEEK | MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

    /* Even if the message is empty: descriptors come with any. */
    if (size >= 0)
        request->application = take_fd(&header);
    *flags = header.msg_flags;
    return size;
}

static void drop_message(const struct request *request)
{
    (void)recv(request->control.fd, NULL, 0, MSG_DONTWAIT);
}

/* As peek_request, and takes the message, but not an untrusted user's: to take that with more
 * descriptors than there is room for would close those.
 *
 * If there is no descriptor for the application's socket, it gets a spare one: it would stay parked
 * for ever. */
static ssize_t receive_request(struct request *request, struct mosnhook_request *message,
                               int *flags)
{
    ssize_t size = peek_request(request, message, flags);

    if (size >= 0 && *flags & MSG_CTRUNC && request->application < 0 &&
        spares_give_up(request->worker)) {
        budget_ran_out(request->worker->budget, request->worker->loop.now_ms);
        request->refused = DP_END_NO_RESOURCES;
        size = peek_request(request, message, flags);
    }
    if (size >= 0 && is_trusted(request))
        drop_message(request);
    return size;
}

/* The request is to be closed: takes a message that came and was not read yet. */
static void take_unread(struct request *request)
{
    struct mosnhook_request message;
    int flags;

    if (request->control.fd < 0)
        return;
    /* Later messages are refused, so that their sender learns that nobody takes them. */
    shutdown(request->control.fd, SHUT_RD);
    if (request->application < 0 &&
        request_is_valid(&message, receive_request(request, &message, &flags)) && request->session)
        request->session->origin.original_destination = message.destination;
}

/* ---- answering ---- */

bool control_answer(const struct request *request, const struct mosnhook_answer *answer)
{
    return send(request->control.fd, answer, sizeof *answer, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           sizeof *answer;
}

static void close_application(struct request *request)
{
    foreign_close(request->worker->foreign, request->uid, &request->application);
}

static void close_control(struct request *request)
{
    foreign_close_watch(request->worker, request->uid, &request->control);
}

void control_let_go(struct request *request)
{
    close_application(request);
}

void control_end(struct session *session)
{
    struct request *request = session->intercepted;

    if (!request)
        return;
    close_control(request);
    close_application(request);
    free(request);
    session->intercepted = NULL;
    session->ops = &intercept_connected;
}

void control_completed(struct session *session)
{
    static const struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC,
        .version = MOSNHOOK_VERSION,
        .action = MOSNHOOK_RELAY,
    };
    struct request *request = session->intercepted;
    bool expected = session_state(session) == SESSION_EXPECTED;

    session->downstream.writable = true;
    trace(session->worker, session->id, application_connected, request->parked, 0);
    /* A caller that no longer waits finds its socket connected. */
    if (request->waits)
        (void)control_answer(request, &answer);
    session->worker->handler->let_go(session, request->application);
    /* Close our copy, or nobody would see the application's close. */
    control_end(session);
    if (!expected) {
        session_completed(session);
        return;
    }
    timer_cancel(&session->worker->loop.timers, &session->timer);
    session_release_fds(session, FDS_PER_RELAY);
    session_arrived(session);
}

static bool control_refuse(struct session *session, int error, bool away)
{
    struct request *request = session->intercepted;
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC,
        .version = MOSNHOOK_VERSION,
        .action = away ? MOSNHOOK_AWAY : MOSNHOOK_REFUSE,
        .error = error,
    };

    trace(session->worker, session->id, application_failed, error, request->parked);
    /* A caller that no longer waits (it was interrupted, or timed out) watches its socket, like one
     * that never did. */
    if (request->waits && control_answer(request, &answer))
        close_application(request); /* the caller disconnects it */
    /* Whoever has too many descriptors does not get one more for a while. */
    return request->application >= 0 && request->refused != DP_END_TOO_MANY_FDS &&
           park_fail(session, request, error);
}

/* An application whose socket stays parked would wait for ever. */
static void control_abandon(struct session *session, int error)
{
    struct request *request = session->intercepted;

    if (session_state(session) == SESSION_ARRIVING)
        take_unread(request);
    if (request->application >= 0)
        park_abandon(request, error, &session->origin.original_destination);
}

static void control_complete(struct session *session)
{
    struct request *request = session->intercepted;

    if (request->parked)
        park_complete(session, request);
    else
        unparked_await(session, request);
}

static const struct intercept_ops control_ops = {
    .complete = control_complete,
    .refuse = control_refuse,
    .abandon = control_abandon,
    .release = control_end,
};

/* ---- requests ---- */

/* Why the message cannot be served, or DP_END_NONE. */
static enum dp_end check_request(const struct request *request,
                                 const struct mosnhook_request *message, ssize_t size, int flags)
{
    if (size <= 0)
        return DP_END_HEADER_TRUNCATED;
    if (flags & MSG_CTRUNC && request->application < 0)
        return DP_END_NO_RESOURCES;
    if (!request_is_valid(message, size) || flags & (MSG_TRUNC | MSG_CTRUNC) ||
        !socket_is_valid(message, request->application) ||
        (request->asked && message->flags & MOSNHOOK_ASKS))
        return DP_END_HEADER_MALFORMED;
    return DP_END_NONE;
}

static void serve_request(struct session *session, struct request *request)
{
    if (!request->parked) {
        unparked_start(session, request);
        return;
    }
    if (!request->waits) {
        close_control(request);
        session_release_fds(session, FDS_PER_REQUEST - 1);
    }
    if (!park_inspect(request)) {
        session_close(session, DP_END_DOWNSTREAM_GONE, 0);
        return;
    }
    session_arrived(session);
}

static void take_request(struct session *session, struct request *request,
                         const struct mosnhook_request *message)
{
    request->waits = message->flags & MOSNHOOK_WAITS;
    request->parked = message->flags & MOSNHOOK_PARKED;
    session->late_source = !request->parked;
    session->origin.original_destination = message->destination;
    session->origin.original_destination.reserved = 0;
    memcpy(session->command, message->command, sizeof session->command);
    trace_request(session->worker, session->id, session->command, session->pid,
                  &session->origin.original_destination);
    if (request->refused) {
        request->waits |= message->flags & MOSNHOOK_ASKS || !request->parked;
        if (request->parked)
            (void)park_inspect(request);
        session_refuse(session, request->refused, EMFILE);
    } else if (message->flags & MOSNHOOK_ASKS) {
        request->asked = true;
        session->worker->handler->asks(session);
    } else {
        serve_request(session, request);
    }
}

/* False if none has come. */
static bool read_request(struct session *session)
{
    struct request *request = session->intercepted;
    struct mosnhook_request message;
    int flags;
    ssize_t size = receive_request(request, &message, &flags);
    int error = size < 0 ? errno : 0;
    enum dp_end end;

    if (error == EAGAIN || error == EINTR)
        return false;
    timer_cancel(&session->worker->loop.timers, &session->timer);
    end = check_request(request, &message, size, flags);
    if (end != DP_END_NONE) {
        session_close(session, end, end == DP_END_NO_RESOURCES ? EMFILE : error);
        return true;
    }
    if (!is_trusted(request)) /* whose message stayed in the queue */
        drop_message(request);
    if (foreign_is_here(session->worker->foreign, request->application))
        take_request(session, request, &message);
    else
        session_close(session, DP_END_OTHER_NAMESPACE, 0);
    return true;
}

static void read_requests(struct session *session)
{
    /* A request that asks may be followed by another one. */
    while (session_state(session) == SESSION_ARRIVING && read_request(session))
        ;
}

static void request_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    read_requests(OWNER(watch, struct request, control)->session);
}

void control_await_request(struct session *session)
{
    struct request *request = session->intercepted;

    close_application(request);
    loop_set_timer(&session->worker->loop, &session->timer,
                   timeout_of(&session->worker->timeouts->header_ms), session_arrival_expired);
}

/* ---- accepting ---- */

static void identify_caller(struct request *request)
{
    struct session *session = request->session;
    struct ucred caller;
    socklen_t length = sizeof caller;

    request->uid = UINT32_MAX;
    if (getsockopt(request->control.fd, SOL_SOCKET, SO_PEERCRED, &caller, &length) < 0)
        return;
    request->uid = caller.uid;
    if (!session)
        return;
    session->pid = (uint32_t)caller.pid;
    session->uid = caller.uid;
}

/* Out of memory for a session: fails the application's socket all the same. */
static void refuse_unopened(struct worker *worker, int fd)
{
    struct request request = {.worker = worker, .control.fd = fd, .application = -1};

    identify_caller(&request);
    take_unread(&request);
    if (request.application >= 0)
        park_abandon(&request, ENOMEM, NULL);
    close_control(&request);
    close_application(&request);
}

/* NULL if the request was refused. */
static struct session *open_session(struct worker *worker, const struct listener *listener, int fd,
                                    uint8_t fds)
{
    struct request *request = calloc(1, sizeof *request);
    struct session *session = request ? session_open(worker, listener, &control_ops, fds) : NULL;

    if (!session) {
        if (!request)
            budget_release(worker->budget, fds);
        free(request);
        refuse_unopened(worker, fd);
        return NULL;
    }
    session->intercepted = request;
    *request = (struct request){
        .worker = worker,
        .session = session,
        .control = {.fd = fd, .ready = request_ready},
        .application = -1,
    };
    session->hooked = true;
    identify_caller(request);
    return session;
}

static void refuse_request(struct session *session, enum dp_end end)
{
    ((struct request *)session->intercepted)->refused = (uint8_t)end;
    (void)read_request(session);
    /* If no request has come yet, its sender finds that we have hung up. */
    if (session_state(session) == SESSION_ARRIVING)
        session_close(session, end, EMFILE);
}

static void control_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = open_session(worker, listener, fd, FDS_PER_REQUEST);
    struct request *request;

    if (!session)
        return;
    if (!clients_may_have_fds(session)) {
        refuse_request(session, DP_END_TOO_MANY_FDS);
        return;
    }
    loop_set_timer(&worker->loop, &session->timer, timeout_of(&worker->timeouts->header_ms),
                   session_arrival_expired);
    /* The request nearly always came with the connection. */
    read_requests(session);
    if (session_state(session) != SESSION_ARRIVING)
        return;
    request = session->intercepted;
    if (!clients_may_wait(session))
        session_close(session, DP_END_TOO_MANY_WAIT, 0);
    else if (loop_watch(&worker->loop, &request->control, EPOLLIN | EPOLLET) < 0)
        session_close(session, DP_END_NO_RESOURCES, errno);
}

static void control_refuse_unserved(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = open_session(worker, listener, fd, 0);

    if (session)
        refuse_request(session, DP_END_NO_RESOURCES);
}

const struct intercept intercept_control = {
    .fds = FDS_PER_REQUEST,
    .accept = control_accept,
    .refuse = control_refuse_unserved,
};
