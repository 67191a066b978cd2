// The run: every cell once a block, in random order, and what was seen.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "experiments/handoff_bench/calls.hpp"
#include "experiments/handoff_bench/options.hpp"

namespace c10k {

/// A method of the registry, or a floor.
struct Subject {
  const MethodEntry* entry = nullptr;
  bool floor = false;
  bool alone = false;
  Support support;
};

/// One repetition of a throughput cell.
struct Sample {
  std::uint64_t descriptors = 0;
  double wall_ns = 0;  ///< This and the others: of one descriptor.
  double sender_cpu_ns = 0;
  double receiver_cpu_ns = 0;
  double sender_switches = 0;
  double receiver_switches = 0;

  [[nodiscard]] double cpu_ns() const { return sender_cpu_ns + receiver_cpu_ns; }
};

/// What is repeated: batches streamed through the channel, as fast as it takes them.
struct Stream {
  std::size_t subject = 0;
  Pin pin = Pin::one;
  std::size_t batch = 0;
  std::vector<std::optional<Sample>> blocks;
  std::string failure;  ///< Why it was given up.
};

/// One at a time, to a receiver that sleeps.
struct Latency {
  std::size_t subject = 0;
  Pin pin = Pin::one;
  std::vector<double> p50_ns;  ///< A block each.
  std::vector<double> p99_ns;
  std::string failure;
};

/// What does not vary, measured once.
struct Constant {
  std::size_t subject = 0;
  std::size_t batch = 0;
  std::string resolved;          ///< The method with its options.
  std::optional<Filled> filled;  ///< Nothing for a floor.
  CallCounts calls;
  std::string failure;
};

struct Results {
  std::vector<Subject> subjects;
  std::vector<Constant> constants;
  std::vector<Stream> streams;
  std::vector<Latency> latencies;
  bool interrupted = false;

  [[nodiscard]] const Stream* stream(std::string_view subject, Pin pin, std::size_t batch) const;
};

/// Ratios of the CPU of both sides, per descriptor, in the blocks that both streams have.
[[nodiscard]] std::vector<double> cpu_ratios(const Stream& stream, const Stream& base);

/// Runs it all. Between the cells `go_on` is told how far it is, and says whether to go on.
[[nodiscard]] Results run_bench(
    const BenchOptions& options,
    const std::function<bool(std::size_t done, std::size_t all)>& go_on);

}  // namespace c10k
