// How attempts end, and the books that are kept of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "experiments/client/shared_mutex.hpp"
#include "ipc/latency_histogram.hpp"
#include "ipc/shared_memory.hpp"

namespace c10k {

/// The one end of an attempt.
enum class Outcome : std::uint8_t { echoed, mismatched, refused, reset, eof, timeout, local_error };

inline constexpr std::array<std::string_view, 7> outcome_names{
    "echoed", "mismatched", "refused", "reset", "eof", "timeout", "local_error"};

[[nodiscard]] constexpr std::string_view outcome_name(Outcome outcome) {
  return outcome_names[static_cast<std::size_t>(outcome)];
}

class OutcomeSet {
 public:
  constexpr OutcomeSet(std::initializer_list<Outcome> outcomes) {
    for (const Outcome outcome : outcomes) bits_ |= 1U << static_cast<unsigned>(outcome);
  }
  [[nodiscard]] constexpr bool contains(Outcome outcome) const {
    return (bits_ >> static_cast<unsigned>(outcome) & 1U) != 0;
  }

 private:
  unsigned bits_ = 0;
};

/// What an errno of socket, bind, connect, send or recv means for the attempt.
[[nodiscard]] Outcome outcome_of_errno(int error);

/// "ECONNREFUSED"; the number where glibc knows no name.
[[nodiscard]] std::string errno_name(int error);

/// What is kept of one attempt. Times are monotonic_ns().
struct Attempt {
  std::size_t phase = 0;
  Outcome outcome = Outcome::echoed;
  int error = 0;                  ///< The errno that ended it; 0 when none did.
  std::int64_t intended_ns = 0;   ///< When it was to start; closed loop: when it did.
  std::int64_t started_ns = 0;    ///< When it did start.
  std::int64_t connected_ns = 0;  ///< When its connection stood; 0 when it opened none.
  std::int64_t echoed_ns = 0;     ///< When the last byte of the echo was there, if it came.
  std::int64_t ended_ns = 0;
};

/// The most phases of a workload.
inline constexpr std::size_t max_phases = 6;

/// One phase of a workload.
struct PhaseTally {
  std::array<std::uint64_t, outcome_names.size()> outcomes{};
  std::uint64_t opened = 0;
  /// From the intended start to the whole echo: what a user waits for. A server that stalls makes
  /// the attempts late that were to start meanwhile, and they tell of it ("corrected").
  LatencyHistogram latency;
  /// From the actual start to the whole echo. Open loop only: else it is the latency.
  LatencyHistogram service_time;
  LatencyHistogram connect;     ///< The connect alone.
  LatencyHistogram first_echo;  ///< From the start of a connect to the first echo on it.
  LatencyHistogram echo;        ///< From the request to its echo, on a connection that stands.

  [[nodiscard]] std::uint64_t count(Outcome outcome) const {
    return outcomes[static_cast<std::size_t>(outcome)];
  }
  [[nodiscard]] std::uint64_t attempts() const;
  void merge(const PhaseTally& other);
};

/// The books of a number of attempts. Mergeable; holds no pointers.
class Tally {
 public:
  /// `open_loop`: the attempts had intended starts.
  void add(const Attempt& attempt, bool open_loop);
  void merge(const Tally& other);

  [[nodiscard]] std::uint64_t attempts() const { return attempts_; }
  [[nodiscard]] std::uint64_t connections_opened() const;
  /// Over all phases.
  [[nodiscard]] std::uint64_t count(Outcome outcome) const;
  /// The outcomes add up to the attempts, and each echo has its latency.
  [[nodiscard]] bool adds_up() const;

  [[nodiscard]] const PhaseTally& phase(std::size_t index) const { return phases_[index]; }
  [[nodiscard]] PhaseTally all_phases() const;
  /// By errno; the last entry has all that are higher.
  static constexpr std::size_t max_errno = 140;
  [[nodiscard]] const std::array<std::uint64_t, max_errno>& errors() const { return errors_; }
  [[nodiscard]] nlohmann::json outcomes_json() const;
  [[nodiscard]] nlohmann::json errors_json() const;

 private:
  std::uint64_t attempts_ = 0;
  std::array<PhaseTally, max_phases> phases_;
  std::array<std::uint64_t, max_errno> errors_{};
};

/// What ended within one interval of a run.
struct IntervalTally {
  std::uint64_t echoed = 0;
  std::uint64_t failed = 0;
  std::uint64_t opened = 0;
  LatencyHistogram latency;  ///< As PhaseTally::latency.

  void merge(const IntervalTally& other);
};

/// The books of many threads and processes, in shared memory. A tally has hundreds of KiB, so ten
/// thousand writers share a few of them; each has its own lock, which on as many cores as there are
/// here is all but always free. A writer that dies while it holds one ends the run: see Conductor.
class SharedBooks {
 public:
  /// Each interval of the series is as many seconds as makes `expected_s` fit in an hour's worth.
  /// Attempts that end with an outcome that is not `intended` are counted as failed.
  SharedBooks(std::size_t writers, double expected_s, bool open_loop, OutcomeSet intended);

  /// `run_ns` is the time since the begin of the run.
  void add(std::size_t writer, const Attempt& attempt, std::int64_t run_ns) const;

  [[nodiscard]] Tally total() const;
  struct Counts {
    std::uint64_t attempts = 0;
    std::uint64_t failed = 0;
  };
  /// For a progress display: cheap, and possibly a moment old.
  [[nodiscard]] Counts counts() const;

  [[nodiscard]] double interval_s() const { return static_cast<double>(interval_ns_) / 1e9; }
  /// Intervals from the begin of the run to the last in which something ended.
  [[nodiscard]] std::size_t intervals() const;
  [[nodiscard]] IntervalTally interval(std::size_t index) const;

 private:
  /// Constructed when the interval comes, so that no page is touched for those that never do.
  struct Interval {
    bool used = false;
    IntervalTally tally;
  };
  struct alignas(64) Shard {
    mutable SharedMutex mutex;
    Tally tally;
    std::uint64_t failed = 0;
    std::size_t intervals = 0;
  };
  static constexpr std::size_t max_intervals = 3'600;
  [[nodiscard]] Interval* row(std::size_t shard) const;

  bool open_loop_;
  OutcomeSet intended_;
  std::int64_t interval_ns_;
  SharedArray<Shard> shards_;
  SharedMemory series_;  // max_intervals of every shard
};

}  // namespace c10k
