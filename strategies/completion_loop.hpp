// One thread and one io_uring: who began an operation is told when it has completed.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "ipc/handoff.hpp"
#include "ipc/uring.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// Whoever begins operations on a completion loop. It must stay alive, and what an operation reads or
/// writes with it, until in_flight() is 0 or the loop turns no more: closing a descriptor ends none.
class Completer {
 public:
  virtual ~Completer() = default;
  /// `operation` is what prepare() was given; `flags` are IORING_CQE_F_...
  virtual void on_completion(unsigned operation, int result, unsigned flags) = 0;
  /// How many operations have not seen their last completion (one without IORING_CQE_F_MORE).
  [[nodiscard]] unsigned in_flight() const { return in_flight_; }

 private:
  friend class CompletionLoop;
  unsigned in_flight_ = 0;
};

class CompletionLoop : public Loop {
 public:
  /// `entries` are submitted at once at most; up to `completions` may wait without the kernel having to
  /// put them aside (it loses none). Make it in the thread that runs it: the kernel takes submissions
  /// from no other one (IORING_SETUP_SINGLE_ISSUER).
  /// With `only`, the ring never runs any operation (IORING_OP_...) but those, and those of this class.
  explicit CompletionLoop(unsigned entries = 512, unsigned completions = 4096,
                          std::span<const int> only = {});

  ~CompletionLoop() override;

  /// Readiness is always told as a level, by a poll of a single shot that is made anew once the handler
  /// has returned: its costs are an entry, and no system call. Interest::exclusive is not honoured: an
  /// entry of a poll takes an exclusive wake-up also while its process is busy or stopped
  /// (io_poll_wake), and who could take the connection sleeps on.
  void watch(int fd, Interest interest, EventHandler& handler) override;
  void change(int fd, Interest interest) override;
  /// The kernel has let go of the file when this returns.
  void forget(int fd, Removal why) override;

  /// An empty entry, to be filled by io_uring_prep_...(): its completions go to `completer` with
  /// `operation`, a number below 8. It is submitted at the end of the turn, behind the earlier ones.
  template <typename Prepare>
  void begin(Completer& completer, unsigned operation, Prepare&& prepare) {
    io_uring_sqe* sqe = entry();
    prepare(sqe);
    sqe->user_data = key(completer, operation);
    ++completer.in_flight_;
  }
  /// Asks for an end of `operation`, which completes all the same: with ECANCELED unless it had ended.
  void withdraw(Completer& completer, unsigned operation);
  /// Closes the descriptor behind everything that was begun on it. (A close() at once could give its
  /// number to another file before the kernel has seen an entry that means this one.)
  void close(OwnedFd fd);

  /// Submits what has been begun, without waiting, and runs what has been put off. The completions come
  /// in the next turn.
  void flush();

  [[nodiscard]] Uring& ring() { return ring_; }

 private:
  class Watch;

  void turn() override;
  void wait();
  void dispatch(std::uint64_t key, int result, unsigned flags);
  [[nodiscard]] io_uring_sqe* entry();
  [[nodiscard]] static std::uint64_t key(Completer& completer, unsigned operation) {
    return reinterpret_cast<std::uint64_t>(&completer) | operation;
  }

  Uring ring_;
  std::vector<std::unique_ptr<Watch>> watches_;    // by descriptor
  std::vector<std::unique_ptr<Watch>> forgotten_;  // whose last completion is to come
};

/// Whether a completion loop and what goes with it works here.
[[nodiscard]] Support probe_completion_loop();

}  // namespace c10k
