#include "experiments/handoff_bench/stats.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace c10k {

double quantile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (at - std::floor(at));
}

namespace {

double rounded(double value) {
  return std::round(value * 1000) / 1000;
}

}  // namespace

Spread::Spread(const std::vector<double>& values)
    : median(quantile(values, 0.5)), q1(quantile(values, 0.25)), q3(quantile(values, 0.75)) {}

nlohmann::json Spread::to_json() const {
  return {{"median", rounded(median)}, {"q1", rounded(q1)}, {"q3", rounded(q3)}};
}

Ratio::Ratio(const std::vector<double>& ratios, std::mt19937_64 random)
    : median(quantile(ratios, 0.5)) {
  if (ratios.empty()) return;
  std::uniform_int_distribution<std::size_t> any(0, ratios.size() - 1);
  std::vector<double> medians(1000);
  std::vector<double> sample(ratios.size());
  for (double& one : medians) {
    for (double& value : sample) value = ratios[any(random)];
    one = quantile(sample, 0.5);
  }
  low = quantile(medians, 0.025);
  high = quantile(medians, 0.975);
}

nlohmann::json Ratio::to_json() const {
  return {{"median", rounded(median)}, {"low", rounded(low)}, {"high", rounded(high)}};
}

}  // namespace c10k
