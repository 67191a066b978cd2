// The few statistics that the table shows.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <random>
#include <vector>

namespace c10k {

/// The value that `fraction` of the sorted values do not exceed, between neighbours if need be.
[[nodiscard]] double quantile(std::vector<double> values, double fraction);

/// The middle, and the quarters around it.
struct Spread {
  double median = 0;
  double q1 = 0;
  double q3 = 0;

  explicit Spread(const std::vector<double>& values);
  /// Half the distance of the quarters, as a share of the median.
  [[nodiscard]] double relative() const { return median > 0 ? (q3 - q1) / 2 / median : 0; }
  [[nodiscard]] nlohmann::json to_json() const;
};

/// The median of what one cell took over what another took in the same block, with a bootstrap 95 %
/// interval.
struct Ratio {
  double median = 0;
  double low = 0;
  double high = 0;

  Ratio(const std::vector<double>& ratios, std::mt19937_64 random);
  [[nodiscard]] nlohmann::json to_json() const;
};

}  // namespace c10k
