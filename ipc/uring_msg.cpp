// uring-msg: IORING_OP_MSG_RING puts the open file into the table of the worker's ring; no socket and no
// message carries it.
//
// Mechanism    the acceptor lays a batch into its own ring's table of fixed files and sends each to the
//              worker's ring (IORING_MSG_SEND_FD), where the kernel chooses the slot and tells the
//              sender. Slots and tags go through a ring in shared memory; a bell wakes a worker that
//              sleeps. The worker makes descriptors of a batch of slots and frees them
// Kernel       6.8 (IORING_OP_FIXED_FD_INSTALL; IORING_MSG_SEND_FD is of 6.0)
// Privilege    none, where kernel.io_uring_disabled and the seccomp profile allow it; before 5.12 the
//              rings count against RLIMIT_MEMLOCK
// System calls 1 a batch in each (io_uring_enter; up to 256 connections), and a write and a read per
//              wake-up of an idle worker
// Ownership    the acceptor's descriptor stays its own; the slot is the worker's ring's, until the worker
//              has made a descriptor of its own (close-on-exec) and emptied it
// Death        what lies in the worker's ring is closed with the ring, whose last holder is the sink. A
//              send to a dead worker's ring succeeds: only the pidfd tells
// Limits       a table of fixed files is bounded by RLIMIT_NOFILE when it is made. A ring's descriptor
//              cannot go through SCM_RIGHTS, so the worker's is made before the fork
// Man pages    io_uring_prep_msg_ring_fd_alloc(3), io_uring_prep_fixed_fd_install(3), io_uring_enter(2),
//              io_uring_register(2)
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <vector>

#include "ipc/methods.hpp"
#include "ipc/number_ring.hpp"
#include "ipc/process.hpp"
#include "ipc/uring.hpp"

namespace c10k {
namespace {

// Newer than Debian 12's liburing 2.3.
constexpr int op_fixed_fd_install = 54;  // IORING_OP_FIXED_FD_INSTALL

/// How many go in one io_uring_enter.
constexpr unsigned most_at_once = receive_room;

/// The same number of empty slots, for set_files().
std::span<const int> nothing(std::size_t count) {
  static const auto empty = [] {
    std::array<int, most_at_once> fds;
    fds.fill(-1);
    return fds;
  }();
  return {empty.data(), count};
}

/// Another time may be better for these; whatever else fails would fail again. (ECANCELED: the kernel had
/// no thread for an entry that it had put off.)
bool is_shortage(int error) {
  return error == EMFILE || error == ENFILE || error == ENOMEM || error == ECANCELED;
}

class UringSink : public ConnectionSink {
 public:
  UringSink(OwnedFd workers_ring, std::size_t capacity, NumberRing ring, Bell bell,
            int worker_pidfd)
      : workers_ring_(std::move(workers_ring)),
        capacity_(capacity),
        sender_(most_at_once + 2, 2 * NumberRing::slots, 0,
                static_cast<unsigned>(std::min<std::size_t>(most_at_once, capacity))),
        ring_(std::move(ring)),
        bell_(std::move(bell)),
        worker_pidfd_(worker_pidfd) {
    sender_.keep_from_children();
  }
  ~UringSink() override {
    ring_.close();
    bell_.ring_anyway();
  }

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    while (result.taken < batch.size()) {
      const std::size_t count =
          std::min({batch.size() - result.taken, room(), most_at_once + std::size_t{0}, capacity_});
      if (count == 0) {
        result.state = has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block;
        break;
      }
      send_some(batch.subspan(result.taken, count));
      result.taken += count;
    }
    if (result.taken != 0) attend();
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

  /// A send finds the worker inside its own io_uring_enter now and then; a thread of the kernel ends it.
  [[nodiscard]] int attention_fd() override { return sender_.fd(); }

  /// Publishes what has arrived, in the order in which it was sent.
  void attend() override {
    sender_.reap([&](std::uint64_t position, int slot) {
      // A worker that leaves its ring and its table alone gives no other reason for a failure.
      if (slot < 0 && !is_shortage(-slot))
        throw BrokenProtocol(fmt::format("its ring refuses a file: {}", ::strerror(-slot)));
      if (position - published_ < sent_.size()) sent_[position - published_].number = slot;
    });
    std::size_t count = 0;
    for (; count < sent_.size() && sent_[count].number != on_its_way; ++count)
      ring_.put(count, sent_[count].number, sent_[count].tag);
    if (count == 0) return;
    sent_.erase(sent_.begin(), sent_.begin() + static_cast<std::ptrdiff_t>(count));
    published_ += count;
    ring_.publish(count);
    bell_.ring();
  }

 private:
  static constexpr int on_its_way = INT_MIN;

  /// How many slots of the worker's table are free.
  [[nodiscard]] std::size_t room() const {
    const std::size_t in_use = NumberRing::slots - ring_.room() + sent_.size();
    return capacity_ - std::min(capacity_, in_use);
  }

  /// In one call: files into the table, files out to the worker, and the table emptied. The kernel runs
  /// entries in their order; one that it has to put off has taken its file by then (io_msg_send_fd).
  void send_some(std::span<const Handover> batch) {
    std::array<int, most_at_once> fds;
    for (std::size_t i = 0; i < batch.size(); ++i) fds[i] = batch[i].fd;
    sender_.set_files({fds.data(), batch.size()}, 0);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      io_uring_sqe* sqe = sender_.entry();
      ::io_uring_prep_rw(IORING_OP_MSG_RING, sqe, workers_ring_.get(), nullptr, 0, 0);
      sqe->addr = IORING_MSG_SEND_FD;
      sqe->addr3 = i;
      sqe->file_index = IORING_FILE_INDEX_ALLOC;
      // The worker learns of it from the ring in shared memory, which keeps the order and wakes it once.
      sqe->msg_ring_flags = IORING_MSG_RING_CQE_SKIP;
      sqe->user_data = published_ + sent_.size();
      sent_.push_back({on_its_way, batch[i].tag});
    }
    sender_.set_files(nothing(batch.size()), 0);
    sender_.submit(0);
  }

  OwnedFd workers_ring_;
  std::size_t capacity_;  // of the worker's table
  Uring sender_;
  NumberRing ring_;
  Bell bell_;
  int worker_pidfd_;
  std::vector<NumberedConnection> sent_;  // and not published
  std::uint64_t published_ = 0;           // of all time
};

class UringSource : public ConnectionSource {
 public:
  UringSource(OwnedFd own_ring, const io_uring_params& params, NumberRing ring, Bell bell)
      : uring_(std::move(own_ring), params), ring_(std::move(ring)), bell_(std::move(bell)) {}

  [[nodiscard]] int fd() const override { return bell_.fd(); }

  ReceiveResult receive(std::span<Received> batch) override {
    const std::size_t there = std::min({ring_.waiting(), batch.size(), std::size_t{most_at_once}});
    ReceiveResult result;
    std::size_t arrived = 0;
    // Each number is read once: whoever writes them may go on writing.
    std::array<int, most_at_once> slots;
    for (; arrived < there; ++arrived) {
      const NumberedConnection next = ring_.peek(arrived);
      batch[arrived].tag = next.tag;
      slots[arrived] = next.number;
      if (next.number < 0) break;
    }
    if (arrived != 0) {
      install(batch.first(arrived), slots, result);
    } else if (there != 0) {  // it found no place in the table
      result.refused = 1;
      result.error = slots[0] == INT_MIN ? 0 : -slots[0];
      if (!is_shortage(result.error))
        throw std::runtime_error("uring-msg: neither a slot nor a shortage");
    }
    ring_.advance(result.received + result.refused);
    result.state = sleep_on(ring_, bell_);
    return result;
  }

 private:
  /// Descriptors for the first slots, which are empty afterwards.
  void install(std::span<Received> batch, std::span<const int> slots, ReceiveResult& result) {
    for (std::size_t i = 0; i < batch.size(); ++i) {
      io_uring_sqe* sqe = uring_.entry();
      ::io_uring_prep_rw(op_fixed_fd_install, sqe, slots[i], nullptr, 0, 0);
      ::io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
      sqe->user_data = i;
    }
    // The kernel's search for a free slot goes upwards, so these are a few runs.
    for (std::size_t i = 0; i < batch.size();) {
      std::size_t run = 1;
      while (i + run < batch.size() && slots[i + run] - slots[i] == static_cast<int>(run)) ++run;
      uring_.set_files(nothing(run), static_cast<unsigned>(slots[i]));
      i += run;
    }
    uring_.submit(static_cast<unsigned>(batch.size()));
    result.received = batch.size();
    int failed = 0;
    uring_.reap([&](std::uint64_t i, int fd) {
      if (fd >= 0) {
        batch[i].fd = OwnedFd(fd);
        return;
      }
      if (!is_shortage(-fd)) failed = -fd;
      result.error = -fd;
      result.received = std::min<std::size_t>(result.received, i);
    });
    // After all, or the descriptors of those behind it would be nobody's.
    if (failed != 0) throw_system_error(failed, "io_uring FIXED_FD_INSTALL");
    // Those behind one that failed are refused with it, or the order would be lost.
    result.refused = batch.size() - result.received;
    for (Received& refused : batch.subspan(result.received)) refused.fd.reset();
  }

  Uring uring_;
  NumberRing ring_;
  Bell bell_;
};

class UringLink : public Link {
 public:
  UringLink() {
    rlimit limit{};
    checked([&] { return ::getrlimit(RLIMIT_NOFILE, &limit); }, "getrlimit RLIMIT_NOFILE");
    capacity_ = std::min<std::size_t>(NumberRing::slots, limit.rlim_cur);
    // The acceptor needs the descriptor and not the mappings.
    Uring uring(2 * most_at_once, 4 * most_at_once, IORING_SETUP_R_DISABLED,
                static_cast<unsigned>(capacity_));
    // All that its source does; the kernel puts the files in on the acceptor's behalf.
    constexpr std::array operations{op_fixed_fd_install, IORING_OP_FILES_UPDATE + 0};
    uring.restrict_to(operations, IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS, {});
    params_ = uring.params();
    workers_ring_ = duplicate(uring.fd());
  }

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    return std::make_unique<UringSink>(std::move(workers_ring_), capacity_, ring_, std::move(bell_),
                                       worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<UringSource>(std::move(workers_ring_), params_, ring_,
                                         std::move(bell_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {bell_.fd(), workers_ring_.get()};
  }

  /// Both ends in one process.
  void try_it() {
    UringSink sink(duplicate(workers_ring_.get()), capacity_, ring_, bell_.twin(), -1);
    UringSource source(std::move(workers_ring_), params_, ring_, std::move(bell_));
    const Handover self{STDERR_FILENO, {}};
    (void)sink.send({&self, 1});
    std::array<Received, receive_room> arrived;
    const ReceiveResult result = source.receive(arrived);
    if (result.received != 1) throw_system_error(result.error, "io_uring to itself");
  }

 private:
  std::size_t capacity_;
  io_uring_params params_;
  OwnedFd workers_ring_;
  NumberRing ring_;
  Bell bell_;
};

class UringMsg : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override {
    try {
      UringLink().try_it();
      return {};
    } catch (const SystemError& error) {
      return {false,
              fmt::format("{}; {}", error.what(), uring_remedy(error.code().value(), "6.8"))};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest&) override { return std::make_unique<UringLink>(); }
};

}  // namespace

MethodEntry uring_msg() {
  return {{.name = "uring-msg",
           .summary = "IORING_OP_MSG_RING puts it into the worker's ring",
           .options = "",
           .kernel = "6.8",
           .privilege = "none, where kernel.io_uring_disabled is 0",
           .syscalls = "acceptor 1/batch, worker 1/batch (io_uring_enter); a write and a read per "
                       "wake-up",
           .isolation = "full: each side reaches only its own table",
           .after_death = "the open files in the worker's ring, until the acceptor drops the ring",
           .worker_calls = {CallGroup::uring}},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<UringMsg>();
          }};
}

}  // namespace c10k
