// What the engines with one loop and many slots share: which slot makes its next attempt, and when.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "experiments/client/payload.hpp"
#include "experiments/client/run.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// One concurrent connection, used again for each attempt. An engine adds how it is driven.
class EngineSlot : public DueMember {
 public:
  std::size_t index = 0;  // in its process
  bool first = false;     // its next attempt is its first of the phase
  Exchange exchange;
  std::optional<Exchange::Step> lost;  // how an idle connection ended; the next attempt tells
  std::int64_t intended_ns = 0;
  std::int64_t started_ns = 0;
  std::int64_t connected_ns = 0;  // 0 where the attempt has opened no connection
  std::int64_t free_since_ns = 0;
  std::uint64_t echoes = 0;  // on this connection
};

/// `Slot` is an EngineSlot.
template <typename Slot>
class SlotEngine {
 public:
  virtual ~SlotEngine() = default;
  SlotEngine(const SlotEngine&) = delete;
  SlotEngine& operator=(const SlotEngine&) = delete;

  /// Carries out all phases of the run.
  void work() {
    loop_.at_end_of_turn([this] { turn_ended(); });
    expect_phase();
    loop_.run();
  }

 protected:
  SlotEngine(Run& run, Loop& loop)
      : run_(run),
        loop_(loop),
        timeouts_(loop, run.options().timeout_ns,
                  [this](Slot& slot) {
                    timed_out(slot);
                    start_ready();
                  }),
        slots_(run.slots()),
        pauses_(loop, refusal_pause_ns, [this](Slot& slot) {
          ready_.push_back(&slot);
          start_ready();
        }) {
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].index = i;
  }

  [[nodiscard]] virtual bool has_connection(const Slot& slot) const = 0;
  /// Begins an attempt; its times are set but for that of the connection.
  virtual void attempt(Slot& slot) = 0;
  /// The time for a connect or an echo is over.
  virtual void timed_out(Slot& slot) = 0;

  /// Keeps the books of the slot's attempt. What comes back is for go_on().
  [[nodiscard]] Next ended(Slot& slot, const Exchange::Step& step) {
    slot.unlink();
    const bool echoed = step.outcome == Outcome::echoed;
    // A clock reading less for each echo, where nothing has been waited for since.
    const std::int64_t now =
        echoed && !run_.options().server_closes ? slot.exchange.echoed_ns() : monotonic_ns();
    slot.free_since_ns = now;
    if (echoed) ++slot.echoes;
    return run_.ended(slot.index, {.outcome = step.outcome,
                                   .error = step.error,
                                   .intended_ns = slot.intended_ns,
                                   .started_ns = slot.started_ns,
                                   .connected_ns = slot.connected_ns,
                                   .echoed_ns = echoed ? slot.exchange.echoed_ns() : 0,
                                   .ended_ns = now});
  }
  /// The slot does what comes next. To be followed by start_ready(), in the end.
  void go_on(Slot& slot, Next next) {
    switch (next) {
      case Next::again:
        ready_.push_back(&slot);
        break;
      case Next::pause:
        pauses_.push(slot, monotonic_ns());
        break;
      case Next::rest:
        --working_;
        break;
    }
    if (std::exchange(slot.first, false)) start_another();
  }
  /// Starts what is due. Ended attempts wait for it in a queue, so that failing ones do not recurse.
  void start_ready() {
    while (!ready_.empty()) {
      // In turn, so that an open rate spreads over all connections.
      Slot& slot = *ready_.front();
      if (!has_connection(slot) && !slot.lost && !run_.phase().connects) {
        ready_.pop_front();
        go_on(slot, Next::rest);
        continue;
      }
      const std::int64_t now = monotonic_ns();
      const auto start = due_start(now);
      if (!start) return;
      ready_.pop_front();
      run_.began(*start, now, slot.free_since_ns);
      slot.intended_ns = *start;
      slot.started_ns = now;
      slot.connected_ns = 0;
      attempt(slot);
    }
  }

  Run& run_;
  Loop& loop_;
  DueList<Slot> timeouts_;
  std::vector<Slot> slots_;

 private:
  /// Sees that the other processes of the run are through with the phase, too.
  class PhaseWatch : public EventHandler {
   public:
    explicit PhaseWatch(SlotEngine& engine) : engine_(engine) {}
    void on_ready(Readiness) override { engine_.next_phase(); }

   private:
    SlotEngine& engine_;
  };

  void expect_phase() {
    run_.phase_ended();
    loop_.watch(run_.phase_fd(), {.read = true, .level = true}, phase_watch_);
  }

  void next_phase() {
    loop_.forget(run_.phase_fd(), Removal::still_open);
    if (!run_.next_phase()) return loop_.stop();
    in_phase_ = true;
    unstarted_ = 0;
    for (std::size_t i = 0; i < run_.phase().first_at_once; ++i) start_another();
    start_ready();
  }

  void turn_ended() {
    if (!in_phase_ || working_ != 0 || unstarted_ != run_.phase().slots) return;
    in_phase_ = false;
    expect_phase();
  }

  void start_another() {
    if (unstarted_ == run_.phase().slots) return;
    Slot& slot = slots_[unstarted_++];
    slot.first = true;
    slot.free_since_ns = loop_.now_ns();
    ++working_;
    ready_.push_back(&slot);
  }

  /// When the next attempt is to start. Nothing while that time has not come (a timer is set), or
  /// when no more are to be made (then `ready_` is empty).
  [[nodiscard]] std::optional<std::int64_t> due_start(std::int64_t now_ns) {
    if (!start_) {
      start_ = run_.take_start(now_ns);
      if (!start_) {
        rest_ready();
        return std::nullopt;
      }
    }
    if (*start_ <= now_ns) return std::exchange(start_, std::nullopt);
    if (run_.stopped()) {
      start_.reset();
      rest_ready();
    } else if (!waiting_) {
      waiting_ = true;
      loop_.after(std::min(*start_ - now_ns, Run::stop_check_ns), [this] {
        waiting_ = false;
        start_ready();
      });
    }
    return std::nullopt;
  }

  void rest_ready() {
    while (!ready_.empty()) {
      Slot& slot = *ready_.front();
      ready_.pop_front();
      go_on(slot, Next::rest);
    }
  }

  PhaseWatch phase_watch_{*this};
  DueList<Slot> pauses_;
  std::deque<Slot*> ready_;
  std::optional<std::int64_t> start_;  // taken, and not due yet
  bool waiting_ = false;               // for it, or to see whether the run has been stopped
  bool in_phase_ = false;
  std::size_t unstarted_ = 0;  // the first slot that has not yet begun the phase
  std::size_t working_ = 0;    // slots that have begun it and have not come to rest
};

}  // namespace c10k
