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

std::vector<Phase> crr_phases(const Options& options) {
  return {{.name = "crr",
           .slots = options.connections,
           .repeats = true,
           .connects = true,
           .closes = true}};
}

std::vector<Phase> rr_phases(const Options& options) {
  return {{.name = "rr", .slots = options.connections, .repeats = true, .connects = true}};
}

// A held connection that breaks is not replaced: what was lost would no longer show.
std::vector<Phase> hold_phases(const Options& options) {
  return {{.name = "connect", .slots = options.connections, .connects = true},
          {.name = "active", .slots = options.active, .repeats = true},
          {.name = "check", .slots = options.connections}};
}

}  // namespace

std::span<const Workload> workloads() {
  static constexpr std::array registry{
      Workload{"crr", "connect, one echo, close", crr_phases},
      Workload{"rr", "ping-pong on persistent connections", rr_phases},
      Workload{"hold", "hold all, ping-pong on a few, then echo once more on each", hold_phases}};
  return registry;
}

const Workload& find_workload(std::string_view name) {
  return *std::find_if(workloads().begin(), workloads().end(),
                       [&](const Workload& workload) { return workload.name == name; });
}

}  // namespace c10k
