#include "ipc/usage.hpp"

#include <algorithm>
#include <cmath>

namespace c10k {

std::int64_t parse_seconds(std::string_view what, std::string_view text, double low, double high) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc{} || stopped != end || !std::isfinite(value)) {
    throw UsageError(
        fmt::format("{}: '{}' is not a number of seconds; give {} to {}", what, text, low, high));
  }
  if (value < low || value > high) {
    throw UsageError(
        fmt::format("{}: {} is out of range; give {} to {} seconds", what, text, low, high));
  }
  return static_cast<std::int64_t>(value * 1e9);
}

std::string parse_choice(std::string_view what, std::string_view text,
                         const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
    throw UsageError(
        fmt::format("{}: unknown value '{}'; allowed: {}", what, text, fmt::join(allowed, ", ")));
  }
  return std::string(text);
}

}  // namespace c10k
