// What the hand-off methods are to cost at most, in one place.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "experiments/handoff_bench/bench.hpp"

namespace c10k {

/// How one target came out.
struct Verdict {
  enum class Outcome : std::uint8_t { met, missed, not_measured };
  std::string text;  ///< The target, with what was measured or why nothing was.
  Outcome outcome = Outcome::not_measured;
};

/// Whether a target needs this method.
[[nodiscard]] bool is_targeted(std::string_view method);

[[nodiscard]] std::vector<Verdict> check_targets(const Results& results, std::uint64_t seed);

}  // namespace c10k
