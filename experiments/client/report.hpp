// The result of a run: JSON for programs, a few lines for people, one line for what went wrong.
#pragma once

#include <sys/resource.h>

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "experiments/client/run.hpp"

namespace c10k {

/// What a run that is over has to say. Borrows the run.
class Report {
 public:
  /// `before` and `after` are the process's own usage around the run.
  Report(const Run& run, const rusage& before, const rusage& after);

  /// Schema "c10k-client-result/1".
  [[nodiscard]] nlohmann::json to_json() const;
  /// Lines of at most 80 columns.
  [[nodiscard]] std::string summary() const;
  /// Empty when every attempt was echoed. Otherwise one line: how many were not, what most of them
  /// ended with, and what would help.
  [[nodiscard]] std::string failure() const;

 private:
  [[nodiscard]] const PhaseTally& measured() const;
  [[nodiscard]] double connections_per_s() const;
  [[nodiscard]] double requests_per_s() const;
  [[nodiscard]] double cpu_share() const;
  [[nodiscard]] int commonest_error() const;

  const Run& run_;
  Tally tally_;
  bool hold_;
  double elapsed_s_;
  std::int64_t user_us_;
  std::int64_t system_us_;
  std::int64_t voluntary_switches_;
  std::int64_t involuntary_switches_;
  std::int64_t max_rss_bytes_;
};

}  // namespace c10k
