// A line on stderr that is written over as the run goes on, for a person to watch.
#pragma once

#include <cstdint>

#include "experiments/client/shared_run.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// Shows the run while it lives, if its options ask for it. Borrows the loop and the run.
class Progress {
 public:
  Progress(EventLoop& loop, const SharedRun& run);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  void schedule();
  void show();

  EventLoop& loop_;
  const SharedRun& run_;
  std::uint64_t timer_ = 0;
};

}  // namespace c10k
