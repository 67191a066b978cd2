// shared-table: acceptor and workers have one descriptor table (CLONE_FILES), so a number is enough.
//
// Mechanism    the acceptor duplicates the connection within the table and writes the duplicate's
//              number into the worker's ring; the worker uses it as it is
// Kernel       any (clone(2) with CLONE_FILES)
// Privilege    none
// System calls 1 in the acceptor (dup), 0 in the worker; a write and a read per wake-up of an idle
//              worker
// Ownership    the acceptor's number stays its own; the duplicate is the worker's from the moment it
//              is made, and a ledger in shared memory says so
// Death        the kernel closes nothing while anybody shares the table: the acceptor closes what the
//              ledger gives the dead worker, in flight or in use. A worker killed between a system call
//              that makes a descriptor and the mark in the ledger leaves that one open
// Limits       one RLIMIT_NOFILE for all; any process of the pool can close any descriptor of it
// Man pages    clone(2), fcntl(2)
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include <cstring>

#include "ipc/methods.hpp"
#include "ipc/number_ring.hpp"
#include "ipc/process.hpp"

namespace c10k {
namespace {

/// On a mark: the acceptor gave the number to that worker, which has not taken it yet. It differs from
/// the worker's own mark, because the number may be one that the worker has just closed and is about
/// to unmark.
constexpr std::uint32_t given = 1U << 31;
/// The acceptor marks what it opens as well: the number may be one that a worker has died closing.
constexpr std::uint32_t acceptor = 1;

using Owners = SharedArray<std::atomic<std::uint32_t>>;

/// The owners of all numbers that the table can have, and who is who.
class Ledger {
 public:
  explicit Ledger(std::size_t numbers) : owners_(numbers) { descriptor_ledger = as(acceptor); }
  ~Ledger() { descriptor_ledger = {}; }
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;
  [[nodiscard]] std::uint32_t next_owner() { return ++last_owner_; }
  [[nodiscard]] DescriptorLedger as(std::uint32_t owner) const { return {owners_.all(), owner}; }

  /// Closes what `owner`, which has ended, had.
  void sweep(std::uint32_t owner) const {
    for (std::size_t fd = 0; fd < owners_.size(); ++fd) {
      std::uint32_t mark = owners_[fd].load(std::memory_order_acquire);
      if ((mark & ~(given | DescriptorLedger::closing)) != owner) continue;
      ::close(static_cast<int>(fd));
      owners_[fd].compare_exchange_strong(mark, 0);  // unless the number is somebody's again
    }
  }

 private:
  Owners owners_;
  std::uint32_t last_owner_ = acceptor;
};

class TableSink : public ConnectionSink {
 public:
  TableSink(std::shared_ptr<Ledger> ledger, std::uint32_t worker, NumberRing ring, Bell bell,
            int worker_pidfd)
      : ledger_(std::move(ledger)),
        worker_(worker),
        marks_(ledger_->as(worker)),
        ring_(std::move(ring)),
        bell_(std::move(bell)),
        worker_pidfd_(worker_pidfd) {}

  ~TableSink() override {
    ring_.close();
    bell_.ring_anyway();
    if (has_ended(worker_pidfd_)) ledger_->sweep(worker_);
  }

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    const std::size_t room = std::min(batch.size(), ring_.room());
    while (result.taken < room) {
      const Handover& next = batch[result.taken];
      const int copy = ::fcntl(next.fd, F_DUPFD_CLOEXEC, 3);
      if (copy < 0) {
        if (errno != EMFILE) throw_system_error(errno, "fcntl {} F_DUPFD_CLOEXEC", next.fd);
        result.state = Channel::starved;
        result.error = errno;
        break;
      }
      marks_.mark(copy, worker_ | given);
      ring_.put(result.taken++, copy, next.tag);
    }
    ring_.publish(result.taken);
    bell_.ring();
    if (result.state == Channel::more && result.taken != batch.size())
      result.state = has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block;
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  std::shared_ptr<Ledger> ledger_;
  std::uint32_t worker_;
  DescriptorLedger marks_;
  NumberRing ring_;
  Bell bell_;
  int worker_pidfd_;
};

class TableSource : public ConnectionSource {
 public:
  TableSource(NumberRing ring, Bell bell, int listener)
      : ring_(std::move(ring)), bell_(std::move(bell)), listener_(listener) {}
  /// What waits is this worker's already, and nobody else closes it while it lives.
  ~TableSource() override {
    for (std::size_t i = 0; i < ring_.waiting(); ++i) const OwnedFd unserved(ring_.peek(i).number);
  }

  [[nodiscard]] int fd() const override { return bell_.fd(); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    result.received = std::min(ring_.waiting(), batch.size());
    for (std::size_t i = 0; i < result.received; ++i) {
      const NumberedConnection& next = ring_.peek(i);
      batch[i] = {OwnedFd(next.number), next.tag};
    }
    ring_.advance(result.received);
    result.state = sleep_on(ring_, bell_);
    return result;
  }

  /// The listener is open as long as the table is, so as long as one worker drains: its clients would wait
  /// in a queue that nobody accepts from. Each worker does this; the number may be another file's by now.
  void acceptor_ended() override {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockopt(listener_, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0)
      (void)::shutdown(listener_, SHUT_RD);
  }

 private:
  NumberRing ring_;
  Bell bell_;
  int listener_;  // the server's
};

/// In one table each side needs a number of its own for the bell, or the first to close would close it
/// for both. The child's copies of these objects are never destroyed (it leaves by _exit).
class TableLink : public Link {
 public:
  TableLink(std::shared_ptr<Ledger> ledger, int listener)
      : ledger_(std::move(ledger)), worker_(ledger_->next_owner()), listener_(listener) {
    ledger_->as(worker_).mark(workers_bell_.fd(), worker_);
  }

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    (void)workers_bell_.release();  // the worker's now
    return std::make_unique<TableSink>(ledger_, worker_, ring_, std::move(bell_), worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    descriptor_ledger = ledger_->as(worker_);
    return std::make_unique<TableSource>(ring_, std::move(workers_bell_), listener_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {}; }
  void leave_to_worker(OwnedFd fd) override { ledger_->as(worker_).mark(fd.release(), worker_); }

 private:
  std::shared_ptr<Ledger> ledger_;
  std::uint32_t worker_;
  int listener_;
  NumberRing ring_;
  Bell bell_;
  Bell workers_bell_ = bell_.twin();
};

class SharedTable : public HandoffMethod {
 public:
  /// A child that shares the table opens a descriptor, and this process must see it.
  [[nodiscard]] Support probe() override {
    try {
      const OwnedFd marker = duplicate(STDERR_FILENO);
      const int number = marker.get();
      ChildProcess child = ChildProcess::fork(
          [&] { return ::fcntl(number, F_SETFD, 0) == 0 ? 0 : 1; }, {}, SIGKILL, Table::shared);
      const bool ended_well = child.wait().clean();
      // The flag is the descriptor's, not the open file's: it has changed here only in one table.
      if (ended_well && ::fcntl(number, F_GETFD) == 0) return {};
      return {false, "clone with CLONE_FILES gave the child a table of its own"};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    if (!ledger_) ledger_ = std::make_shared<Ledger>(raise_descriptor_limit());
    return std::make_unique<TableLink>(ledger_, request.listener);
  }

 private:
  std::shared_ptr<Ledger> ledger_;
};

}  // namespace

MethodEntry shared_table() {
  return {{.name = "shared-table",
           .summary = "one descriptor table for all (CLONE_FILES); only the number travels",
           .options = "",
           .kernel = "any",
           .privilege = "none",
           .syscalls = "acceptor 1 (dup), worker 0; a write and a read per wake-up",
           .isolation = "none: anyone can use or close any descriptor of anyone, the listener too",
           .after_death = "every descriptor, until the acceptor sweeps them by its ledger",
           .shared_table = true,
           .descriptors_in_flight = 1,
           .needs_trust = "a worker shares the acceptor's descriptors, so it can use and close "
                          "all of them"},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<SharedTable>();
          }};
}

}  // namespace c10k
