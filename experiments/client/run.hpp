// One client process's part in a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "experiments/client/options.hpp"
#include "experiments/client/payload.hpp"
#include "experiments/client/shared_run.hpp"
#include "experiments/client/workload.hpp"

namespace c10k {

/// Thread-safe, but for what says otherwise. An engine does:
///
///   while (run.next_phase()) { what run.phase() says }
///
/// or, where it may not wait, calls phase_ended(), watches phase_fd(), and calls next_phase() once
/// that is readable. The first phase begins so, too.
class Run {
 public:
  Run(const SharedRun& shared, std::size_t process);
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  [[nodiscard]] const Options& options() const { return shared_.options; }
  [[nodiscard]] Payload& payload() { return payload_; }
  /// This process's number, from 0; each has its own.
  [[nodiscard]] std::size_t process() const { return process_; }
  /// The connections of this process.
  [[nodiscard]] std::size_t slots() const { return share(options().connections); }

  /// Says that nothing of this process is in flight. To be called once before each next_phase(),
  /// which otherwise does it; by one thread.
  void phase_ended();
  /// Readable once next_phase() does not wait any more. Borrowed; another one for the phase after.
  [[nodiscard]] int phase_fd() const { return shared_.go[phases_taken_ % 2].get(); }
  /// Begins the next phase once all processes have ended the one before. False when there is none,
  /// or the run has been stopped. To be called by one thread.
  [[nodiscard]] bool next_phase();
  /// The phase with this process's share of slots.
  [[nodiscard]] const Phase& phase() const { return phase_; }

  /// Takes one more attempt: when it is to start, which at an open rate is a time to come, or one
  /// that has passed. Nothing when the phase makes no more.
  [[nodiscard]] std::optional<std::int64_t> take_start(std::int64_t now_ns);
  /// Whoever waits for a start to come looks at least so often whether the run has been stopped.
  static constexpr std::int64_t stop_check_ns = 100'000'000;
  [[nodiscard]] bool stopped() const { return state_.stopped.load(std::memory_order_relaxed); }
  /// At an open rate: an attempt begins, in a slot that has been free since `free_since_ns`. Where
  /// that was before its time, its lateness is the client's own.
  void began(std::int64_t intended_ns, std::int64_t now_ns, std::int64_t free_since_ns);
  /// Keeps the books of an attempt of `slot` (`phase` need not be set), ends the run when it shows
  /// that there is no point, and says what the slot does next.
  [[nodiscard]] Next ended(std::size_t slot, Attempt attempt);

  void connection_opened();
  void connection_closed();

  /// For an engine whose processes have one slot each: bounds how many of all processes make their
  /// first attempt of the phase at once, as Phase::first_at_once does it within a process.
  void wait_for_turn();
  void turn_over();

 private:
  /// Of `count` slots, dealt out one by one to all processes, how many this one has.
  [[nodiscard]] std::size_t share(std::size_t count) const;
  [[nodiscard]] Usage own_usage() const;

  const SharedRun& shared_;
  SharedRun::State& state_;
  SharedRun::Process& own_;
  std::size_t process_;
  Payload payload_;
  Phase phase_;
  std::size_t phase_index_ = 0;
  std::size_t phases_taken_ = 0;  // tokens, the one for the end too
  bool in_phase_ = false;
  bool arrived_ = false;
  bool takes_turns_ = false;
};

}  // namespace c10k
