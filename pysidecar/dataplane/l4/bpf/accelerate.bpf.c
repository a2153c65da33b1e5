// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Redirects what is sent on one socket of a connection to another one of it, in the sender's own
 * context and in order (sk_msg, never sk_skb).
 *
 * It decides order and flow control anew for each message, from the sockets' own sequence numbers,
 * so that no state can disagree with them:
 *
 *   - A message is redirected only when nothing that was sent before is still on the way by TCP.
 *     For a target that is the sender's own peer, that is when the peer has read (copied_seq) all
 *     that the sender wrote (write_seq). For the upstream: when the worker has forwarded as much as
 *     the sender wrote.
 *   - And only when the target has room: at most `window` bytes unacknowledged by the upstream, or
 *     unread in the target's queue. Otherwise the message takes TCP, which has real flow control
 * and real readiness events.
 *
 * Redirected data is read before what comes by TCP, so going over to TCP is always in order.
 */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "record.h"

#define KERNEL_TYPE __attribute__((preserve_access_index))

/* From the kernel's net/tcp_states.h and net/tcp.h, which are not for BPF. */
enum { ESTABLISHED = 1, SYN_SENT = 2, SYN_RECEIVED = 3, NAGLE_OFF = 1 };

enum { DO_NOT_BLOCK = 04000 }; /* O_NONBLOCK */

/* From linux/net.h and netinet/tcp.h. */
enum { SOCK_NOSPACE = 2, SOL_TCP = 6, TCP_NOTSENT_LOWAT = 25 };

/* The members that are used of the kernel's structures; the loader finds their offsets (CO-RE). */
enum sock_flags { SOCK_ZEROCOPY };

/* TCP's memory, the machine's, in pages: used, and the limits of tcp_mem (normal, short, all). */
struct proto {
    void *memory_allocated;
    void *sysctl_mem;
} KERNEL_TYPE;

struct sock_common {
    struct proto *skc_prot;
    unsigned long skc_flags;
} KERNEL_TYPE;

struct file {
    unsigned int f_flags;
} KERNEL_TYPE;

struct socket {
    unsigned long flags;
    struct file *file;
} KERNEL_TYPE;

struct sock {
    struct sock_common __sk_common;
    struct socket *sk_socket;
    int sk_rcvlowat;
    void *sk_user_data; /* struct sk_psock, with flags in the lowest bits */
} KERNEL_TYPE;

struct inet_connection_sock {
    const void *icsk_ulp_ops;
} KERNEL_TYPE;

struct tcp_sock {
    struct inet_connection_sock inet_conn;
    __u32 copied_seq, rcv_nxt, write_seq, snd_una, notsent_lowat;
    __u64 bytes_acked;
    __u8 nonagle : 4;
} KERNEL_TYPE;

struct sk_psock {
    __u32 msg_tot_len;
} KERNEL_TYPE;

struct bpf_iter__tcp {
    struct sock_common *sk_common;
} KERNEL_TYPE;

extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym;

/* Stored with each sending socket, so that it goes with the socket. */
struct reference {
    __u64 id; /* of the connection */
    __u64 target_key;
    __u64 target; /* its struct tcp_sock; read fault-proof, and only for numbers */
    __u32 slot;
    __u32 to_upstream;
};

/* The loader sets the maps' sizes. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, __u32);
    __type(value, struct record);
} records SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_SK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct reference);
} references SEC(".maps");

/* The two ends of the loopback connection: their sends run `redirect`. */
struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __type(key, __u64);
    __type(value, __u64);
} ends SEC(".maps");

/* Upstream sockets: their sends run nothing. */
struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __type(key, __u64);
    __type(value, __u64);
} upstreams SEC(".maps");

static __always_inline struct tcp_sock *as_tcp(__u64 address)
{
    return bpf_rdonly_cast((void *)address, bpf_core_type_id_kernel(struct tcp_sock));
}

enum { NO_TARGET = 0xffffffff };

/* Redirected bytes that a socket has not read. NO_TARGET without a psock: it cannot be a target. */
static __always_inline __u32 queued(const struct tcp_sock *socket)
{
    __u64 psock = (__u64)((const struct sock *)socket)->sk_user_data & ~7ull;
    const struct sk_psock *typed;

    if (!psock)
        return NO_TARGET;
    typed = bpf_rdonly_cast((void *)psock, bpf_core_type_id_kernel(struct sk_psock));
    return typed->msg_tot_len;
}

/* A recv() that waits on a redirected socket may end with EAGAIN when something else than data
 * wakes it, which nobody expects of a blocking socket. */
static __always_inline int blocks(const struct tcp_sock *socket)
{
    return !(((const struct sock *)socket)->sk_socket->file->f_flags & DO_NOT_BLOCK);
}

static __always_inline __u32 has_nodelay(const struct tcp_sock *socket)
{
    return BPF_CORE_READ_BITFIELD(socket, nonagle) & NAGLE_OFF;
}

static __always_inline int to_upstream(struct sk_msg_md *message, struct record *record,
                                       const struct reference *reference,
                                       const struct tcp_sock *sender, __u32 size)
{
    const struct tcp_sock *upstream = as_tcp(reference->target);
    __u64 key = reference->target_key;
    /* What was sent by TCP since the beginning; the SYN counts as one acknowledged byte. */
    __u64 sent = sender->bytes_acked - 1 + (__u32)(sender->write_seq - sender->snd_una);

    if (sent != record->forwarded ||
        (__u64)(__u32)(upstream->write_seq - upstream->snd_una) + size > record->window ||
        bpf_msg_redirect_hash(message, &upstreams, &key, 0) != SK_PASS)
        return SK_PASS;
    record->redirected[0] += size;
    record->nodelay = has_nodelay(sender);
    return SK_PASS;
}

static __always_inline int to_peer(struct sk_msg_md *message, struct record *record,
                                   const struct reference *reference, const struct tcp_sock *sender,
                                   __u32 size, int from_application)
{
    const struct tcp_sock *peer = as_tcp(reference->target);
    __u64 key = reference->target_key;
    __u64 waiting;

    if (peer->copied_seq != sender->write_seq || peer->inet_conn.icsk_ulp_ops)
        return SK_PASS;
    /* A recv() in which the application waited when its socket was attached sees TCP only: it ends
     * with the first bytes that come by TCP after that. */
    if (!from_application && sender->write_seq == record->attached_at)
        return SK_PASS;
    waiting = (__u64)queued(peer) + size;
    if (waiting > record->window ||
        bpf_msg_redirect_hash(message, &ends, &key, BPF_F_INGRESS) != SK_PASS)
        return SK_PASS;
    if (from_application) {
        record->redirected[0] += size;
    } else {
        record->redirected[1] += size;
        record->queued = waiting;
    }
    return SK_PASS;
}

/* Where TCP's memory is short, redirecting may fail, with an error that no sender expects and
 * without a wake-up when it would work again. Below the first limit the kernel refuses nothing. */
static __always_inline int memory_is_short(const struct tcp_sock *socket)
{
    const struct proto *protocol = ((const struct sock *)socket)->__sk_common.skc_prot;
    long used = 0, normal = 0;

    bpf_probe_read_kernel(&used, sizeof used, protocol->memory_allocated);
    bpf_probe_read_kernel(&normal, sizeof normal, protocol->sysctl_mem);
    return used >= normal;
}

SEC("sk_msg")
int redirect(struct sk_msg_md *message)
{
    struct bpf_sock *socket = message->sk;
    __u32 size = *(volatile __u32 *)&message->size; /* now: later its offset is not known */
    struct reference *reference;
    struct record *record;
    struct tcp_sock *sender;
    __u32 slot;

    if (!socket)
        return SK_PASS;
    sender = bpf_skc_to_tcp_sock(socket);
    if (!sender)
        return SK_PASS;
    reference = bpf_sk_storage_get(&references, sender, 0, 0);
    /* kTLS that was set up later: the program would see data that is not encrypted yet. */
    if (!reference || sender->inet_conn.icsk_ulp_ops)
        return SK_PASS;
    slot = reference->slot;
    record = bpf_map_lookup_elem(&records, &slot);
    if (!record || record->id != reference->id || memory_is_short(sender))
        return SK_PASS;
    if (reference->to_upstream)
        return to_upstream(message, record, reference, sender, size);
    if (reference->target_key % KEYS_PER_CONNECTION == ROLE_DOWNSTREAM)
        return to_peer(message, record, reference, sender, size, 1);
    return record->hold ? SK_PASS : to_peer(message, record, reference, sender, size, 0);
}

/* ---- called by the data plane (BPF_PROG_TEST_RUN), the slot in the packet's mark ---- */

/* The socket with these addresses; `reversed`: its peer. */
static __always_inline struct bpf_sock *find(struct __sk_buff *context, const struct tuple *tuple,
                                             int reversed)
{
    struct bpf_sock_tuple wanted = {};
    /* A lookup is for an incoming packet: the source is the remote end. */
    const __u32 *source = reversed ? tuple->local_ip : tuple->remote_ip;
    const __u32 *destination = reversed ? tuple->remote_ip : tuple->local_ip;
    __u16 source_port = reversed ? tuple->local_port : tuple->remote_port;
    __u16 destination_port = reversed ? tuple->remote_port : tuple->local_port;

    if (tuple->is_ipv6) {
        for (int i = 0; i < 4; i++) {
            wanted.ipv6.saddr[i] = source[i];
            wanted.ipv6.daddr[i] = destination[i];
        }
        wanted.ipv6.sport = source_port;
        wanted.ipv6.dport = destination_port;
        return bpf_sk_lookup_tcp(context, &wanted, sizeof wanted.ipv6, BPF_F_CURRENT_NETNS, 0);
    }
    wanted.ipv4.saddr = source[0];
    wanted.ipv4.daddr = destination[0];
    wanted.ipv4.sport = source_port;
    wanted.ipv4.dport = destination_port;
    return bpf_sk_lookup_tcp(context, &wanted, sizeof wanted.ipv4, BPF_F_CURRENT_NETNS, 0);
}

static __always_inline struct record *record_of(const struct __sk_buff *context)
{
    __u32 slot = context->mark;

    return bpf_map_lookup_elem(&records, &slot);
}

static __always_inline __u64 address_of(struct bpf_sock *socket)
{
    return (__u64)bpf_skc_to_tcp_sock(socket);
}

/* Whether the kernel takes the socket into a map: while both of its directions are open. */
static __always_inline int state(struct bpf_sock *socket)
{
    switch (socket->state) {
    case ESTABLISHED:
        return ANSWER_OK;
    case SYN_SENT:
    case SYN_RECEIVED:
        return ANSWER_NO_SOCKET;
    default:
        return ANSWER_ENDED;
    }
}

/* Whether the application's socket is suited, before anything is changed. */
static __always_inline int examine(struct bpf_sock *socket, struct record *record)
{
    struct tcp_sock *typed = bpf_skc_to_tcp_sock(socket);

    if (!typed)
        return ANSWER_NO_SOCKET;
    record->nodelay = has_nodelay(typed);
    /* A recv() may be waiting for the rest of SO_RCVLOWAT bytes now. */
    if (((const struct sock *)typed)->sk_rcvlowat > 1)
        return ANSWER_NOT_SUITED;
    return record->blocking || !blocks(typed) ? state(socket) : ANSWER_NOT_SUITED;
}

/* Puts a socket into its map, with its reference (0 if nothing that it sends is redirected). */
static __always_inline int insert(struct bpf_sock *socket, void *map, __u64 key,
                                  struct reference *reference)
{
    struct tcp_sock *typed = bpf_skc_to_tcp_sock(socket);
    struct reference *kept;
    int answer = state(socket);

    if (!typed)
        return ANSWER_NO_SOCKET;
    if (answer != ANSWER_OK)
        return answer;
    if (((const struct sock *)typed)->__sk_common.skc_flags &
        (1ul << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
        return ANSWER_NOT_SUITED;
    if (bpf_map_update_elem(map, &key, socket, BPF_ANY))
        return ANSWER_NOT_SUITED;
    if (!reference)
        return ANSWER_OK;
    kept = bpf_sk_storage_get(&references, socket, reference, BPF_SK_STORAGE_GET_F_CREATE);
    if (!kept)
        return ANSWER_NOT_SUITED;
    *kept = *reference; /* a reused socket still has its last connection's */
    return ANSWER_OK;
}

SEC("tc")
int attach(struct __sk_buff *context)
{
    struct record *record = record_of(context);
    struct reference of_application = {};
    struct bpf_sock *socket;
    struct tcp_sock *typed;
    __u64 key;
    int answer;

    if (!record)
        return ANSWER_NO_SOCKET;
    key = record->id * KEYS_PER_CONNECTION;
    of_application.id = record->id;
    of_application.slot = context->mark;
    of_application.to_upstream = !record->local;
    of_application.target_key = key + (record->local ? ROLE_DOWNSTREAM : ROLE_UPSTREAM);

    socket = find(context, &record->downstream, 1);
    if (!socket)
        return ANSWER_NO_SOCKET;
    answer = examine(socket, record);
    bpf_sk_release(socket);
    if (answer != ANSWER_OK)
        return answer;

    /* Targets before senders. */
    if (!record->local) {
        socket = find(context, &record->upstream, 0);
        if (!socket)
            return ANSWER_NO_SOCKET;
        answer = insert(socket, &upstreams, key + ROLE_UPSTREAM, 0);
        of_application.target = address_of(socket);
        bpf_sk_release(socket);
        if (answer != ANSWER_OK)
            return answer;
    } else {
        socket = find(context, &record->downstream, 0);
        if (!socket)
            return ANSWER_NO_SOCKET;
        of_application.target = address_of(socket);
        bpf_sk_release(socket);
    }
    socket = find(context, &record->downstream, 1);
    if (!socket)
        return ANSWER_NO_SOCKET;
    answer = insert(socket, &ends, key + ROLE_APPLICATION, &of_application);
    bpf_sk_release(socket);
    if (answer != ANSWER_OK)
        return answer;
    socket = find(context, &record->downstream, 0);
    if (!socket)
        return ANSWER_NO_SOCKET;
    typed = bpf_skc_to_tcp_sock(socket);
    record->attached_at = typed ? typed->write_seq : 0;
    bpf_sk_release(socket);
    return ANSWER_OK;
}

/* From here on our downstream socket's messages are redirected, too, until it leaves the map. */
SEC("tc")
int join(struct __sk_buff *context)
{
    struct record *record = record_of(context);
    struct reference of_downstream = {};
    struct bpf_sock *socket;
    __u64 key;
    int answer;

    if (!record)
        return ANSWER_NO_SOCKET;
    key = record->id * KEYS_PER_CONNECTION;
    of_downstream.id = record->id;
    of_downstream.slot = context->mark;
    of_downstream.target_key = key + ROLE_APPLICATION;
    socket = find(context, &record->downstream, 1);
    if (!socket)
        return ANSWER_NO_SOCKET;
    of_downstream.target = address_of(socket);
    bpf_sk_release(socket);
    socket = find(context, &record->downstream, 0);
    if (!socket)
        return ANSWER_NO_SOCKET;
    answer = insert(socket, &ends, key + ROLE_DOWNSTREAM, &of_downstream);
    bpf_sk_release(socket);
    return answer;
}

static __always_inline __u32 waiting(const struct tcp_sock *socket)
{
    __u32 bytes = queued(socket);

    return bytes == NO_TARGET ? 0 : bytes;
}

/* Measures how much waits for the application, and for us. */
SEC("tc")
int probe(struct __sk_buff *context)
{
    struct record *record = record_of(context);
    struct bpf_sock *socket;
    struct tcp_sock *application, *downstream;
    __u32 read;

    if (!record)
        return ANSWER_NO_SOCKET;
    socket = find(context, &record->downstream, 1);
    if (!socket)
        return ANSWER_NO_SOCKET;
    application = bpf_skc_to_tcp_sock(socket);
    read = application ? application->copied_seq : 0;
    record->queued = application ? waiting(application) : 0;
    bpf_sk_release(socket);
    socket = find(context, &record->downstream, 0);
    if (!socket)
        return ANSWER_NO_SOCKET;
    downstream = bpf_skc_to_tcp_sock(socket);
    record->unread = downstream ? downstream->write_seq - read : 0;
    record->arrived = downstream ? waiting(downstream) : 0;
    bpf_sk_release(socket);
    return ANSWER_OK;
}

/* ---- called by the data plane (BPF_ITER_CREATE), for all TCP sockets of the namespace ---- */

/* Where TCP's memory is used up, the kernel refuses a message to a socket in a sockmap even if
 * nothing is on its way (an ordinary socket may always send a little). Then no acknowledgement
 * would ever wake the sender. Setting the limit of its unsent bytes does. */
SEC("iter/tcp")
int wake_senders(struct bpf_iter__tcp *context)
{
    struct sock_common *common = context->sk_common;
    struct reference *reference;
    struct tcp_sock *sender;
    struct socket *socket;
    int unsent;

    if (!common)
        return 0;
    sender = bpf_skc_to_tcp_sock(common);
    if (!sender)
        return 0;
    reference = bpf_sk_storage_get(&references, sender, 0, 0);
    if (!reference || sender->write_seq != sender->snd_una)
        return 0;
    socket = ((struct sock *)sender)->sk_socket;
    unsent = (int)sender->notsent_lowat; /* as it is */
    if (socket && socket->flags & 1ul << SOCK_NOSPACE)
        bpf_setsockopt(sender, SOL_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL"; /* bpf_skc_to_tcp_sock asks for GPL */
