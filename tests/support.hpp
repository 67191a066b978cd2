// Support for tests: connections over loopback, children that are always reaped, counts of descriptors.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "ipc/handoff.hpp"
#include "ipc/process.hpp"
#include "ipc/registry.hpp"
#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

namespace c10k::testing {

/// How long anything may take that is expected to happen at once. A bound for broken code, not a
/// wait.
inline constexpr int patience_ms = 20'000;
inline constexpr std::int64_t patience_ns = std::int64_t{patience_ms} * 1'000'000;

inline std::size_t open_descriptors() {
  const auto folder = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(folder), end(folder)));
}

/// Waits until `fd` is readable; false when the patience ends.
inline bool wait_readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return retry_eintr([&] { return ::poll(&entry, 1, patience_ms); }) == 1;
}

/// A TCP connection over loopback: the client's blocking end and the accepted, non-blocking one.
struct TcpPair {
  OwnedFd client;
  OwnedFd accepted;
};

inline OwnedFd connect_to(const SocketAddress& address) {
  OwnedFd client(
      checked([&] { return ::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket"));
  const timeval patience{patience_ms / 1000, 0};
  ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  checked([&] { return ::connect(client.get(), address.data(), address.size()); }, "connect {}",
          address.text());
  return client;
}

inline TcpPair tcp_pair() {
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 1});
  TcpPair pair;
  pair.client = connect_to(SocketAddress::local(listener.get()));
  EXPECT_TRUE(wait_readable(listener.get()));
  pair.accepted = OwnedFd(checked(
      [&] { return ::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); },
      "accept4"));
  return pair;
}

inline void send_text(int fd, std::string_view text) {
  ASSERT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

/// Reads until `size` bytes or the end have come.
/// One message with descriptors beside it; as sendmsg(2) returns.
inline ssize_t send_with_descriptors(int socket, std::span<const std::byte> bytes,
                                     std::span<const int> fds, int flags = 0) {
  iovec data{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(fds.size_bytes());
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size_bytes());
  std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  return ::sendmsg(socket, &message, flags);
}

inline std::string read_text(int fd, std::size_t size) {
  std::string text(size, '\0');
  std::size_t got = 0;
  while (got < size) {
    if (!wait_readable(fd)) break;
    const ssize_t n = ::recv(fd, text.data() + got, size - got, 0);
    if (n <= 0) break;
    got += static_cast<std::size_t>(n);
  }
  text.resize(got);
  return text;
}

/// Waits for the end of the connection, orderly or by a reset: true when it comes, false for a byte or
/// the patience's end.
inline bool ends(int fd) {
  char byte = 0;
  if (!wait_readable(fd)) return false;
  const ssize_t got = ::recv(fd, &byte, 1, 0);
  return got == 0 || (got < 0 && errno == ECONNRESET);
}

using Slots = std::array<Received, receive_room>;

/// In the worker: lets a source that its connections live on move their bytes, until `done`; false when
/// the patience ends. Nothing may arrive meanwhile.
inline bool attend_until(ConnectionSource& source, const std::function<bool()>& done) {
  Slots slots;
  while (!done()) {
    if (!wait_readable(source.fd())) return false;
    const ReceiveResult result = source.receive(slots);
    if (result.received + result.refused != 0) return false;
    if (result.state == Channel::closed) return done();
  }
  return true;
}

/// In the worker: read_text() from a connection that may live on its source.
inline std::string read_text(ConnectionSource& source, int fd, std::size_t size) {
  std::string text(size, '\0');
  const auto all = [&] {
    return ::recv(fd, text.data(), size, MSG_PEEK) == static_cast<ssize_t>(size);
  };
  if (source.in_use() && !attend_until(source, all)) return {};
  return read_text(fd, size);
}

/// A worker process that runs `body` on its end of a link, and the acceptor's end of it here.
/// `body` reports by its exit code (0: well) and by bytes on its `control` socket.
class LinkedWorker {
 public:
  using Body = std::function<int(ConnectionSource& source, int control)>;

  LinkedWorker(const ConfiguredMethod& method, const LinkRequest& request, const Body& body) {
    const auto link = method.method->open(request);
    auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
    std::vector<int> keep = link->worker_descriptors();
    keep.push_back(theirs.get());
    child_ = ChildProcess::fork(
        [&] {
          const auto source = link->worker_end();
          const int code = body(*source, theirs.get());
          return attend_until(*source, [&] { return !source->in_use(); }) ? code : 100;
        },
        keep, SIGKILL, method.entry->shared_table ? Table::shared : Table::own);
    link->leave_to_worker(std::move(theirs));
    control_ = std::move(ours);
    sink_ = link->acceptor_end(child_.pidfd());
  }
  ~LinkedWorker() {
    // As in the server: the sink outlives its worker.
    child_.signal(SIGKILL);
    (void)exit_code();
  }
  LinkedWorker(const LinkedWorker&) = delete;
  LinkedWorker& operator=(const LinkedWorker&) = delete;

  [[nodiscard]] ConnectionSink& sink() { return *sink_; }
  [[nodiscard]] bool has_sink() const { return sink_ != nullptr; }
  void drop_sink() { sink_.reset(); }
  [[nodiscard]] ChildProcess& child() { return child_; }
  [[nodiscard]] int control() const { return control_.get(); }
  void tell(char what) { ASSERT_EQ(::send(control_.get(), &what, 1, MSG_NOSIGNAL), 1); }
  /// The child's next byte; 0 when it ended or the patience did.
  char hear() {
    char what = 0;
    if (!wait_attending(control_.get()) || ::recv(control_.get(), &what, 1, 0) != 1) return 0;
    return what;
  }
  /// read_text() from a client whose bytes the sink may have to move.
  std::string read_client(int fd, std::size_t size) {
    std::string text;
    while (text.size() < size && wait_attending(fd)) {
      const std::string more = read_text(fd, 1);
      if (more.empty()) break;
      text += more;
    }
    return text;
  }
  /// ends() for such a client.
  bool client_ends(int fd) { return wait_attending(fd) && ends(fd); }
  [[nodiscard]] int exit_code() {
    if (!child_.running() || !wait_attending(child_.pidfd())) return -1;
    const ChildExit exit = child_.wait();
    return WIFEXITED(exit.status) ? WEXITSTATUS(exit.status) : 128 + WTERMSIG(exit.status);
  }

  /// Waits as wait_readable() and does meanwhile what the sink must do, as the acceptor's loop would.
  bool wait_attending(int fd, int most_ms = patience_ms, short events = POLLIN) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(most_ms);
    while (true) {
      const int attention = sink_ ? sink_->attention_fd() : -1;
      std::array<pollfd, 2> entries{{{fd, events, 0}, {attention, POLLIN, 0}}};
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      if (left.count() < 0) return false;
      if (::poll(entries.data(), entries.size(), static_cast<int>(left.count())) < 0) continue;
      if (entries[1].revents != 0) sink_->attend();
      if (entries[0].revents != 0) return true;
    }
  }

 private:
  // The sink borrows the child's pidfd.
  ChildProcess child_;
  OwnedFd control_;
  std::unique_ptr<ConnectionSink> sink_;
};

/// In the worker: says a byte to the test, and hears one (0 at the end).
inline void say(int control, char what) {
  (void)!::send(control, &what, 1, MSG_NOSIGNAL);
}
inline char hear(int control) {
  char what = 0;
  if (!wait_readable(control) || ::recv(control, &what, 1, 0) != 1) return 0;
  return what;
}

/// In the worker: receives until `count` have come or been refused, calling `each`; false when the
/// source closed or stalled first.
inline bool receive_all(ConnectionSource& source, std::size_t count,
                        const std::function<void(Received&)>& each) {
  Slots slots;
  std::size_t seen = 0;
  while (seen < count) {
    if (!wait_readable(source.fd())) return false;
    const ReceiveResult result = source.receive(slots);
    if (result.state == Channel::closed) return false;
    for (std::size_t i = 0; i < result.received; ++i) {
      each(slots[i]);
      slots[i].fd.reset();
    }
    seen += result.received + result.refused;
  }
  return true;
}

}  // namespace c10k::testing
