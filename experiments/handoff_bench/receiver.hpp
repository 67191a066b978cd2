// The worker's side of a measurement: take and close.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>

#include "ipc/handoff.hpp"
#include "ipc/shared_memory.hpp"

namespace c10k {

/// What sender and receiver share. Each counter has one writer.
struct BenchState {
  static constexpr std::uint64_t nobody = std::numeric_limits<std::uint64_t>::max();
  static constexpr std::size_t most_latencies = 4096;

  // ---- written by the receiver ----
  alignas(64) std::atomic<std::uint64_t> received{0};  ///< Taken and closed.
  std::atomic<std::uint64_t> sleeps{0};                ///< How often it went to sleep.
  std::array<std::atomic<std::int64_t>, most_latencies> latencies_ns{};

  // ---- written by the sender ----
  /// The sender sleeps until `received` has come so far; whoever clears it wakes the sender.
  alignas(64) std::atomic<std::uint64_t> wake_at{nobody};
  std::atomic<std::int64_t> sent_ns{0};  ///< When the one under way was sent; 0: nobody asks.
  /// While the calls are counted: the receiver counts its own from the release up to this one.
  std::atomic<std::uint64_t> count_calls_up_to{0};

  // ---- for the tracer: whether a side's system calls count just now; written by that side (or, when
  // it cannot know when it is done, by the sender) ----
  alignas(64) std::atomic<bool> sender_counts{false};
  std::atomic<bool> receiver_counts{false};
};
using SharedBenchState = std::shared_ptr<SharedArray<BenchState>>;

/// What the sender says on the control socket; the receiver answers hold with a byte.
enum class Order : char { ready = 'r', hold = 'h', release = 'g', end = 'e' };

/// Who receives: everything here is the receiver's or lent to it.
struct ReceiverSetup {
  SharedBenchState state;
  int control = -1;
  int progress = -1;    ///< An eventfd that wakes the sender.
  bool checked = true;  ///< What arrives has a descriptor and comes in order (a floor's has none).
};

/// The receiver's whole life; returns its exit code. Throws when something arrives that was not sent.
int run_receiver(ConnectionSource& source, const ReceiverSetup& setup);

}  // namespace c10k
