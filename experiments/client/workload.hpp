// The workloads, as data that every engine carries out: a workload is a row of phases.
//
// A run has a number of slots; each is one concurrent connection. In a phase the first so many
// slots make attempts: a request and its echo, with the connect before it where the slot has no
// connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "experiments/client/results.hpp"

namespace c10k {

struct Options;

struct Phase {
  std::string_view name;
  std::size_t slots = 0;  ///< The first so many slots take part; the others keep what they have.
  /// A slot makes attempts until the duration or the number of requests is used up; otherwise one.
  bool repeats = false;
  /// A slot without a connection opens one. Otherwise it stays out of the phase.
  bool connects = false;
  /// A connection is closed after so many echoes; 0: only a failed attempt closes it.
  std::uint64_t requests_per_connection = 0;
  /// The most slots that make their first attempt of the phase at once, so that opening thousands
  /// of connections does not overflow the server's accept queue (4096 by default, somaxconn).
  std::size_t first_at_once = 256;
  /// In which attempts are started; 0: each slot makes one, whenever it comes.
  std::int64_t duration_ns = 0;
  /// At an open rate attempts start when the schedule says so.
  bool paced = false;
  /// What the run is about: rates and latencies of the result are those of this phase.
  bool measured = false;
};

/// What a slot does when an attempt has ended.
enum class Next : std::uint8_t {
  again,  ///< Another attempt at once.
  pause,  ///< Another one after `refusal_pause_ns`: nobody listens, or this host lacks something.
  rest,   ///< No more in this phase.
};
[[nodiscard]] Next next_after(const Phase& phase, Outcome outcome);

/// Ten tries a second and slot find a restarted server soon, and do not make millions of attempts.
inline constexpr std::int64_t refusal_pause_ns = 100'000'000;

struct Workload {
  std::string_view name;
  std::string_view summary;
  /// --requests-per-connection without the option; what 0 means stands at the phase.
  std::uint64_t requests_per_connection = 0;
  /// Whether --requests-per-connection has a meaning.
  bool reconnects = false;
  std::vector<Phase> (*phases)(const Options& options);
};

[[nodiscard]] std::span<const Workload> workloads();
/// `name` is one of workloads(): the options are checked when they are read.
[[nodiscard]] const Workload& find_workload(std::string_view name);

}  // namespace c10k
