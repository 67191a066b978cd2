#include "experiments/client/schedule.hpp"

#include <mutex>
#include <random>

namespace c10k {

void Schedule::begin(std::int64_t begin_ns, double rate, bool poisson, std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  begin_ns_ = begin_ns;
  gap_ns_ = 1e9 / rate;
  poisson_ = poisson;
  random_.seed(seed);
  elapsed_gaps_ = 0;
}

std::int64_t Schedule::take() {
  const std::lock_guard lock(mutex_);
  // The gaps are added up, not the nanoseconds: no rounding adds up.
  const auto time = begin_ns_ + static_cast<std::int64_t>(elapsed_gaps_ * gap_ns_);
  elapsed_gaps_ += poisson_ ? std::exponential_distribution<double>()(random_) : 1.0;
  return time;
}

}  // namespace c10k
