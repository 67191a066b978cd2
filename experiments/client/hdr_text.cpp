#include "experiments/client/hdr_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace c10k {
namespace {

constexpr double ticks_per_half_distance = 5;

/// The percentile that follows: the closer to 100, the finer the steps.
double next_percentile(double percentile) {
  const double halvings = std::floor(std::log2(100 / (100 - percentile))) + 1;
  return percentile + 100 / (ticks_per_half_distance * std::exp2(halvings));
}

}  // namespace

std::string hdr_text(const LatencyHistogram& latency) {
  const auto buckets = latency.filled();
  const double max_ns = static_cast<double>(std::max<std::int64_t>(latency.max_ns(), 0));
  double total = 0;
  double sum = 0;
  double squares = 0;
  for (const auto& [middle, count] : buckets) {
    total += static_cast<double>(count);
    sum += middle * static_cast<double>(count);
    squares += middle * middle * static_cast<double>(count);
  }
  std::string text = fmt::format("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile",
                                 "TotalCount", "1/(1-Percentile)");
  double seen = 0;
  double percentile = 0;
  for (const auto& [middle, count] : buckets) {
    seen += static_cast<double>(count);
    const double reached = 100 * seen / total;
    // A bucket's middle may lie above the largest value in it.
    const double value = std::min(middle, max_ns) / 1e6;
    for (; seen < total && percentile <= reached; percentile = next_percentile(percentile)) {
      text += fmt::format("{:12.3f} {:2.12f} {:10.0f} {:14.2f}\n", value, percentile / 100, seen,
                          100 / (100 - percentile));
    }
  }
  if (total > 0) text += fmt::format("{:12.3f} {:2.12f} {:10.0f}\n", max_ns / 1e6, 1.0, total);
  const double mean = total > 0 ? sum / total : 0;
  const double variance = total > 0 ? std::max(0.0, squares / total - mean * mean) : 0;
  text += fmt::format("#[Mean    = {:12.3f}, StdDeviation   = {:12.3f}]\n", mean / 1e6,
                      std::sqrt(variance) / 1e6);
  text += fmt::format("#[Max     = {:12.3f}, Total count    = {:12.0f}]\n", max_ns / 1e6, total);
  text += fmt::format("#[Buckets = {:12}, SubBuckets     = {:12}]\n", buckets.size(), 1);
  return text;
}

}  // namespace c10k
