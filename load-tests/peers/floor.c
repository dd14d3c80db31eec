/* The floor: the least program that can do the work. One thread, epoll; reads PUBLISH from Redis,
 * renders an event once, one write() for each subscriber. No buffering: whoever cannot take an event
 * is cut off. Measures what the kernel costs, so that a gateway can be compared with it.
 *
 * floor PORT REDIS_PORT        (both on 127.0.0.1; streams at GET /events/{channel}; prefix "sse:")
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PREFIX "sse:"
#define MAX_FDS (1 << 20)
#define TABLE (1 << 16)
#define INPUT (4 << 20)

struct channel {
  struct channel *next;
  int *subscribers;
  int count, room;
  char name[];
};

static struct channel *table[TABLE];
static struct channel *subscribed[MAX_FDS]; /* by descriptor */
static int place[MAX_FDS];                  /* where in its channel's subscribers */
static char input[INPUT], event[INPUT + 16];
static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                           "cache-control: no-store\r\nconnection: close\r\n\r\n:\n\n";

static void die(const char *what) {
  perror(what);
  exit(1);
}

static struct channel *find(const char *name, size_t length, int create) {
  unsigned hash = 2166136261u;
  for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
  struct channel **slot = &table[hash % TABLE];
  for (struct channel *c = *slot; c; c = c->next)
    if (strlen(c->name) == length && !memcmp(c->name, name, length)) return c;
  if (!create) return NULL;
  struct channel *c = calloc(1, sizeof *c + length + 1);
  if (!c) die("calloc");
  memcpy(c->name, name, length);
  c->next = *slot;
  return *slot = c;
}

static void drop(int fd) {
  struct channel *c = subscribed[fd];
  if (c) {
    int last = c->subscribers[--c->count];
    c->subscribers[place[fd]] = last;
    place[last] = place[fd];
    subscribed[fd] = NULL;
  }
  close(fd);
}

/* A request comes in one piece from the clients this is measured with; then only the end is awaited. */
static void readable(int fd) {
  static char request[8192];
  ssize_t n = read(fd, request, sizeof request - 1);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) return drop(fd);
  if (subscribed[fd]) return;
  request[n] = 0;
  char *name = request + strlen("GET /events/");
  if (strncmp(request, "GET /events/", strlen("GET /events/"))) return drop(fd);
  struct channel *c = find(name, strcspn(name, " ?"), 1);
  if (c->count == c->room) {
    c->room = c->room ? 2 * c->room : 1;
    c->subscribers = realloc(c->subscribers, (size_t)c->room * sizeof(int));
    if (!c->subscribers) die("realloc");
  }
  place[fd] = c->count;
  c->subscribers[c->count++] = fd;
  subscribed[fd] = c;
  if (write(fd, head, sizeof head - 1) != sizeof head - 1) drop(fd);
}

static void publish(const char *channel, size_t channel_length, const char *data, size_t length) {
  size_t prefix = strlen(PREFIX);
  struct channel *c = find(channel + prefix, channel_length - prefix, 0);
  if (!c) return;
  memcpy(event, "data: ", 6);
  memcpy(event + 6, data, length);
  memcpy(event + 6 + length, "\n\n", 2);
  ssize_t size = (ssize_t)length + 8;
  for (int i = c->count - 1; i >= 0; i--)
    if (write(c->subscribers[i], event, (size_t)size) != size) drop(c->subscribers[i]);
}

/* One "$length\r\ntext\r\n"; NULL when it is not complete yet. */
static const char *bulk(const char **at, const char *end, size_t *length) {
  const char *line = memchr(*at, '\n', (size_t)(end - *at));
  if (!line) return NULL;
  *length = strtoul(*at + 1, NULL, 10);
  if ((size_t)(end - line - 1) < *length + 2) return NULL;
  *at = line + 1 + *length + 2;
  return line + 1;
}

/* "*4 pmessage PATTERN CHANNEL DATA", and once "*3 psubscribe PATTERN :1". Returns the bytes consumed. */
static size_t messages(const char *begin, const char *end) {
  const char *at = begin;
  for (;;) {
    const char *p = at, *part[4];
    size_t length[4];
    const char *line = memchr(p, '\n', (size_t)(end - p));
    if (!line) return (size_t)(at - begin);
    int parts = atoi(p + 1), i;
    p = line + 1;
    for (i = 0; i < parts && i < 4; i++) {
      if (p < end && *p == ':') {
        line = memchr(p, '\n', (size_t)(end - p));
        if (!line) return (size_t)(at - begin);
        p = line + 1;
      } else if (p >= end || !(part[i] = bulk(&p, end, &length[i]))) {
        return (size_t)(at - begin);
      }
    }
    if (parts == 4) publish(part[2], length[2], part[3], length[3]);
    at = p;
  }
}

static struct sockaddr_in local(const char *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: floor PORT REDIS_PORT\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  int one = 1, queue = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int redis = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = local(argv[2]);
  if (connect(redis, (struct sockaddr *)&address, sizeof address)) die("redis");
  if (dprintf(redis, "PSUBSCRIBE " PREFIX "*\r\n") < 0) die("redis");
  address = local(argv[1]);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 65535)) die("listen");
  struct epoll_event interest = {.events = EPOLLIN, .data.fd = listener}, ready[1024];
  epoll_ctl(queue, EPOLL_CTL_ADD, listener, &interest);
  interest.data.fd = redis;
  epoll_ctl(queue, EPOLL_CTL_ADD, redis, &interest);
  size_t held = 0;
  for (;;) {
    int count = epoll_wait(queue, ready, 1024, -1);
    for (int i = 0; i < count; i++) {
      int fd = ready[i].data.fd;
      if (fd == listener) {
        while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          if (fd >= MAX_FDS) {
            close(fd);
            continue;
          }
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          interest = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
          epoll_ctl(queue, EPOLL_CTL_ADD, fd, &interest);
        }
      } else if (fd == redis) {
        ssize_t n = read(redis, input + held, INPUT - held);
        if (n <= 0) die("redis");
        held += (size_t)n;
        size_t used = messages(input, input + held);
        memmove(input, input + used, held -= used);
      } else {
        readable(fd);
      }
    }
  }
}
