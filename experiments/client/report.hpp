// The result of a run: JSON for programs, a few lines for people, one line for what went wrong.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "experiments/client/shared_run.hpp"

namespace c10k {

/// What a run that is over has to say. Borrows the run.
class Report {
 public:
  explicit Report(const SharedRun& run);

  /// Schema "c10k-client-result/1".
  [[nodiscard]] nlohmann::json to_json() const;
  /// Lines of at most 80 columns.
  [[nodiscard]] std::string summary() const;
  /// Empty when every attempt was echoed, or ended as a misbehaviour is meant to. Otherwise one line: how many were not, what most of them
  /// ended with, and what would help.
  [[nodiscard]] std::string failure() const;
  /// All phases but the warm-up.
  [[nodiscard]] const LatencyHistogram& latency() const { return all_.latency; }

 private:
  [[nodiscard]] bool ran(std::size_t phase) const;
  [[nodiscard]] double phase_s(std::size_t phase) const;
  [[nodiscard]] const PhaseTally& measured() const { return tally_.phase(measured_phase_); }
  [[nodiscard]] double connections_per_s() const;
  [[nodiscard]] double requests_per_s() const;
  [[nodiscard]] double cpu_share() const;
  [[nodiscard]] std::uint64_t failed() const { return tally_.attempts() - intended(); }
  /// Attempts that ended as they were meant to.
  [[nodiscard]] std::uint64_t intended() const;
  [[nodiscard]] int commonest_error() const;
  [[nodiscard]] nlohmann::json phases_json() const;
  [[nodiscard]] nlohmann::json series_json() const;
  [[nodiscard]] nlohmann::json client_json() const;

  const SharedRun& run_;
  Tally tally_;
  PhaseTally all_;  // but the warm-up
  std::size_t measured_phase_ = 0;
  bool hold_;
  double elapsed_s_ = 0;
  Usage usage_;               // of all client processes, over the whole run
  double busiest_share_ = 0;  // of a core, in the measured phase, by the busiest process
  std::uint64_t on_schedule_ = 0;
  std::uint64_t late_ = 0;
  std::vector<std::string> limits_;  // why the client, not the server, may have been the limit
};

}  // namespace c10k
