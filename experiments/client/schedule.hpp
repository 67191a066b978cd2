// The intended starts of an open-loop load.
#pragma once

#include <cstdint>
#include <random>

#include "experiments/client/shared_mutex.hpp"

namespace c10k {

/// One row of times that all processes of a run draw from: evenly spaced, or with exponential times
/// between them (a Poisson process). The times do not depend on who draws, or on how late. In shared
/// memory; holds no pointers.
class Schedule {
 public:
  /// Starts anew with the first time at `begin_ns`. `rate` is in starts per second.
  void begin(std::int64_t begin_ns, double rate, bool poisson, std::uint64_t seed);
  /// The next time, which is taken; it may have passed.
  [[nodiscard]] std::int64_t take();

 private:
  SharedMutex mutex_;
  std::int64_t begin_ns_ = 0;
  double gap_ns_ = 0;  // the mean
  bool poisson_ = false;
  std::mt19937_64 random_;
  double elapsed_gaps_ = 0;  // from begin to the next time
};

}  // namespace c10k
