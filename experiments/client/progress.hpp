// A line on stderr for a person who waits.
#pragma once

#include "experiments/client/run.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// Rewrites one line a few times a second while the loop turns, and clears it at the end. Does
/// nothing unless the options ask for it. Borrows both for its life.
class Progress {
 public:
  Progress(EventLoop& loop, const Run& run);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  void show();
  void schedule();

  EventLoop& loop_;
  const Run& run_;
  std::uint64_t timer_ = 0;
};

}  // namespace c10k
