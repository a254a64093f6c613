/* The golden server for benchmarks of the client: streams completions on a schedule and logs when each
 * write was really handed to the kernel. One thread, epoll, nothing allocated while it runs a stream.
 *
 *   cc -O2 -o golden golden.c && ./golden --ttft-us 50000 --gap-us 20000 --log times.txt
 *
 * Prints its port. A request is a POST with Content-Length; `max_tokens` is read from its body, prompt
 * tokens are the numbers of a `"prompt":[…]`. Tokens are made up, one a chunk. What is due at the same
 * moment is one write. SIGTERM writes the log: a line a request, in order of arrival,
 *   request-id received_mono_ns chunks send_mono_ns...
 * where received is the kernel's arrival time of the request's last byte. The reply to line N (from 0)
 * has the id cmpl-<N as 16 hex digits>, for clients that name no request themselves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 16384
#define ID_BYTES 80
#define BLOCK (1 << 20)

typedef struct {
    char id[ID_BYTES];
    int64_t received_ns;
    int chunks;
    int64_t *sent_ns; /* one a chunk */
} Request;

typedef struct {
    int open, heap_at; /* heap_at: place in the heap of waiting streams, -1 when not waiting */
    char *in;
    size_t in_bytes, in_room;
    int64_t due_ns, received_ns;
    int tokens, sent, prompt_tokens;
    long request; /* index into requests, -1 while none is answered */
} Connection;

static Connection connections[MAX_CONNECTIONS];
static int heap[MAX_CONNECTIONS], heap_count;
static Request *requests;
static long request_count, request_room;
static int64_t ttft_ns = 0, gap_ns = 0;
static int stringy_prompt_tokens = 128;
static volatile sig_atomic_t stopping;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *grown(void *array, size_t bytes) {
    array = realloc(array, bytes);
    if (!array) die("realloc");
    return array;
}

/* --- a binary heap of connections by due_ns --- */

static void place(int at, int fd) {
    heap[at] = fd;
    connections[fd].heap_at = at;
}

static void sift(int at) {
    int fd = heap[at];
    int64_t due = connections[fd].due_ns;
    while (at > 0 && connections[heap[(at - 1) / 2]].due_ns > due) {
        place(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && connections[heap[child + 1]].due_ns < connections[heap[child]].due_ns)
            child++;
        if (connections[heap[child]].due_ns >= due) break;
        place(at, heap[child]);
        at = child;
    }
    place(at, fd);
}

static void wait_for(int fd) {
    if (connections[fd].heap_at < 0) place(heap_count++, fd);
    sift(connections[fd].heap_at);
}

static void stop_waiting(int fd) {
    int at = connections[fd].heap_at;
    if (at < 0) return;
    connections[fd].heap_at = -1;
    if (at != --heap_count) {
        place(at, heap[heap_count]);
        sift(at);
    }
}

/* --- connections --- */

static void hang_up(int fd) {
    stop_waiting(fd);
    close(fd);
    connections[fd].open = 0;
}

static void write_all(int fd, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) continue; /* a bench client reads */
        if (sent < 0) return;
        data += sent;
        bytes -= sent;
    }
}

static size_t chunk(char *out, const char *data, size_t bytes) {
    size_t head = sprintf(out, "%zx\r\n", bytes);
    memcpy(out + head, data, bytes);
    memcpy(out + head + bytes, "\r\n", 2);
    return head + bytes + 2;
}

static size_t token_event(char *out, Connection *c) {
    char data[512];
    int last = c->sent == c->tokens;
    size_t bytes = sprintf(
        data,
        "data: {\"id\":\"cmpl-%016lx\",\"object\":\"text_completion\",\"created\":1790000000,"
        "\"model\":\"golden\",\"choices\":[{\"index\":0,\"text\":\" tok%d\",\"logprobs\":null,"
        "\"finish_reason\":%s,\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":%d,"
        "\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
        c->request, c->sent, last ? "\"length\"" : "null", c->prompt_tokens, c->prompt_tokens + c->sent, c->sent);
    return chunk(out, data, bytes);
}

static size_t ending(char *out, Connection *c) {
    char data[512];
    size_t bytes = sprintf(
        data,
        "data: {\"id\":\"cmpl-%016lx\",\"object\":\"text_completion\",\"created\":1790000000,"
        "\"model\":\"golden\",\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,"
        "\"completion_tokens\":%d}}\n\n",
        c->request, c->prompt_tokens, c->prompt_tokens + c->tokens, c->tokens);
    size_t out_bytes = chunk(out, data, bytes);
    out_bytes += chunk(out + out_bytes, "data: [DONE]\n\n", 14);
    memcpy(out + out_bytes, "0\r\n\r\n", 5);
    return out_bytes + 5;
}

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 07:48:12 GMT\r\nserver: uvicorn\r\n"
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/* Send what is due of a stream: one token, or all when there is no gap. */
static void send_due(int fd) {
    static char out[BLOCK];
    Connection *c = &connections[fd];
    size_t bytes = 0;
    int64_t now = now_ns(CLOCK_MONOTONIC);
    if (c->sent == 0) {
        memcpy(out, HEAD, sizeof HEAD - 1);
        bytes = sizeof HEAD - 1;
    }
    do {
        c->sent++;
        bytes += token_event(out + bytes, c);
        requests[c->request].sent_ns[c->sent - 1] = now;
        requests[c->request].chunks = c->sent;
        c->due_ns += gap_ns;
    } while (c->sent < c->tokens && !gap_ns && bytes < BLOCK - 2048);
    if (c->sent < c->tokens) {
        write_all(fd, out, bytes);
        wait_for(fd);
        return;
    }
    if (gap_ns) { /* the last token alone, as vLLM sends it, then usage and the end */
        write_all(fd, out, bytes);
        bytes = 0;
    }
    bytes += ending(out + bytes, c);
    write_all(fd, out, bytes);
    stop_waiting(fd);
    c->request = -1;
}

/* --- requests --- */

static int number_after(const char *body, size_t bytes, const char *key, int otherwise) {
    const char *found = memmem(body, bytes, key, strlen(key));
    return found ? atoi(found + strlen(key)) : otherwise;
}

/* Numbers in the prompt's list of token ids; a prompt of text counts as a fixed number of tokens. */
static int count_prompt(const char *body, size_t bytes) {
    const char *list = memmem(body, bytes, "\"prompt\":", 9);
    if (!list) return stringy_prompt_tokens;
    list += 9;
    while (*list == ' ') list++;
    if (*list != '[') return stringy_prompt_tokens;
    const char *end = memchr(list, ']', body + bytes - list);
    int count = 1;
    for (const char *at = list; at < end; at++) count += *at == ',';
    return count;
}

static void answer(int fd, const char *head, size_t head_bytes, const char *body, size_t body_bytes) {
    Connection *c = &connections[fd];
    if (request_count == request_room) {
        request_room += 65536;
        requests = grown(requests, request_room * sizeof *requests);
    }
    Request *r = &requests[request_count];
    memset(r, 0, sizeof *r);
    strcpy(r->id, "-");
    for (size_t i = 0; i + 16 < head_bytes; i++)
        if (head[i] == '\n' && !strncasecmp(head + i + 1, "x-request-id: ", 14))
            sscanf(head + i + 15, "%79[^\r\n]", r->id);
    r->received_ns = c->received_ns;
    c->tokens = number_after(body, body_bytes, "\"max_tokens\":", 16);
    if (c->tokens < 1) c->tokens = 1;
    c->prompt_tokens = count_prompt(body, body_bytes);
    c->sent = 0;
    c->request = request_count++;
    r->sent_ns = grown(NULL, c->tokens * sizeof(int64_t));
    c->due_ns = c->received_ns + ttft_ns;
    if (ttft_ns)
        wait_for(fd);
    else
        send_due(fd);
}

static void answer_get(int fd, const char *head) {
    const char *body = strncmp(head, "GET /v1/models", 14)
        ? ""
        : "{\"object\":\"list\",\"data\":[{\"id\":\"golden\",\"object\":\"model\","
          "\"root\":\"golden\",\"max_model_len\":1000000}]}";
    char out[1024];
    int bytes = sprintf(
        out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
        strlen(body), body);
    write_all(fd, out, bytes);
}

static size_t content_length(const char *head, size_t head_bytes) {
    for (size_t i = 0; i + 17 < head_bytes; i++)
        if (head[i] == '\n' && !strncasecmp(head + i + 1, "content-length:", 15))
            return strtoul(head + i + 16, NULL, 10);
    return 0;
}

/* Read what has come; a whole request is answered. The kernel's arrival time is that of the last read. */
static void receive(int fd) {
    Connection *c = &connections[fd];
    if (c->in_bytes + 65536 > c->in_room) {
        c->in_room = 2 * c->in_room + 262144;
        c->in = grown(c->in, c->in_room + 1);
    }
    char control[64];
    struct iovec piece = {c->in + c->in_bytes, c->in_room - c->in_bytes};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &message, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        hang_up(fd);
        return;
    }
    int64_t now = now_ns(CLOCK_MONOTONIC);
    c->received_ns = now;
    struct cmsghdr *note = CMSG_FIRSTHDR(&message);
    if (note && note->cmsg_type == SO_TIMESTAMPNS) {
        struct timespec t;
        memcpy(&t, CMSG_DATA(note), sizeof t);
        c->received_ns = now - (now_ns(CLOCK_REALTIME) - (t.tv_sec * 1000000000LL + t.tv_nsec));
    }
    c->in_bytes += got;
    c->in[c->in_bytes] = 0;
    char *head_end = memmem(c->in, c->in_bytes, "\r\n\r\n", 4);
    if (!head_end || c->request >= 0) return;
    size_t head_bytes = head_end + 4 - c->in;
    size_t body_bytes = content_length(c->in, head_bytes);
    if (c->in_bytes < head_bytes + body_bytes) return;
    c->in_bytes = 0; /* one request at a time: nothing follows it */
    if (c->in[0] == 'G')
        answer_get(fd, c->in);
    else
        answer(fd, c->in, head_bytes, c->in + head_bytes, body_bytes);
}

static void accept_all(int listener, int poll) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        Connection *c = &connections[fd];
        c->open = 1;
        c->in_bytes = 0;
        c->heap_at = -1;
        c->request = -1;
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &wanted);
    }
}

static void write_log(const char *path) {
    FILE *log = path ? fopen(path, "w") : NULL;
    if (!log) return;
    for (long i = 0; i < request_count; i++) {
        Request *r = &requests[i];
        fprintf(log, "%s %lld %d", r->id, (long long)r->received_ns, r->chunks);
        for (int k = 0; k < r->chunks; k++) fprintf(log, " %lld", (long long)r->sent_ns[k]);
        fputc('\n', log);
    }
    fclose(log);
}

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

int main(int argc, char **argv) {
    const char *log = NULL;
    int port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--ttft-us")) ttft_ns = atoll(argv[i + 1]) * 1000;
        else if (!strcmp(argv[i], "--gap-us")) gap_ns = atoll(argv[i + 1]) * 1000;
        else if (!strcmp(argv[i], "--prompt-tokens")) stringy_prompt_tokens = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--log")) log = argv[i + 1];
        else return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted);
    while (!stopping) {
        struct timespec wait = {0, 100000000};
        if (heap_count) {
            int64_t left = connections[heap[0]].due_ns - now_ns(CLOCK_MONOTONIC);
            if (left < 0) left = 0;
            if (left < wait.tv_nsec) wait.tv_nsec = left;
        }
        int count = epoll_pwait2(poll, events, 512, &wait, NULL);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener) accept_all(listener, poll);
            else if (connections[events[i].data.fd].open) receive(events[i].data.fd);
        }
        int64_t now = now_ns(CLOCK_MONOTONIC);
        for (int budget = 64; budget && heap_count && connections[heap[0]].due_ns <= now; budget--)
            send_due(heap[0]);
    }
    write_log(log);
    return 0;
}
