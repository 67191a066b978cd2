// minimal-client 127.0.0.1:PORT CONNECTIONS SECONDS: the smallest honest crr load on epoll, the floor
// for c10k-client. Each slot connects from one of 16 addresses, sends a fresh time of 20 digits,
// compares the echo byte for byte, closes, and begins anew. Left out: timeouts per connection,
// latencies, kinds of failure. A slot that fails rests; all open ones failed when nothing moves for
// 5 s. Exit code 0; 1: a connection or a system call failed; 2: bad usage.
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { stamp_size = 20, sources = 16, at_once = 512, silence_ms = 5000, most_slots = 10000 };
static struct slot {
  int fd, sent, got;
  char stamp[stamp_size];
} slots[most_slots];
static struct sockaddr_in target;
static int queue;
static unsigned turn;
static long deadline, last_stamp, open_now, echoed, faults;
static char buffer[65536];

static int checked(int result, const char* call) {
  if (result >= 0) return result;
  fprintf(stderr, "minimal-client: %s: %s\n", call, strerror(errno));
  exit(1);
}

static long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000 + now.tv_nsec;
}

static void start(struct slot* slot) {
  const long now = now_ns();
  if (now >= deadline) return;
  slot->fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  slot->got = 0;
  struct sockaddr_in source = {AF_INET, 0, {htonl(INADDR_LOOPBACK + turn++ % sources)}, {0}};
  checked(setsockopt(slot->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, 4), "setsockopt");
  checked(bind(slot->fd, (struct sockaddr*)&source, sizeof source), "bind");
  const int failed = connect(slot->fd, (struct sockaddr*)&target, sizeof target);
  if (failed && errno != EINPROGRESS) checked(failed, "connect");
  long stamp = last_stamp = now > last_stamp ? now : last_stamp + 1;
  for (int i = stamp_size - 1; i >= 0; --i, stamp /= 10) slot->stamp[i] = (char)('0' + stamp % 10);
  // On loopback the handshake is over when connect returns; where it is not, writability tells.
  slot->sent = send(slot->fd, slot->stamp, stamp_size, MSG_NOSIGNAL) == stamp_size;
  const uint32_t events = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | (slot->sent ? 0 : EPOLLOUT);
  struct epoll_event event = {.events = events, .data.ptr = slot};
  checked(epoll_ctl(queue, EPOLL_CTL_ADD, slot->fd, &event), "epoll_ctl");
  ++open_now;
}

static void go_on(struct slot* slot) {
  if (!slot->sent) slot->sent = send(slot->fd, slot->stamp, stamp_size, MSG_NOSIGNAL) == stamp_size;
  const ssize_t size = recv(slot->fd, buffer, sizeof buffer, 0);
  if (size < 0 && errno == EAGAIN) return;
  const int right = size > 0 && size <= stamp_size - slot->got &&
                    memcmp(buffer, slot->stamp + slot->got, (size_t)size) == 0;
  if (right && (slot->got += (int)size) < stamp_size) return;
  close(slot->fd);
  --open_now;
  ++*(right ? &echoed : &faults);
  if (right) start(slot);
}

int main(int argc, char** argv) {
  unsigned short port;
  double count, seconds;
  if (argc != 4 || sscanf(argv[1], "127.0.0.1:%hu", &port) != 1 ||
      !((count = atof(argv[2])) >= 1 && count <= most_slots && (seconds = atof(argv[3])) > 0))
    return fputs("minimal-client: allowed: 127.0.0.1:PORT 1-10000 SECONDS\n", stderr), 2;
  target = (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
  queue = checked(epoll_create1(0), "epoll_create1");
  const long begin = now_ns();
  deadline = begin + (long)(seconds * 1e9);
  struct epoll_event ready[at_once];
  for (int i = 0; i < count; ++i) start(&slots[i]);
  while (open_now > 0) {
    const int events = epoll_wait(queue, ready, at_once, silence_ms);
    if (events < 0 && errno != EINTR) checked(events, "epoll_wait");
    for (int i = 0; i < events; ++i) go_on(ready[i].data.ptr);
    if (events == 0) faults += open_now, open_now = 0;
  }
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  const struct timeval user = used.ru_utime, system = used.ru_stime;
  printf("{\"connections\": %ld, \"elapsed_s\": %.6f, ", echoed, (double)(now_ns() - begin) / 1e9);
  printf("\"user_us\": %ld, ", user.tv_sec * 1000000 + user.tv_usec);
  printf("\"system_us\": %ld, ", system.tv_sec * 1000000 + system.tv_usec);
  printf("\"faults\": %ld}\n", faults);
  return faults > 0;
}
