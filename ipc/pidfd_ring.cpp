// pidfd-ring: only the descriptor's number travels, through a ring in shared memory; the worker takes
// the descriptor out of the acceptor's table itself.
//
// Mechanism    the acceptor writes (number, tag) into a single-producer, single-consumer ring; the
//              worker calls pidfd_getfd with the number. An eventfd (the bell) wakes the worker, and
//              only when it sleeps
// Kernel       5.6 (pidfd_getfd)
// Privilege    that of ptrace (PTRACE_MODE_ATTACH_REALCREDS): root, or the same user and a dumpable
//              acceptor; a security module may refuse it all the same
// System calls 1 in the worker (pidfd_getfd), and a write and a read per wake-up of an idle worker
// Ownership    the acceptor's copy is the only one until pidfd_getfd; it stays open until the worker
//              has counted the connection, so the number cannot have been used again by then
// Death        nothing: the ring goes with its last mapping, and it has one writer a side and no lock
// Man pages    pidfd_getfd(2), pidfd_open(2), eventfd(2)
#include <unistd.h>

#include <algorithm>

#include "ipc/foreign_table.hpp"
#include "ipc/methods.hpp"
#include "ipc/number_ring.hpp"
#include "ipc/process.hpp"

namespace c10k {
namespace {

class RingSink : public ConnectionSink {
 public:
  RingSink(NumberRing ring, Bell bell, int worker_pidfd)
      : ring_(std::move(ring)), bell_(std::move(bell)), worker_pidfd_(worker_pidfd) {}
  ~RingSink() override {
    ring_.close();
    bell_.ring_anyway();
  }

  SendResult send(std::span<const Handover> batch) override {
    const std::size_t taken = std::min(batch.size(), ring_.room());
    for (std::size_t i = 0; i < taken; ++i) ring_.put(i, batch[i].fd, batch[i].tag);
    ring_.publish(taken);
    bell_.ring();
    if (taken == batch.size()) return {taken, Channel::more};
    return {taken, has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block};
  }

  /// A ring announces no room: the acceptor looks again as the worker's counter goes on.
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  NumberRing ring_;
  Bell bell_;
  int worker_pidfd_;
};

class RingSource : public ConnectionSource {
 public:
  RingSource(NumberRing ring, Bell bell, pid_t acceptor)
      : ring_(std::move(ring)), bell_(std::move(bell)), acceptors_(acceptor) {}

  [[nodiscard]] int fd() const override { return bell_.fd(); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    const std::size_t there = std::min(ring_.waiting(), batch.size());
    while (result.received < there && acceptors_.take(ring_.peek(result.received), batch, result)) {
    }
    ring_.advance(result.received + result.refused);
    if (result.state == Channel::more) result.state = sleep_on(ring_, bell_);
    return result;
  }

 private:
  NumberRing ring_;
  Bell bell_;
  ForeignTable acceptors_;
};

class RingLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    return std::make_unique<RingSink>(ring_, std::move(bell_), worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<RingSource>(ring_, std::move(bell_), acceptor_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {bell_.fd()}; }

 private:
  NumberRing ring_;
  Bell bell_;
  pid_t acceptor_ = ::getpid();
};

class PidfdRing : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override { return ForeignTable::probe(); }
  std::unique_ptr<Link> open(const LinkRequest&) override { return std::make_unique<RingLink>(); }
};

}  // namespace

MethodEntry pidfd_ring() {
  return {{.name = "pidfd-ring",
           .summary = "the number through a shared-memory ring, pidfd_getfd in the worker",
           .options = "",
           .kernel = "5.6",
           .privilege = "ptrace rights over the acceptor: root, or same user and dumpable",
           .syscalls = "acceptor 0, worker 1 (pidfd_getfd); a write and a read per wake-up",
           .isolation = "none against workers: they can take any descriptor of the acceptor",
           .after_death = "nothing: one writer a side, no lock, and the acceptor has copies",
           .needs_trust = "a worker takes descriptors out of the acceptor, so it must have the "
                          "rights of ptrace over it"},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<PidfdRing>();
          }};
}

}  // namespace c10k
