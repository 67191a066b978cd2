// What the engines have in common that drive many slots as state machines.
#pragma once

#include <optional>
#include <vector>

#include "experiments/client/payload.hpp"
#include "experiments/client/run.hpp"
#include "experiments/client/slot_queue.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// One concurrent connection, used again for each attempt. An engine adds how it is driven.
class EngineSlot : public DueMember {
 public:
  std::size_t index = 0;  // in its process
  Exchange exchange;
  std::optional<Exchange::Step> lost;  // how an idle connection ended; the next attempt tells
  std::int64_t intended_ns = 0;
  std::int64_t started_ns = 0;
  std::int64_t connected_ns = 0;  // 0 where the attempt has opened no connection
  std::int64_t ended_ns = 0;
  std::uint64_t echoes = 0;  // on this connection
};

/// `Slot` is an EngineSlot.
template <typename Slot>
class SlotEngine : public SlotUser {
 public:
  /// Carries out all phases of the run.
  void work() { queue_.work(); }

  [[nodiscard]] bool takes_part(std::size_t slot) const override {
    return has_connection(slots_[slot]) || slots_[slot].lost;
  }
  void begin_attempt(std::size_t index, std::int64_t intended_ns, std::int64_t now_ns) override {
    Slot& slot = slots_[index];
    slot.intended_ns = intended_ns;
    slot.started_ns = now_ns;
    slot.connected_ns = 0;
    attempt(slot);
  }

 protected:
  SlotEngine(Run& run, Loop& loop)
      : run_(run),
        queue_(run, loop, *this),
        timeouts_(loop, run.options().timeout_ns,
                  [this](Slot& slot) {
                    timed_out(slot);
                    queue_.start_ready();
                  }),
        slots_(run.slots()) {
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].index = i;
  }

  [[nodiscard]] virtual bool has_connection(const Slot& slot) const = 0;
  /// Begins an attempt; its times are set but for that of the connection.
  virtual void attempt(Slot& slot) = 0;
  /// The time for a connect or an echo is over.
  virtual void timed_out(Slot& slot) = 0;

  /// Keeps the books of the slot's attempt. What comes back is for the queue.
  [[nodiscard]] Next count_end(Slot& slot, const Exchange::Step& step) {
    slot.unlink();
    const bool echoed = step.outcome == Outcome::echoed;
    if (echoed) ++slot.echoes;
    // A clock reading less for each echo, where nothing has been waited for since.
    const bool now_known = echoed && !run_.options().server_closes;
    slot.ended_ns = now_known ? slot.exchange.echoed_ns() : monotonic_ns();
    return run_.ended(slot.index, {.outcome = step.outcome,
                                   .error = step.error,
                                   .intended_ns = slot.intended_ns,
                                   .started_ns = slot.started_ns,
                                   .connected_ns = slot.connected_ns,
                                   .echoed_ns = echoed ? slot.exchange.echoed_ns() : 0,
                                   .ended_ns = slot.ended_ns});
  }
  /// After an attempt: the phase closes a connection that has failed, or had as many echoes as it may.
  [[nodiscard]] bool keeps_connection(const Slot& slot, const Exchange::Step& step) const {
    return step.outcome == Outcome::echoed && slot.echoes != run_.phase().requests_per_connection;
  }

  Run& run_;
  SlotQueue queue_;
  DueList<Slot> timeouts_;
  std::vector<Slot> slots_;
};

}  // namespace c10k
