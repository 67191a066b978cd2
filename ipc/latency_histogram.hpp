// Latencies as a mergeable, log-bucketed histogram that may live in shared memory.
#pragma once

#include <algorithm>
#include <boost/histogram/axis/regular.hpp>
#include <boost/histogram/histogram.hpp>
#include <boost/histogram/storage_adaptor.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace c10k {

/// Buckets grow by 1 % from 1 ns to 100 s, so a value reported as its bucket's middle is within
/// 0.5 %. The maximum is kept exactly. Holds no pointers; one writer; a reader in another process
/// sees each count whole, and at worst some microseconds old.
class LatencyHistogram {
 public:
  LatencyHistogram();

  /// Adds one latency; below 1 ns counts as 1 ns.
  void add(std::int64_t ns) {
    counts_(static_cast<double>(std::max<std::int64_t>(ns, 1)));
    max_ns_ = std::max(max_ns_, ns);
  }
  void merge(const LatencyHistogram& other);

  [[nodiscard]] std::uint64_t count() const;
  [[nodiscard]] std::int64_t max_ns() const { return max_ns_; }
  /// The latency that `fraction` (0 to 1) of the values do not exceed; 0 when there are none.
  [[nodiscard]] double quantile_ns(double fraction) const;

  struct Bucket {
    double middle_ns;  ///< At most half a percent off.
    std::uint64_t count;
  };
  /// Those that are not empty, in order.
  [[nodiscard]] std::vector<Bucket> filled() const;

  /// {"count", "p50_us", "p90_us", "p99_us", "p99_9_us", "p99_99_us", "max_us", "buckets_ns":
  /// [[middle, count]]}. The buckets are what merges; they are left out unless asked for.
  [[nodiscard]] nlohmann::json to_json(bool with_buckets) const;

 private:
  static constexpr int buckets = 2546;  // ln(1e11) / ln(1.01)
  using Axis = boost::histogram::axis::regular<double, boost::histogram::axis::transform::log,
                                               boost::histogram::axis::null_type>;
  // Two more for what is below and above the axis.
  using Storage = boost::histogram::storage_adaptor<std::array<std::uint64_t, buckets + 2>>;
  boost::histogram::histogram<std::tuple<Axis>, Storage> counts_;
  std::int64_t max_ns_ = 0;
};

}  // namespace c10k
