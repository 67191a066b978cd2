// What all slots of a run share: its clock, when to stop, and the books.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "experiments/client/options.hpp"
#include "experiments/client/payload.hpp"
#include "experiments/client/results.hpp"
#include "experiments/client/workload.hpp"

namespace c10k {

/// Why a run started no further attempts.
enum class End : std::uint8_t {
  completed,    ///< All phases have done what they do.
  interrupted,  ///< SIGINT or SIGTERM.
  unreachable,  ///< Not one connection could be opened.
  stalled,      ///< In a phase without a duration the server echoed nothing for a whole timeout.
};
[[nodiscard]] std::string_view end_name(End end);

/// Thread-safe, but for what says otherwise.
class Run {
 public:
  Run(const Options& options, std::vector<Phase> phases);

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] Payload& payload() { return payload_; }

  /// Begins the first phase, or ends the current one and begins the next. False when there is none,
  /// or the run has been stopped. To be called by one thread while no attempt is in flight.
  [[nodiscard]] bool next_phase();
  [[nodiscard]] std::size_t phase_index() const { return phases_begun_ - 1; }
  [[nodiscard]] const std::vector<Phase>& phases() const { return phases_; }
  [[nodiscard]] const Phase& phase() const { return phases_[phase_index()]; }

  /// Whether one more attempt may start at `now_ns`; takes it from the number of requests.
  [[nodiscard]] bool may_start(std::int64_t now_ns);
  /// Keeps the books of an attempt of `slot`, ends the run when it shows that there is no point,
  /// and says what the slot does next.
  [[nodiscard]] Next ended(std::size_t slot, Attempt attempt, std::int64_t now_ns);
  void stop(End why);

  void connection_opened();
  void connection_closed() { --open_; }

  [[nodiscard]] std::size_t open() const { return open_; }
  [[nodiscard]] std::size_t peak() const { return peak_; }
  [[nodiscard]] SharedTally::Counts counts() const { return tally_.counts(); }
  [[nodiscard]] double elapsed_s(std::int64_t now_ns) const;

  // For the report, when all is over.
  [[nodiscard]] Tally total() const { return tally_.total(); }
  [[nodiscard]] End end() const { return end_; }
  /// The time a phase took; 0 for one that never began.
  [[nodiscard]] double phase_s(std::size_t index) const;
  /// From the begin of the first phase to the end of the last attempt.
  [[nodiscard]] double all_phases_s() const;

 private:
  struct PhaseTime {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
  };

  Options options_;
  std::vector<Phase> phases_;
  Payload payload_;
  SharedTally tally_;

  std::vector<PhaseTime> phase_times_;  // by phase; written between phases only
  std::atomic<std::size_t> phases_begun_ = 0;
  std::int64_t deadline_ns_ = 0;          // of a phase that repeats; likewise
  std::atomic<std::uint64_t> taken_ = 0;  // of the number of requests
  std::atomic<bool> stopped_ = false;
  std::atomic<End> end_ = End::completed;
  std::atomic<bool> any_opened_ = false;
  std::atomic<std::int64_t> last_echo_ns_ = 0;  // of this phase, or its begin
  std::atomic<bool> silent_ = false;            // nothing echoed for a whole timeout
  std::atomic<std::size_t> open_ = 0;
  std::atomic<std::size_t> peak_ = 0;
};

}  // namespace c10k
