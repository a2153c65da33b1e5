/* MOSNHOOK_LOG: a line for each decision, formatted by hand, as printf may take locks. */
#include <errno.h>

#include "mosnhook.h"
#include "sys.h"

enum { LINE_SIZE = 256 };

struct line {
    char text[LINE_SIZE];
    size_t size;
};

static void put_char(struct line *line, char character)
{
    if (line->size < sizeof line->text)
        line->text[line->size++] = character;
}

static void put_text(struct line *line, const char *text, size_t limit)
{
    for (size_t i = 0; i < limit && text[i]; i++)
        put_char(line, text[i]);
}

static void put_number(struct line *line, unsigned number, unsigned base)
{
    if (number >= base)
        put_number(line, number / base, base);
    put_char(line, "0123456789abcdef"[number % base]);
}

static void put_address(struct line *line, const struct mosnhook_address *address)
{
    const uint8_t *ip = address->ip;

    if (address_is_ipv4(address)) {
        for (int i = 12; i < 16; i++) {
            put_number(line, ip[i], 10);
            put_char(line, i < 15 ? '.' : ':');
        }
    } else {
        put_char(line, '[');
        for (int i = 0; i < 16; i += 2) {
            put_number(line, (unsigned)ip[i] << 8 | ip[i + 1], 16);
            put_char(line, i < 14 ? ':' : ']');
        }
        put_char(line, ':');
    }
    put_number(line, address->port, 10);
}

static void put_result(struct line *line, int result)
{
    if (result == 0)
        put_text(line, "connected", LINE_SIZE);
    else if (result == OUTCOME_NOT_OURS || result == OUTCOME_DIRECT)
        put_text(line, "direct", LINE_SIZE);
    else if (result == EINPROGRESS)
        put_text(line, "in progress", LINE_SIZE);
    else {
        put_text(line, "errno ", LINE_SIZE);
        put_number(line, (unsigned)result, 10);
    }
}

/* The whole line in one write, so that lines of several processes do not mix. */
static void write_line(const struct line *line)
{
    const char *target = environment.log;
    unsigned number = 0;
    int fd;

    for (const char *at = target; *at >= '0' && *at <= '9' && number < 1000000; at++) {
        number = number * 10 + (unsigned)(*at - '0');
        if (!at[1]) {
            sys_write((int)number, line->text, line->size);
            return;
        }
    }
    if (text_equal(target, "stderr")) {
        sys_write(2, line->text, line->size);
        return;
    }
    fd = sys_open(target, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
    if (fd >= 0) {
        sys_write(fd, line->text, line->size);
        sys_close(fd);
    }
}

void log_decision(const struct mosnhook_address *destination, const char *what, int result)
{
    struct line line;

    if (!environment.log)
        return;
    line.size = 0;
    put_text(&line, "mosnhook[", LINE_SIZE);
    put_number(&line, (unsigned)sys_getpid(), 10);
    put_text(&line, "] ", LINE_SIZE);
    put_text(&line, environment.command, sizeof environment.command);
    put_text(&line, ": ", LINE_SIZE);
    put_address(&line, destination);
    put_char(&line, ' ');
    put_text(&line, what, LINE_SIZE);
    put_text(&line, ": ", LINE_SIZE);
    put_result(&line, result);
    if (line.size == sizeof line.text)
        line.size--;
    put_char(&line, '\n');
    write_line(&line);
}
