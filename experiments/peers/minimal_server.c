// minimal-server: the smallest honest echo server on epoll, the floor to measure others by.
//
// Edge-triggered: after a short read nothing is left, unless the event tells of an end of file
// (EPOLLRDHUP). What a client does not take is kept, and until it is gone nothing more is read.
// SIGTERM ends it (0); 1: a system call failed; 2: bad usage.
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { chunk = 65536, at_once = 512, most_files = 1 << 20 };
static const uint32_t reading = EPOLLIN | EPOLLRDHUP | EPOLLET;

static char* rests[most_files];  // by descriptor: what of its echo is unsent
static size_t left[most_files];
static int queue;
static char buffer[chunk];

static int checked(int result, const char* call) {
  if (result >= 0) return result;
  fprintf(stderr, "minimal-server: %s: %s\n", call, strerror(errno));
  exit(1);
}

static void watch(int operation, int fd, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  checked(epoll_ctl(queue, operation, fd, &event), "epoll_ctl");
}

// 0 when the connection is at its end.
static int echo(int fd, uint32_t events) {
  while (1) {
    char* const rest = rests[fd];
    char* const from = rest ? rest : buffer;
    const ssize_t size = rest ? (ssize_t)left[fd] : recv(fd, buffer, chunk, 0);
    if (size <= 0) return size < 0 && errno == EAGAIN;
    const ssize_t sent = send(fd, from, (size_t)size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return 0;
    if (sent < size) {
      if (!rest && (rests[fd] = malloc(chunk)) == NULL) checked(-1, "malloc");
      left[fd] = (size_t)(sent < 0 ? size : size - sent);
      memmove(rests[fd], from + size - left[fd], left[fd]);
      if (!rest) watch(EPOLL_CTL_MOD, fd, EPOLLOUT | EPOLLET);
      return 1;
    }
    if (!rest && size < chunk && events == EPOLLIN) return 1;
    free(rest);
    rests[fd] = NULL;
    if (rest) watch(EPOLL_CTL_MOD, fd, reading);
  }
}

static void end(int signal) {
  _exit(signal < 0);
}

int main(int argc, char** argv) {
  if (argc > 1) return fprintf(stderr, "minimal-server: '%s': takes nothing\n", argv[1]), 2;
  struct rlimit limit;
  checked(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
  limit.rlim_cur = limit.rlim_max < most_files ? limit.rlim_max : most_files;
  checked(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  const int listener = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  checked(bind(listener, (struct sockaddr*)&address, size), "bind");
  checked(listen(listener, 4096), "listen");
  checked(getsockname(listener, (struct sockaddr*)&address, &size), "getsockname");
  queue = checked(epoll_create1(0), "epoll_create1");
  watch(EPOLL_CTL_ADD, listener, EPOLLIN);
  signal(SIGTERM, end);
  printf("listening 127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (struct epoll_event events[at_once];;) {
    const int count = epoll_wait(queue, events, at_once, -1);
    if (count < 0 && errno != EINTR) checked(count, "epoll_wait");
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd != listener) {
        if (echo(fd, events[i].events)) continue;
        free(rests[fd]);
        rests[fd] = NULL;
        close(fd);
        continue;
      }
      while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
        watch(EPOLL_CTL_ADD, fd, reading);
      if (errno != EAGAIN && errno != ECONNABORTED) checked(-1, "accept4");
    }
  }
}
