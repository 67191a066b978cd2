// io_uring(7). A turn is one io_uring_enter: it submits what the turn before has begun, waits, and runs
// what the kernel has put off for this thread (IORING_SETUP_DEFER_TASKRUN), so completions come in
// batches and never interrupt. Needs Linux 6.1.
#include "strategies/completion_loop.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cassert>

#include "ipc/process.hpp"
#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"
#include "strategies/provided_buffers.hpp"

namespace c10k {
namespace {

constexpr std::uint64_t nobody = 0;
/// In a key, beside a descriptor: it has been closed.
constexpr std::uint64_t closing = std::uint64_t{1} << 63;
constexpr std::uint64_t operation_mask = 7;

short poll_mask(Interest interest) {
  return static_cast<short>((interest.read ? POLLIN : 0) | (interest.write ? POLLOUT : 0));
}

}  // namespace

/// A descriptor whose readiness somebody wants to know.
class CompletionLoop::Watch : public Completer {
 public:
  Watch(CompletionLoop& loop, int fd, EventHandler& handler)
      : loop_(loop), fd_(fd), handler_(&handler) {}

  void set(Interest interest) {
    const short mask = poll_mask(interest);
    if (mask == mask_) return;
    mask_ = mask;
    if (in_flight() == 0) return arm();
    loop_.withdraw(*this, 0);  // its completion arms anew
  }
  void forget() {
    handler_ = nullptr;
    mask_ = 0;
    if (in_flight() != 0) loop_.withdraw(*this, 0);
  }

  void on_completion(unsigned, int result, unsigned) override {
    if (handler_ == nullptr) return;
    const bool broken = result < 0 || (result & (POLLERR | POLLHUP | POLLNVAL)) != 0;
    const Readiness ready{.read = broken || (result & mask_ & POLLIN) != 0,
                          .write = broken || (result & mask_ & POLLOUT) != 0};
    const bool told = result != -ECANCELED && mask_ != 0 && (ready.read || ready.write);
    if (told) handler_->on_ready(ready);
    if (in_flight() == 0) arm();  // it may have been changed, or forgotten, meanwhile
  }

 private:
  void arm() {
    if (mask_ == 0) return;
    loop_.begin(*this, 0, [&](io_uring_sqe* sqe) {
      ::io_uring_prep_poll_add(sqe, fd_, static_cast<unsigned short>(mask_));
    });
  }

  CompletionLoop& loop_;
  int fd_;
  EventHandler* handler_;
  short mask_ = 0;
};

CompletionLoop::CompletionLoop(unsigned entries, unsigned completions, std::span<const int> only)
    : ring_(entries, completions,
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                (only.empty() ? 0 : IORING_SETUP_R_DISABLED)) {
  if (!only.empty()) {
    std::vector<int> operations{IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, IORING_OP_CLOSE};
    operations.insert(operations.end(), only.begin(), only.end());
    const std::array registrations{IORING_REGISTER_PBUF_RING + 0, IORING_UNREGISTER_PBUF_RING + 0,
                                   IORING_REGISTER_RING_FDS + 0, IORING_UNREGISTER_RING_FDS + 0};
    ring_.restrict_to(operations, IOSQE_CQE_SKIP_SUCCESS | IOSQE_BUFFER_SELECT, registrations);
  }
  ring_.keep_from_children();
  // Each io_uring_enter then spares the kernel the search for the ring's file. It is no worse without.
  (void)::io_uring_register_ring_fd(&ring_.raw());
}

CompletionLoop::~CompletionLoop() = default;

void CompletionLoop::watch(int fd, Interest interest, EventHandler& handler) {
  const auto number = static_cast<std::size_t>(fd);
  if (number >= watches_.size()) watches_.resize(number + 1);
  assert(watches_[number] == nullptr);
  watches_[number] = std::make_unique<Watch>(*this, fd, handler);
  watches_[number]->set(interest);
}

void CompletionLoop::change(int fd, Interest interest) {
  watches_[static_cast<std::size_t>(fd)]->set(interest);
}

void CompletionLoop::forget(int fd, Removal) {
  std::unique_ptr<Watch>& watch = watches_[static_cast<std::size_t>(fd)];
  watch->forget();
  // Also when nothing is in flight: it may be its own completion that calls us.
  forgotten_.push_back(std::move(watch));
  if (forgotten_.back()->in_flight() != 0) flush();
}

void CompletionLoop::withdraw(Completer& completer, unsigned operation) {
  io_uring_sqe* sqe = entry();
  ::io_uring_prep_cancel64(sqe, key(completer, operation), 0);
  ::io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
  sqe->user_data = nobody;
}

void CompletionLoop::close(OwnedFd fd) {
  const auto number = static_cast<std::uint64_t>(fd.get());
  io_uring_sqe* sqe = entry();
  ::io_uring_prep_close(sqe, fd.release());
  // Where processes share a table of descriptors, the ledger must learn when the number is free.
  if (descriptor_ledger.self == 0) {
    ::io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
  } else {
    descriptor_ledger.begin_close(static_cast<int>(number));
  }
  sqe->user_data = closing | number;
}

io_uring_sqe* CompletionLoop::entry() {
  io_uring_sqe* sqe = nullptr;
  while ((sqe = ring_.entry()) == nullptr) {
    const int result = ::io_uring_submit(&ring_.raw());
    // Memory is short, or so many completions wait that the kernel wants them to be seen first.
    if (result == -EAGAIN || result == -EBUSY) {
      flush();
    } else if (result != -EINTR) {
      check_uring(result, "io_uring_enter");
    }
  }
  return sqe;
}

void CompletionLoop::flush() {
  const int result = ::io_uring_submit_and_get_events(&ring_.raw());
  if (result != -EINTR && result != -EAGAIN && result != -EBUSY)
    check_uring(result, "io_uring_enter");
}

void CompletionLoop::wait() {
  __kernel_timespec timeout{};
  __kernel_timespec* bound = nullptr;
  if (!timers_.empty()) {
    const std::int64_t left = std::max<std::int64_t>(timers_.begin()->first - monotonic_ns(), 0);
    timeout = {.tv_sec = left / 1'000'000'000, .tv_nsec = left % 1'000'000'000};
    bound = &timeout;
  }
  io_uring_cqe* first = nullptr;
  const int result = ::io_uring_submit_and_wait_timeout(&ring_.raw(), &first, 1, bound, nullptr);
  if (result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY)
    check_uring(result, "io_uring_enter");
}

void CompletionLoop::turn() {
  wait();
  now_ns_ = monotonic_ns();
  // As many as are there now; what is begun meanwhile may complete at once and has its turn later.
  for (unsigned left = ::io_uring_cq_ready(&ring_.raw()); left > 0; --left) {
    io_uring_cqe* cqe = nullptr;
    if (::io_uring_peek_cqe(&ring_.raw(), &cqe) != 0) break;
    const io_uring_cqe copy = *cqe;
    // Before the call, which may throw.
    ::io_uring_cqe_seen(&ring_.raw(), cqe);
    dispatch(copy.user_data, copy.res, copy.flags);
  }
  std::erase_if(forgotten_, [](const auto& watch) { return watch->in_flight() == 0; });
  if (!stopping_) {
    run_timers();
    end_turn();
  }
  // There may be no other turn, and no close may be left behind.
  if (stopping_) flush();
}

void CompletionLoop::dispatch(std::uint64_t key, int result, unsigned flags) {
  if (key == nobody) return;
  if ((key & closing) != 0) {
    if (descriptor_ledger.self != 0) descriptor_ledger.end_close(static_cast<int>(key & ~closing));
    return;
  }
  auto* completer = reinterpret_cast<Completer*>(key & ~operation_mask);
  if ((flags & IORING_CQE_F_MORE) == 0) --completer->in_flight_;
  completer->on_completion(static_cast<unsigned>(key & operation_mask), result, flags);
}

namespace {

/// A multishot receive into a provided buffer, as a server does it.
Support try_a_receive() {
  class Trial : public Completer {
   public:
    void on_completion(unsigned, int result, unsigned flags) override {
      result_ = result;
      flags_ = flags;
    }
    int result_ = 0;
    unsigned flags_ = 0;
  };
  try {
    CompletionLoop loop(8, 16);
    ProvidedBuffers buffers(loop.ring(), 0, 4, 64);
    Trial trial;
    const auto ends = unix_pair(SOCK_STREAM);
    checked([&] { return ::send(ends.second.get(), "x", 1, MSG_NOSIGNAL); }, "send");
    loop.begin(trial, 0, [&](io_uring_sqe* sqe) {
      ::io_uring_prep_recv_multishot(sqe, ends.first.get(), nullptr, 0, 0);
      buffers.choose(sqe);
    });
    loop.at_end_of_turn([&] {
      if (trial.flags_ != 0 || trial.result_ != 0) loop.stop();
    });
    loop.run();
    if (trial.result_ < 0) throw_system_error(-trial.result_, "io_uring RECV, multishot");
    constexpr unsigned expected = IORING_CQE_F_BUFFER | IORING_CQE_F_MORE;
    if ((trial.flags_ & expected) != expected)
      return {false, "io_uring RECV is not multishot; it needs Linux 6.1 with CONFIG_IO_URING"};
    return {};
  } catch (const SystemError& error) {
    return {false, fmt::format("{}; {}", error.what(), uring_remedy(error.code().value(), "6.1"))};
  }
}

}  // namespace

/// In a child: the kernel takes a ring down some milliseconds after its close, by task_work in the process
/// that made it, which has a signal pending for that moment. A receive of that process which then stops at
/// the mark of urgent data ends with EAGAIN, and nothing wakes it for what is behind the mark.
Support probe_completion_loop() {
  try {
    auto [reason, childs_end] = unix_pair(SOCK_SEQPACKET);
    const int end = childs_end.get();
    ChildProcess child = ChildProcess::fork(
        [end] {
          const Support support = try_a_receive();
          if (support.available) return 0;
          checked(
              [&] {
                return ::send(end, support.reason.data(), support.reason.size(), MSG_NOSIGNAL);
              },
              "send");
          return 1;
        },
        {&end, 1}, SIGKILL);
    const ChildExit exit = child.wait();
    if (exit.clean()) return {};
    std::string text(512, '\0');
    const ssize_t got = ::recv(reason.get(), text.data(), text.size(), MSG_DONTWAIT);
    if (got <= 0) return {false, "io_uring: a try ended with " + exit.text()};
    text.resize(static_cast<std::size_t>(got));
    return {false, text};
  } catch (const SystemError& error) {
    return {false, error.what()};
  }
}

}  // namespace c10k
