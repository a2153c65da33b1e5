/* Bulk data on one connection, blocks of it until the time is up. It ends with a marked block
 * rather than with a FIN, since not every proxy lets one direction end before the other. */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char upload_block[BLOCK] = {UPLOAD};
static const char last_block[BLOCK] = {LAST_BLOCK};

const char *source_next(const struct source *source, size_t *size)
{
    size_t left = BLOCK - source->offset;

    *size = left < CHUNK ? left : CHUNK;
    return (source->in_last ? last_block : upload_block) + source->offset;
}

bool source_sent(struct source *source, size_t size)
{
    source->offset += size;
    if (source->offset < BLOCK) {
        return true;
    }
    source->offset = 0;
    if (source->in_last) {
        return false;
    }
    source->in_last = source->stop;
    return true;
}

int sink_take(struct sink *sink, const char *bytes, size_t size, char more)
{
    size_t boundary = (BLOCK - sink->received % BLOCK) % BLOCK;

    for (; boundary < size; boundary += BLOCK) {
        if (sink->in_last || (bytes[boundary] != more && bytes[boundary] != LAST_BLOCK)) {
            return -1;
        }
        sink->in_last = bytes[boundary] == LAST_BLOCK;
    }
    sink->received += size;
    return sink->in_last && sink->received % BLOCK == 0 ? 0 : 1;
}

void upload(const struct sockaddr_in *to, struct span span, struct result *result)
{
    struct source source = {0};
    uint64_t sent_at_mark = 0, total = 0, acknowledged;
    int64_t mark = 0, now;
    bool more = true;
    ssize_t done;
    int fd = open_connection(to), off = 0;

    if (fd < 0) {
        count_failure(&result->failures, errno);
        return;
    }
    /* Whoever has much to send does not ask for small segments: iperf3 does not either. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &off, sizeof(off));
    while (more) {
        size_t size;
        const char *bytes = source_next(&source, &size);

        done = send(fd, bytes, size, MSG_NOSIGNAL);
        if (done < 0) {
            count_failure(&result->failures, errno);
            close(fd);
            return;
        }
        total += (uint64_t)done;
        more = source_sent(&source, (size_t)done);
        now = now_ns();
        if (mark == 0 && now >= span.mark) {
            mark = now;
            sent_at_mark = total;
        }
        source.stop = now >= span.end;
    }
    /* Counted when the far end has it all, not when it is in somebody's buffer. */
    done = recv(fd, &acknowledged, sizeof(acknowledged), MSG_WAITALL);
    if (done != sizeof(acknowledged)) {
        count_failure(&result->failures, done < 0 ? errno : EPIPE);
    } else if (acknowledged != total) {
        count_failure(&result->failures, EPROTO);
    }
    result->seconds = (double)(now_ns() - mark) / 1e9;
    result->amount = total - sent_at_mark;
    result->amount_with_warm_up = total;
    close(fd);
}

void download(const struct sockaddr_in *to, struct span span, struct result *result)
{
    static char bytes[CHUNK];
    struct sink sink = {0};
    uint64_t received_at_mark = 0;
    int64_t mark = 0, now;
    bool stopped = false;
    int more = 1, fd = open_connection(to);
    const char start = DOWNLOAD, stop = LAST_BLOCK;

    if (fd < 0 || send(fd, &start, 1, MSG_NOSIGNAL) != 1) {
        count_failure(&result->failures, errno);
        return;
    }
    while (more == 1) {
        ssize_t got = recv(fd, bytes, sizeof(bytes), 0);

        if (got <= 0) {
            count_failure(&result->failures, got < 0 ? errno : EPIPE);
            break;
        }
        more = sink_take(&sink, bytes, (size_t)got, UPLOAD);
        now = now_ns();
        if (mark == 0 && now >= span.mark) {
            mark = now;
            received_at_mark = sink.received;
        }
        if (!stopped && now >= span.end) {
            /* What comes after this is under way already, and not counted. */
            stopped = true;
            result->seconds = (double)(now - mark) / 1e9;
            result->amount = sink.received - received_at_mark;
            if (send(fd, &stop, 1, MSG_NOSIGNAL) != 1) {
                count_failure(&result->failures, errno);
                break;
            }
        }
    }
    if (more < 0) {
        count_failure(&result->failures, EPROTO);
    }
    result->amount_with_warm_up = sink.received;
    close(fd);
}
