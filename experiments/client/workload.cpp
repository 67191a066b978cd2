#include "experiments/client/workload.hpp"

#include <algorithm>
#include <array>

#include "experiments/client/options.hpp"

namespace c10k {

Next next_after(const Phase& phase, Outcome outcome) {
  if (!phase.repeats) return Next::rest;
  if (outcome == Outcome::echoed) return Next::again;
  if (!phase.connects) return Next::rest;
  return outcome == Outcome::refused || outcome == Outcome::local_error ? Next::pause : Next::again;
}

namespace {

/// The measured phase, and before it one of the same kind that is not measured, if asked for.
void add_measured(std::vector<Phase>& phases, const Options& options, Phase phase) {
  phase.repeats = true;
  phase.paced = options.rate > 0;
  if (options.warmup_ns > 0) {
    Phase warmup = phase;
    warmup.name = "warmup";
    warmup.duration_ns = options.warmup_ns;
    phases.push_back(warmup);
  }
  phase.duration_ns = options.duration_ns;
  phase.measured = true;
  phases.push_back(phase);
}

// crr and rr differ in when a connection is closed, and any number lies between them.
std::vector<Phase> request_phases(const Options& options) {
  std::vector<Phase> phases;
  add_measured(phases, options,
               {.name = options.workload,
                .slots = options.connections,
                .connects = true,
                .requests_per_connection = options.requests_per_connection});
  return phases;
}

std::vector<Phase> storm_phases(const Options& options) {
  return {{.name = "storm",
           .slots = options.connections,
           .connects = true,
           .requests_per_connection = 1,
           .first_at_once = options.connections,
           .paced = options.rate > 0,
           .measured = true}};
}

// A held connection that breaks is not replaced: what was lost would no longer show.
std::vector<Phase> hold_phases(const Options& options) {
  std::vector<Phase> phases{{.name = "connect", .slots = options.connections, .connects = true}};
  if (options.idle_ns > 0) phases.push_back({.name = "idle", .duration_ns = options.idle_ns});
  add_measured(phases, options, {.name = "active", .slots = options.active});
  phases.push_back({.name = "check", .slots = options.connections});
  return phases;
}

}  // namespace

std::span<const Workload> workloads() {
  static constexpr std::array registry{
      Workload{"crr", "connect, one echo, close", 1, true, request_phases},
      Workload{"rr", "ping-pong on persistent connections", 0, true, request_phases},
      Workload{"hold", "hold all, ping-pong on a few, then echo once more on each", 0, false,
               hold_phases},
      Workload{"storm", "all connect at once; one echo, close", 1, false, storm_phases}};
  return registry;
}

const Workload& find_workload(std::string_view name) {
  return *std::find_if(workloads().begin(), workloads().end(),
                       [&](const Workload& workload) { return workload.name == name; });
}

}  // namespace c10k
