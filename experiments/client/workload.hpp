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
  /// Each attempt closes its connection. Otherwise only a failed one does.
  bool closes = false;
  /// The most slots that make their first attempt of the phase at once, so that opening thousands
  /// of connections does not overflow the server's accept queue (4096 by default, somaxconn).
  std::size_t first_at_once = 256;
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
  std::vector<Phase> (*phases)(const Options& options);
};

[[nodiscard]] std::span<const Workload> workloads();
/// `name` is one of workloads(): the options are checked when they are read.
[[nodiscard]] const Workload& find_workload(std::string_view name);

/// The phases of `hold`, as its report names them.
inline constexpr std::size_t hold_connect_phase = 0;
inline constexpr std::size_t hold_active_phase = 1;

}  // namespace c10k
