// How attempts end, and the books that are kept of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/latency_histogram.hpp"

namespace c10k {

/// The one end of an attempt.
enum class Outcome : std::uint8_t { echoed, mismatched, refused, reset, eof, timeout, local_error };

inline constexpr std::array<std::string_view, 7> outcome_names{
    "echoed", "mismatched", "refused", "reset", "eof", "timeout", "local_error"};

[[nodiscard]] constexpr std::string_view outcome_name(Outcome outcome) {
  return outcome_names[static_cast<std::size_t>(outcome)];
}

/// What an errno of socket, bind, connect, send or recv means for the attempt.
[[nodiscard]] Outcome outcome_of_errno(int error);

/// "ECONNREFUSED"; the number where glibc knows no name.
[[nodiscard]] std::string errno_name(int error);

/// What is kept of one attempt.
struct Attempt {
  std::size_t phase = 0;
  Outcome outcome = Outcome::echoed;
  int error = 0;                 ///< The errno that ended it; 0 when none did.
  std::int64_t latency_ns = 0;   ///< From the start of the attempt to the whole echo.
  std::int64_t connect_ns = -1;  ///< Time to connect; -1 when the attempt opened no connection.
};

/// One phase of a workload; all histograms are in monotonic nanoseconds.
struct PhaseTally {
  std::array<std::uint64_t, outcome_names.size()> outcomes{};
  LatencyHistogram latency;

  [[nodiscard]] std::uint64_t count(Outcome outcome) const {
    return outcomes[static_cast<std::size_t>(outcome)];
  }
};

/// The books of a number of attempts. Mergeable.
class Tally {
 public:
  explicit Tally(std::size_t phases) : phases_(phases) {}

  void add(const Attempt& attempt);
  void merge(const Tally& other);

  [[nodiscard]] std::uint64_t attempts() const { return attempts_; }
  [[nodiscard]] std::uint64_t connections_opened() const { return connections_opened_; }
  /// Over all phases.
  [[nodiscard]] std::uint64_t count(Outcome outcome) const;
  [[nodiscard]] std::uint64_t failed() const { return attempts_ - count(Outcome::echoed); }
  /// The outcomes add up to the attempts, and each echo has its latency.
  [[nodiscard]] bool adds_up() const;

  [[nodiscard]] const PhaseTally& phase(std::size_t index) const { return phases_[index]; }
  [[nodiscard]] LatencyHistogram latency() const;
  [[nodiscard]] const LatencyHistogram& connect_latency() const { return connect_latency_; }
  [[nodiscard]] const std::map<int, std::uint64_t>& errors() const { return errors_; }
  [[nodiscard]] nlohmann::json outcomes_json() const;
  [[nodiscard]] nlohmann::json errors_json() const;

 private:
  std::uint64_t attempts_ = 0;
  std::uint64_t connections_opened_ = 0;
  std::vector<PhaseTally> phases_;
  LatencyHistogram connect_latency_;
  std::map<int, std::uint64_t> errors_;  // by errno
};

/// Tallies for many threads. A histogram has 20 KiB, so ten thousand threads share a few of them;
/// each has its own lock, which on as many cores as there are here is all but always free.
class SharedTally {
 public:
  SharedTally(std::size_t writers, std::size_t phases);

  void add(std::size_t writer, const Attempt& attempt);
  [[nodiscard]] Tally total() const;
  struct Counts {
    std::uint64_t attempts = 0;
    std::uint64_t failed = 0;
  };
  /// For a progress display: cheap, and possibly a moment old.
  [[nodiscard]] Counts counts() const;

 private:
  struct Shard {
    explicit Shard(std::size_t phases) : tally(phases) {}
    mutable std::mutex mutex;
    Tally tally;
  };
  std::size_t phases_;
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace c10k
