// Which slot begins its next attempt, and when, where one event loop drives many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "experiments/client/run.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// What an engine does with its slots when the queue says so.
class SlotUser {
 public:
  virtual ~SlotUser() = default;
  /// Whether the slot has something to tell in a phase that opens no connections: one that it holds,
  /// or how it lost it.
  [[nodiscard]] virtual bool takes_part(std::size_t slot) const = 0;
  /// May end the attempt before it returns.
  virtual void begin_attempt(std::size_t slot, std::int64_t intended_ns, std::int64_t now_ns) = 0;
};

/// Takes the slots of this process through the phases, in step with the other processes. Borrows
/// what it is given.
class SlotQueue : public EventHandler {
 public:
  SlotQueue(Run& run, Loop& loop, SlotUser& user);

  /// Turns the loop until the run is over.
  void work();
  /// An attempt of the slot has ended. The next one is not begun here, so that failing attempts do
  /// not recurse.
  void ended(std::size_t slot, Next next, std::int64_t now_ns);
  /// Begins what is due. To be called after whatever may have ended an attempt.
  void start_ready();

  void on_ready(Readiness ready) override;

 private:
  struct Member : DueMember {
    std::size_t slot = 0;
    bool first = false;  // its next attempt is its first of the phase
    std::int64_t free_since_ns = 0;
  };

  void expect_phase();
  /// Says so when nothing of the phase is left to do.
  void turn_ended();
  void start_another();
  /// When the next attempt is to start. Nothing while that time has not come (a timer is set), or
  /// when no more are to be made (then `ready_` is empty).
  [[nodiscard]] std::optional<std::int64_t> due_start(std::int64_t now_ns);
  void rest_ready();
  void rest(Member& member);

  Run& run_;
  Loop& loop_;
  SlotUser& user_;
  DueList<Member> pauses_;
  std::vector<Member> members_;
  std::deque<Member*> ready_;          // to start, in turn: so an open rate spreads over all
  std::optional<std::int64_t> start_;  // taken, and not due yet
  bool waiting_ = false;               // for it, or to see whether the run has been stopped
  bool in_phase_ = false;
  std::size_t unstarted_ = 0;  // the first slot that has not yet begun the phase
  std::size_t working_ = 0;    // slots that have begun it and have not come to rest
};

}  // namespace c10k
