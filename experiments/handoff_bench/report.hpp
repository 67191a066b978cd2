// The result: JSON for programs, tables of 80 columns for people.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "experiments/handoff_bench/bench.hpp"

namespace c10k {

/// Schema "c10k-handoff-bench/1". `host` is what facts_of_host() said when the run began.
[[nodiscard]] nlohmann::json to_json(const BenchOptions& options, const Results& results,
                                     nlohmann::json host);
[[nodiscard]] std::string to_table(const BenchOptions& options, const Results& results,
                                   const nlohmann::json& host);

/// Kernel, CPU, cores, limits, load; source revision and build.
[[nodiscard]] nlohmann::json facts_of_host();

}  // namespace c10k
