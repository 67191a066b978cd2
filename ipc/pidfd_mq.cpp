// pidfd-mq: as pidfd-ring, with boost::interprocess::message_queue in the place of the ring.
//
// Mechanism    (number, tag) is a message of 32 bytes; the worker calls pidfd_getfd with the number. The
//              queue can only be waited for by blocking in it, so an eventfd (the bell) wakes the worker
// Kernel       5.6 (pidfd_getfd)
// Privilege    that of ptrace, as pidfd-ring
// System calls 1 in the worker (pidfd_getfd); a write and a read per wake-up of an idle worker; futexes
//              when both sides meet in the queue's lock
// Ownership    the acceptor's copy is the only one until pidfd_getfd
// Death        the queue's lock is not robust: a process killed inside leaves it locked for ever, also
//              for try_send, which locks too. So every lock has a time limit here, a worker's queue has
//              no other worker in it, and its successor gets a new one
// Limits       a process that is stopped (not killed) inside costs the other one the time limit per call
// Man pages    pidfd_getfd(2), shm_open(3); Boost.Interprocess, message_queue
#include <unistd.h>

// Makes a lock() of Boost throw after that time (interprocess_mutex.hpp); of this file only, as no other
// one uses Boost's mutexes.
#define BOOST_INTERPROCESS_ENABLE_TIMEOUT_WHEN_LOCKING
#define BOOST_INTERPROCESS_TIMEOUT_WHEN_LOCKING_DURATION_MS 20
#include <boost/interprocess/ipc/message_queue.hpp>
#include <random>

#include "ipc/foreign_table.hpp"
#include "ipc/methods.hpp"
#include "ipc/process.hpp"

namespace c10k {
namespace {

using boost::interprocess::interprocess_exception;
using boost::interprocess::message_queue;

constexpr std::size_t queue_depth = 1024;

/// The queue has a name only while it is made: both processes have it from before the fork. (Killed
/// in between, this process leaves a file in /dev/shm; Boost has no anonymous queue.)
std::shared_ptr<message_queue> make_queue() {
  std::random_device random;
  while (true) {
    const std::string name = fmt::format("c10k-{}-{:08x}{:08x}", ::getpid(), random(), random());
    try {
      const auto queue = std::make_shared<message_queue>(
          boost::interprocess::create_only, name.c_str(), queue_depth, sizeof(NumberedConnection));
      message_queue::remove(name.c_str());
      return queue;
    } catch (const interprocess_exception& error) {
      if (error.get_error_code() != boost::interprocess::already_exists_error) throw;
    }
  }
}

/// Whether the lock could not be had in time: somebody was stopped or killed inside.
bool is_stuck(const interprocess_exception& error) {
  return error.get_error_code() == boost::interprocess::timeout_when_locking_error;
}

class QueueSink : public ConnectionSink {
 public:
  QueueSink(std::shared_ptr<message_queue> queue, Bell bell, int worker_pidfd)
      : queue_(std::move(queue)), bell_(std::move(bell)), worker_pidfd_(worker_pidfd) {}

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    while (result.taken < batch.size() && result.state == Channel::more) {
      const NumberedConnection message{batch[result.taken].fd, batch[result.taken].tag};
      if (try_send(message)) {
        ++result.taken;
      } else {
        result.state = has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block;
      }
    }
    bell_.ring();
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  /// False when the queue is full or stuck.
  bool try_send(const NumberedConnection& message) {
    try {
      return queue_->try_send(&message, sizeof message, 0);
    } catch (const interprocess_exception& error) {
      if (!is_stuck(error)) throw;
      return false;
    }
  }

  std::shared_ptr<message_queue> queue_;
  Bell bell_;
  int worker_pidfd_;
};

class QueueSource : public ConnectionSource {
 public:
  QueueSource(std::shared_ptr<message_queue> queue, Bell bell, pid_t acceptor)
      : queue_(std::move(queue)),
        bell_(std::move(bell)),
        acceptor_(acceptor),
        acceptors_(acceptor) {}

  [[nodiscard]] int fd() const override { return bell_.fd(); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    try {
      NumberedConnection next;
      while (result.received < batch.size()) {
        message_queue::size_type size = 0;
        unsigned priority = 0;
        if (!queue_->try_receive(&next, sizeof next, size, priority)) {
          const bool asleep = bell_.sleep([&] { return queue_->get_num_msg() == 0; });
          result.state = asleep ? Channel::would_block : Channel::more;
          break;
        }
        if (!acceptors_.take(next, batch, result)) break;
      }
    } catch (const interprocess_exception& error) {
      if (!is_stuck(error)) throw;
      // The bell still rings: if the acceptor lives, the next call tries again.
      if (::getppid() != acceptor_) result.state = Channel::closed;
    }
    return result;
  }

 private:
  std::shared_ptr<message_queue> queue_;
  Bell bell_;
  pid_t acceptor_;
  ForeignTable acceptors_;
};

class QueueLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    return std::make_unique<QueueSink>(queue_, std::move(bell_), worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<QueueSource>(queue_, std::move(bell_), acceptor_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {bell_.fd()}; }

 private:
  std::shared_ptr<message_queue> queue_ = make_queue();
  Bell bell_;
  pid_t acceptor_ = ::getpid();
};

class PidfdMq : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override {
    try {
      (void)make_queue();
    } catch (const std::exception& error) {
      return {false, fmt::format("message_queue: {}; it needs a writable /dev/shm", error.what())};
    }
    return ForeignTable::probe();
  }
  std::unique_ptr<Link> open(const LinkRequest&) override { return std::make_unique<QueueLink>(); }
};

}  // namespace

MethodEntry pidfd_mq() {
  return {
      {.name = "pidfd-mq",
       .summary = "as pidfd-ring, through boost::interprocess::message_queue",
       .options = "",
       .kernel = "5.6",
       .privilege = "ptrace rights over the acceptor: root, or same user and dumpable",
       .syscalls = "acceptor 0, worker 1 (pidfd_getfd); futexes, a write and a read per wake-up",
       .isolation = "none against workers; one stopped in the queue's lock delays the acceptor",
       .after_death = "a queue that may be locked for ever; the successor gets a new one",
       .needs_trust =
           "a worker takes descriptors out of the acceptor, so it must have the rights of "
           "ptrace over it"},
      [](MethodOptions&) -> std::unique_ptr<HandoffMethod> { return std::make_unique<PidfdMq>(); }};
}

}  // namespace c10k
