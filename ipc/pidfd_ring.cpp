// pidfd-ring: only the descriptor's number travels, through a ring in shared memory; the worker takes
// the descriptor out of the acceptor's table itself.
//
// Mechanism    the acceptor writes (number, tag) into a single-producer, single-consumer ring; the
//              worker calls pidfd_getfd with the number. A byte through a socketpair (its bell) wakes
//              the worker, and only when it sleeps
// Kernel       5.6 (pidfd_getfd)
// Privilege    that of ptrace (PTRACE_MODE_ATTACH_REALCREDS): root, or the same user and a dumpable
//              acceptor; a security module may refuse it all the same
// System calls 1 in the worker (pidfd_getfd), and a send and a recv per wake-up of an idle worker
// Ownership    the acceptor's copy is the only one until pidfd_getfd; it stays open until the worker
//              has counted the connection, so the number cannot have been used again by then
// Death        nothing: the ring goes with its last mapping, and it has one writer a side and no lock
// Man pages    pidfd_getfd(2), pidfd_open(2), unix(7)
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "ipc/methods.hpp"
#include "ipc/process.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::size_t ring_slots = 1024;  // a power of two

/// The positions count for ever; a slot is the position modulo the size.
struct Ring {
  struct Slot {
    std::int32_t number = -1;
    ConnectionTag tag;
  };
  alignas(64) std::atomic<std::uint64_t> written{0};  // by the acceptor
  alignas(64) std::atomic<std::uint64_t> read{0};     // by the worker
  /// Set by the worker before it sleeps, cleared by who wakes it. A worker that has not begun yet
  /// sleeps: the first send rings for it.
  alignas(64) std::atomic<bool> sleeping{true};
  std::array<Slot, ring_slots> slots;
};

using SharedRing = std::shared_ptr<SharedArray<Ring>>;

class RingSink : public ConnectionSink {
 public:
  RingSink(SharedRing ring, OwnedFd bell) : ring_(std::move(ring)), bell_(std::move(bell)) {}

  SendResult send(std::span<const Handover> batch) override {
    Ring& ring = (*ring_)[0];
    const std::uint64_t written = ring.written.load(std::memory_order_relaxed);
    const std::uint64_t read = ring.read.load(std::memory_order_acquire);
    // A worker that writes nonsense into its counter harms only its own ring.
    const std::uint64_t in_use = std::min<std::uint64_t>(written - read, ring_slots);
    const std::size_t taken = std::min(batch.size(), ring_slots - in_use);
    for (std::size_t i = 0; i < taken; ++i) {
      ring.slots[(written + i) % ring_slots] = {batch[i].fd, batch[i].tag};
    }
    ring.written.store(written + taken, std::memory_order_seq_cst);
    if (ring.sleeping.load(std::memory_order_seq_cst) && ring.sleeping.exchange(false) && !wake()) {
      return {0, Channel::closed};
    }
    if (taken == batch.size()) return {taken, Channel::more};
    return {taken, worker_is_gone() ? Channel::closed : Channel::would_block};
  }

  /// A ring announces no room: the acceptor looks again as the worker's counter goes on.
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  /// False when the worker is gone. A full socket has bytes enough to wake it.
  bool wake() {
    const char byte = 1;
    const ssize_t sent = retry_eintr([&] { return ::send(bell_.get(), &byte, 1, MSG_NOSIGNAL); });
    return sent == 1 || errno == EAGAIN;
  }
  [[nodiscard]] bool worker_is_gone() const {
    pollfd bell{bell_.get(), 0, 0};
    return ::poll(&bell, 1, 0) == 1 && (bell.revents & (POLLHUP | POLLERR)) != 0;
  }

  SharedRing ring_;
  OwnedFd bell_;
};

class RingSource : public ConnectionSource {
 public:
  RingSource(SharedRing ring, OwnedFd bell, pid_t acceptor)
      : ring_(std::move(ring)), bell_(std::move(bell)), acceptor_(acceptor) {
    pidfd_ = OwnedFd(static_cast<int>(checked(
        [&] { return ::syscall(SYS_pidfd_open, acceptor_, 0); }, "pidfd_open {}", acceptor_)));
  }

  [[nodiscard]] int fd() const override { return bell_.get(); }

  /// While this worker is awake there is one byte in its bell, which stays readable; going to sleep
  /// takes that byte out. Who finds `sleeping` set clears it and puts one in.
  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result = take(batch);
    if (result.state != Channel::more || !empty()) return result;
    Ring& ring = (*ring_)[0];
    ring.sleeping.store(true, std::memory_order_seq_cst);
    // What was written before this announcement brings no bell. Stay awake for it; if the acceptor
    // has found the announcement meanwhile, its byte is one too many.
    if (!empty() && ring.sleeping.exchange(false)) return result;
    char byte;
    const ssize_t got = retry_eintr([&] { return ::recv(bell_.get(), &byte, 1, 0); });
    result.state = got == 0 ? Channel::closed : Channel::would_block;
    return result;
  }

 private:
  [[nodiscard]] bool empty() const {
    const Ring& ring = (*ring_)[0];
    return ring.written.load(std::memory_order_seq_cst) ==
           ring.read.load(std::memory_order_relaxed);
  }

  ReceiveResult take(std::span<Received> batch) {
    Ring& ring = (*ring_)[0];
    ReceiveResult result;
    const std::uint64_t read = ring.read.load(std::memory_order_relaxed);
    const std::uint64_t written = ring.written.load(std::memory_order_seq_cst);
    const std::size_t there = std::min<std::uint64_t>(written - read, batch.size());
    for (std::size_t i = 0; i < there; ++i) {
      const Ring::Slot& slot = ring.slots[(read + i) % ring_slots];
      const int fd = static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.get(), slot.number, 0));
      if (fd >= 0) {
        batch[result.received++] = {OwnedFd(fd), slot.tag};
        continue;
      }
      if (errno == ESRCH) {  // the acceptor has died
        result.state = Channel::closed;
        break;
      }
      if (errno != EMFILE && errno != ENFILE) {
        throw_system_error(errno, "pidfd_getfd {} of process {}", slot.number, acceptor_);
      }
      // Those received so far come first in order; the refused one is next.
      result.refused = 1;
      result.error = errno;
      break;
    }
    ring.read.store(read + result.received + result.refused, std::memory_order_release);
    return result;
  }

  SharedRing ring_;
  OwnedFd bell_;
  pid_t acceptor_;
  OwnedFd pidfd_;
};

class RingLink : public Link {
 public:
  RingLink()
      : ring_(std::make_shared<SharedArray<Ring>>(1)),
        acceptor_(::getpid()),
        bell_(unix_pair(SOCK_STREAM)) {}

  std::unique_ptr<ConnectionSink> acceptor_end() override {
    bell_.second.reset();
    return std::make_unique<RingSink>(ring_, std::move(bell_.first));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    bell_.first.reset();
    return std::make_unique<RingSource>(ring_, std::move(bell_.second), acceptor_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {bell_.second.get()};
  }

 private:
  SharedRing ring_;
  pid_t acceptor_;
  std::pair<OwnedFd, OwnedFd> bell_;
};

class PidfdRing : public HandoffMethod {
 public:
  /// A child tries it on this process, as a worker would.
  [[nodiscard]] Support probe() override {
    try {
      const pid_t parent = ::getpid();
      const int number = 2;
      const auto attempt = [&] {
        const int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, parent, 0));
        if (pidfd < 0) return errno;
        return ::syscall(SYS_pidfd_getfd, pidfd, number, 0) < 0 ? errno : 0;
      };
      const int error = WEXITSTATUS(ChildProcess::fork(attempt, {}, SIGKILL).wait().status);
      if (error == 0) return {};
      const char* remedy = error == ENOSYS ? "it needs Linux 5.6"
                           : error == EPERM
                               ? "it needs the rights of ptrace: run as root, or allow it"
                               : "no descriptor can be taken from the acceptor";
      return {false, fmt::format("pidfd_getfd: {}; {}", ::strerror(error), remedy)};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest&) override { return std::make_unique<RingLink>(); }
};

}  // namespace

MethodEntry pidfd_ring() {
  return {{.name = "pidfd-ring",
           .summary = "the number through a shared-memory ring, pidfd_getfd in the worker",
           .options = "",
           .kernel = "5.6",
           .privilege = "ptrace rights over the acceptor: root, or same user and dumpable",
           .syscalls = "acceptor 0, worker 1 (pidfd_getfd); a send and a recv per wake-up",
           .isolation = "none against workers: they can take any descriptor of the acceptor",
           .after_death = "nothing: one writer a side, no lock, and the acceptor has copies"},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<PidfdRing>();
          }};
}

}  // namespace c10k
