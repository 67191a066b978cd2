// --hand-off-at first-byte: connections wait here until there is something to read, as in the original
// experiment. A client that connects and is silent then costs no worker anything.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "ipc/handoff.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"
#include "workers/read_ahead_guess.hpp"

namespace c10k {

class FirstByteGate {
 public:
  struct Hooks {
    /// It is readable, or has ended. No byte has been consumed, and the loop has forgotten it.
    std::function<void(Received)> pass;
    /// Nothing came in time (never with a timeout of 0).
    std::function<void(Received)> timed_out;
  };

  FirstByteGate(EventLoop& loop, std::int64_t timeout_ns, Hooks hooks);
  ~FirstByteGate();
  FirstByteGate(const FirstByteGate&) = delete;
  FirstByteGate& operator=(const FirstByteGate&) = delete;

  void hold(Received connection);
  /// Passes on all that wait, readable or not.
  void open();
  [[nodiscard]] std::size_t size() const { return waiting_; }

 private:
  class Waiting;
  Received take(Waiting& place);

  EventLoop& loop_;
  Hooks hooks_;
  ReadAheadGuess guess_;
  std::deque<Waiting> places_;  // never shrinks; those left are reused
  std::vector<Waiting*> free_;
  std::size_t waiting_ = 0;
  std::unique_ptr<DueList<Waiting>> due_;
};

}  // namespace c10k
