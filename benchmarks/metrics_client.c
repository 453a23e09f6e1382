/* A RecordMetrics stream that costs as little as possible: metrics_client HOST PORT

   It speaks just enough HTTP/2 to open the stream, never holds the server up (windows of 2 GiB), and counts messages
   without looking into them. "ready" when the server has the stream; after that each line on stdin is answered with
   the number of messages so far. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DATA, HEADERS, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum { ACK = 1, END_STREAM = 1, END_HEADERS = 4 };

static int server;
static unsigned long messages;
static unsigned char prefix[5]; /* of a message: a flag and the size */
static size_t prefix_size, message_left;

static void fail(const char *what)
{
    fprintf(stderr, "metrics_client: %s\n", what);
    exit(1);
}

static void send_frame(int type, int flags, uint32_t stream, const void *payload, size_t size)
{
    unsigned char frame[512] = {size >> 16, size >> 8, size, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    memcpy(frame + 9, payload, size);
    if (send(server, frame, 9 + size, MSG_NOSIGNAL) != (ssize_t)(9 + size)) fail("cannot send");
}

static size_t add_header(unsigned char *at, const char *name, const char *value)
{
    size_t n = strlen(name), v = strlen(value);
    at[0] = 0; /* a literal that is not to be remembered (RFC 7541, 6.2.2), no Huffman code */
    at[1] = n;
    memcpy(at + 2, name, n);
    at[2 + n] = v;
    memcpy(at + 3 + n, value, v);
    return 3 + n + v;
}

static void open_stream(void)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    static const unsigned char window[] = {0, 4, 0x7f, 0xff, 0xff, 0xff}; /* SETTINGS_INITIAL_WINDOW_SIZE */
    static const unsigned char more[] = {0x7f, 0xff, 0, 0};
    unsigned char headers[256], empty_message[5] = {0};
    size_t size = 0;
    if (send(server, preface, sizeof(preface) - 1, MSG_NOSIGNAL) < 0) fail("cannot send");
    send_frame(SETTINGS, 0, 0, window, sizeof(window));
    send_frame(WINDOW_UPDATE, 0, 0, more, sizeof(more));
    size += add_header(headers + size, ":method", "POST");
    size += add_header(headers + size, ":scheme", "http");
    size += add_header(headers + size, ":path", "/argus.Argusd/RecordMetrics");
    size += add_header(headers + size, ":authority", "localhost");
    size += add_header(headers + size, "te", "trailers");
    size += add_header(headers + size, "content-type", "application/grpc");
    send_frame(HEADERS, END_HEADERS, 1, headers, size);
    send_frame(DATA, END_STREAM, 1, empty_message, sizeof(empty_message));
}

static void count_messages(const unsigned char *at, size_t size)
{
    while (size) {
        if (message_left) {
            size_t step = message_left < size ? message_left : size;
            message_left -= step;
            at += step;
            size -= step;
        } else {
            prefix[prefix_size++] = *at++;
            size--;
            if (prefix_size < sizeof(prefix)) continue;
            prefix_size = 0;
            message_left = prefix[1] << 24 | prefix[2] << 16 | prefix[3] << 8 | prefix[4];
            messages++;
        }
    }
}

static void take_frame(const unsigned char *frame, size_t size)
{
    static int open;
    int type = frame[3], flags = frame[4];
    if (type == DATA) {
        count_messages(frame + 9, size);
    } else if (type == HEADERS) {
        if (open) fail("the server has ended the stream");
        open = 1;
        puts("ready");
        fflush(stdout);
    } else if (type == SETTINGS && !(flags & ACK)) {
        send_frame(SETTINGS, ACK, 0, "", 0);
    } else if (type == PING && !(flags & ACK)) {
        send_frame(PING, ACK, 0, frame + 9, 8);
    } else if (type == RST_STREAM || type == GOAWAY) {
        fail("the server refuses");
    }
}

static void take(void)
{
    static unsigned char buffer[1 << 20];
    static size_t filled;
    size_t at = 0, size;
    ssize_t n = read(server, buffer + filled, sizeof(buffer) - filled);
    if (n <= 0) fail("the server has closed the connection");
    filled += n;
    while (filled - at >= 9) {
        size = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2];
        if (filled - at < 9 + size) break;
        take_frame(buffer + at, size);
        at += 9 + size;
    }
    memmove(buffer, buffer + at, filled - at);
    filled -= at;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct pollfd sources[2] = {{0, POLLIN, 0}, {0, POLLIN, 0}};
    char asked[16];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) fail("HOST PORT");
    address.sin_port = htons(atoi(argv[2]));
    server = sources[1].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(server, (struct sockaddr *)&address, sizeof(address)) != 0) fail("cannot connect");
    open_stream();
    for (;;) {
        poll(sources, 2, -1);
        if (sources[1].revents) take();
        if (sources[0].revents) {
            if (read(0, asked, sizeof(asked)) <= 0) return 0;
            printf("%lu\n", messages);
            fflush(stdout);
        }
    }
}
