// A coroutine per connection on one thread, over epoll: the code of a thread with blocking calls, and
// the system calls of an event loop. What goroutines and greenlets are, without a scheduler and
// without a stack: a suspended coroutine is its frame, a few hundred bytes.
//
// The system calls of an attempt are those of the engine epoll: the request is sent right after
// connect, and the socket is registered once, when there is something to wait for.
#include <deque>
#include <vector>

#include "experiments/client/coroutine_slot.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/misbehave.hpp"

namespace c10k {

namespace {

using Step = Exchange::Step;

bool going(const Step& step) {
  return step.state != Exchange::State::ended;
}

// Neither coroutine ends: it is destroyed where it waits for a turn that does not come, or in an
// attempt that an exception of another one has cut off.

/// A client that behaves. One frame for all its attempts: nothing is allocated for each.
Task<void> echo(CoroutineSlot& slot) {
  while (true) {
    Step step = slot.take_lost();
    if (going(step) && !slot.has_connection()) {
      step = slot.open();
      if (going(step)) step = slot.connect();
    }
    if (going(step)) slot.begin_exchange(slot.options().server_closes);
    while (going(step)) {
      // Both at once: with a large payload the server stops reading when nobody takes its echo.
      if (!slot.exchange().all_sent()) step = slot.send();
      if (going(step)) step = co_await slot.ready(!slot.exchange().all_sent());
      if (going(step)) step = slot.receive();
    }
    slot.end_attempt(step);
    co_await slot.turn();
  }
}

Task<void> misbehave(CoroutineSlot& slot, Task<Step> (*attempt)(CoroutineSlot&)) {
  while (true) {
    const Step step = co_await attempt(slot);
    slot.end_attempt(step);
    co_await slot.turn();
  }
}

class CoroutineEngine : public SlotUser {
 public:
  explicit CoroutineEngine(Run& run) : shared_(run, *this) {
    const Misbehaviour* misbehaviour = find_misbehaviour(run.options().misbehave);
    for (std::size_t i = 0; i < run.slots(); ++i) {
      CoroutineSlot& slot = slots_.emplace_back(shared_, i);
      coroutines_.push_back(misbehaviour != nullptr ? misbehave(slot, misbehaviour->attempt)
                                                    : echo(slot));
      slot.wait_for_turn(coroutines_.back().handle());
    }
  }
  void work() { shared_.queue.work(); }

  [[nodiscard]] bool takes_part(std::size_t slot) const override {
    return slots_[slot].takes_part();
  }
  void begin_attempt(std::size_t slot, std::int64_t intended_ns, std::int64_t now_ns) override {
    slots_[slot].begin_attempt(intended_ns, now_ns);
  }

 private:
  // What is below borrows from what is above it.
  CoroutineShared shared_;
  std::deque<CoroutineSlot> slots_;
  std::vector<Task<void>> coroutines_;
};

}  // namespace

void run_coroutine_engine(Run& run) {
  CoroutineEngine(run).work();
}

}  // namespace c10k
