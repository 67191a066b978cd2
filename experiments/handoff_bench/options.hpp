// What handoff-bench is told to do.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace c10k {

/// Where sender and receiver may run.
enum class Pin : std::uint8_t {
  one,   ///< Both on the same core: what they cost, without what moving between cores costs.
  free,  ///< Anywhere.
};
[[nodiscard]] const char* name_of(Pin pin);

struct BenchOptions {
  std::vector<std::string> methods;  ///< From the registry; the floors are always measured.
  std::vector<std::size_t> batches;
  std::vector<Pin> pins;
  std::int64_t duration_ns = 0;   ///< Of a cell, unless descriptors are given.
  std::uint64_t descriptors = 0;  ///< Of a cell; 0: as many as the duration takes.
  std::size_t repetitions = 0;
  std::size_t latencies = 0;  ///< Hand-offs one at a time, in a repetition.
  std::uint64_t seed = 0;
  std::string baseline;
  std::string json;
  bool check = false;

  [[nodiscard]] nlohmann::json to_json() const;
};

/// Nothing after --help and --version. Throws UsageError.
[[nodiscard]] std::optional<BenchOptions> parse_bench_options(int argc, char** argv);

}  // namespace c10k
