#include "experiments/handoff_bench/floors.hpp"

#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "ipc/number_ring.hpp"
#include "ipc/process.hpp"
#include "ipc/registry.hpp"
#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

template <typename LinkType>
class FloorMethod : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override { return {}; }
  std::unique_ptr<Link> open(const LinkRequest&) override { return std::make_unique<LinkType>(); }
};

// ---- dup-close: what any hand-off pays that gives the worker a descriptor of its own ----

class DupCloseSink : public ConnectionSink {
 public:
  SendResult send(std::span<const Handover> batch) override {
    for (const Handover& next : batch) (void)duplicate(next.fd);
    return {batch.size(), Channel::more};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }
};

class DupCloseLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int) override {
    return std::make_unique<DupCloseSink>();
  }
  std::unique_ptr<ConnectionSource> worker_end() override { return nullptr; }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {}; }
};

// ---- dup-close-shared: in a table of several, the kernel counts a reference for each look-up ----

class DupCloseSharedSink : public DupCloseSink {
 private:
  ChildProcess sharer_ = ChildProcess::fork(
      [] {
        while (true) ::pause();
        return 0;
      },
      {}, SIGKILL, Table::shared);
};

class DupCloseSharedLink : public DupCloseLink {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int) override {
    return std::make_unique<DupCloseSharedSink>();
  }
};

// ---- ring: numbers and tags through shared memory, and no descriptor ----

class RingSink : public ConnectionSink {
 public:
  RingSink(NumberRing ring, Bell bell) : ring_(std::move(ring)), bell_(std::move(bell)) {}
  SendResult send(std::span<const Handover> batch) override {
    const std::size_t taken = std::min(batch.size(), ring_.room());
    for (std::size_t i = 0; i < taken; ++i) ring_.put(i, batch[i].fd, batch[i].tag);
    ring_.publish(taken);
    bell_.ring();
    return {taken, taken == batch.size() ? Channel::more : Channel::would_block};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  NumberRing ring_;
  Bell bell_;
};

class RingSource : public ConnectionSource {
 public:
  RingSource(NumberRing ring, Bell bell) : ring_(std::move(ring)), bell_(std::move(bell)) {}
  [[nodiscard]] int fd() const override { return bell_.fd(); }
  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    result.received = std::min(ring_.waiting(), batch.size());
    for (std::size_t i = 0; i < result.received; ++i) batch[i].tag = ring_.peek(i).tag;
    ring_.advance(result.received);
    result.state = sleep_on(ring_, bell_);
    return result;
  }

 private:
  NumberRing ring_;
  Bell bell_;
};

class RingLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int) override {
    return std::make_unique<RingSink>(ring_, std::move(bell_));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<RingSource>(ring_, std::move(bell_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {bell_.fd()}; }

 private:
  NumberRing ring_;
  Bell bell_;
};

// ---- pidfd-getfd-close: the receiver takes a descriptor out of the sender, and closes it at once.
// Only a count travels.

struct Count {
  alignas(64) std::atomic<std::uint64_t> published{0};
  std::atomic<int> number{-1};
};
using SharedCount = std::shared_ptr<SharedArray<Count>>;

class CountSink : public ConnectionSink {
 public:
  CountSink(SharedCount count, Bell bell) : count_(std::move(count)), bell_(std::move(bell)) {}
  SendResult send(std::span<const Handover> batch) override {
    Count& count = (*count_)[0];
    count.number.store(batch.front().fd, std::memory_order_relaxed);
    count.published.store(count.published.load(std::memory_order_relaxed) + batch.size());
    bell_.ring();
    return {batch.size(), Channel::more};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  SharedCount count_;
  Bell bell_;
};

class GetfdSource : public ConnectionSource {
 public:
  GetfdSource(SharedCount count, Bell bell, pid_t sender)
      : count_(std::move(count)), bell_(std::move(bell)), pidfd_(open_pidfd(sender)) {}
  [[nodiscard]] int fd() const override { return bell_.fd(); }
  ReceiveResult receive(std::span<Received> batch) override {
    Count& count = (*count_)[0];
    ReceiveResult result;
    result.received = std::min<std::size_t>(count.published.load() - taken_, batch.size());
    const int number = count.number.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < result.received; ++i) {
      const OwnedFd taken(static_cast<int>(
          checked([&] { return ::syscall(SYS_pidfd_getfd, pidfd_.get(), number, 0); },
                  "pidfd_getfd {}", number)));
    }
    taken_ += result.received;
    const auto idle = [&] { return count.published.load() == taken_; };
    if (idle() && bell_.sleep(idle)) result.state = Channel::would_block;
    return result;
  }

 private:
  SharedCount count_;
  Bell bell_;
  OwnedFd pidfd_;
  std::uint64_t taken_ = 0;
};

class GetfdLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int) override {
    return std::make_unique<CountSink>(count_, std::move(bell_));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<GetfdSource>(count_, std::move(bell_), sender_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {bell_.fd()}; }

 private:
  SharedCount count_ = std::make_shared<SharedArray<Count>>(1);
  Bell bell_;
  pid_t sender_ = ::getpid();
};

class GetfdMethod : public FloorMethod<GetfdLink> {
 public:
  [[nodiscard]] Support probe() override {
    return configure_handoff_method("pidfd-ring").method->probe();
  }
};

// ---- socketpair-byte: a message that carries nothing but a byte, which says for how many ----

class ByteSink : public ConnectionSink {
 public:
  explicit ByteSink(OwnedFd socket) : socket_(std::move(socket)) {}
  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    while (result.taken < batch.size()) {
      const auto part =
          static_cast<std::uint8_t>(std::min<std::size_t>(batch.size() - result.taken, 255));
      const auto sent = checked_nonblocking(
          [&] { return ::send(socket_.get(), &part, 1, MSG_NOSIGNAL | MSG_DONTWAIT); }, "send");
      if (!sent) {
        result.state = Channel::would_block;
        break;
      }
      result.taken += part;
    }
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return socket_.get(); }

 private:
  OwnedFd socket_;
};

class ByteSource : public ConnectionSource {
 public:
  explicit ByteSource(OwnedFd socket) : socket_(std::move(socket)) {}
  [[nodiscard]] int fd() const override { return socket_.get(); }
  ReceiveResult receive(std::span<Received>) override {
    std::uint8_t part = 0;
    const auto size =
        checked_nonblocking([&] { return ::recv(socket_.get(), &part, 1, MSG_DONTWAIT); }, "recv");
    if (!size) return {.state = Channel::would_block};
    if (*size == 0) return {.state = Channel::closed};
    return {.received = part};
  }

 private:
  OwnedFd socket_;
};

class ByteLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int) override {
    ends_.second.reset();
    return std::make_unique<ByteSink>(std::move(ends_.first));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    ends_.first.reset();
    return std::make_unique<ByteSource>(std::move(ends_.second));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {ends_.second.get()};
  }

 private:
  std::pair<OwnedFd, OwnedFd> ends_ = unix_pair(SOCK_SEQPACKET);
};

template <typename Method>
std::unique_ptr<HandoffMethod> make(MethodOptions&) {
  return std::make_unique<Method>();
}

}  // namespace

std::span<const Floor> floors() {
  static const std::array registry{
      Floor{{{.name = "dup-close",
              .summary = "fcntl F_DUPFD_CLOEXEC and close in one process",
              .syscalls = "2 (fcntl, close)"},
             make<FloorMethod<DupCloseLink>>},
            true},
      Floor{{{.name = "dup-close-shared",
              .summary = "the same in a table that another process shares (CLONE_FILES)",
              .syscalls = "2 (fcntl, close)"},
             make<FloorMethod<DupCloseSharedLink>>},
            true},
      Floor{{{.name = "ring",
              .summary = "number and tag through the shared-memory ring, no descriptor",
              .syscalls = "0; a write and a read per wake-up"},
             make<FloorMethod<RingLink>>}},
      Floor{{{.name = "socketpair-byte",
              .summary = "a byte for each batch over a SOCK_SEQPACKET pair",
              .syscalls = "sender 1/batch (sendto), receiver 1/batch (recvfrom)"},
             make<FloorMethod<ByteLink>>}},
      Floor{{{.name = "pidfd-getfd-close",
              .summary = "the receiver takes a descriptor from the sender and closes it",
              .syscalls = "sender 0, receiver 2 (pidfd_getfd, close)"},
             make<GetfdMethod>}},
  };
  return registry;
}

}  // namespace c10k
