// What a process counts about itself, in shared memory: one writer, any number of readers.
#pragma once

#include <sys/resource.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "ipc/latency_histogram.hpp"

namespace c10k {

/// A number with one writer. What the writer did before add() is visible to who reads the new
/// value.
class Counter {
 public:
  void add(std::uint64_t n = 1) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_release);
  }
  void set(std::uint64_t value) noexcept { value_.store(value, std::memory_order_release); }
  /// Of two processes that each set a counter of theirs and then read the other's, at least one sees what the
  /// other has set: all of these happen in one order.
  void set_in_order(std::uint64_t value) noexcept { value_.store(value); }
  [[nodiscard]] std::uint64_t get_in_order() const noexcept { return value_.load(); }
  /// For the few counters that several processes add to.
  void add_shared(std::uint64_t n) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t get() const noexcept {
    return value_.load(std::memory_order_acquire);
  }

 private:
  std::atomic<std::uint64_t> value_{0};
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
};

/// Errors by errno.
class ErrorTally {
 public:
  static constexpr std::size_t limit = 134;  // the highest errno of Linux, plus one
  void add(int error) noexcept { counts_[index(error)].add(); }
  [[nodiscard]] Counter& operator[](std::size_t error) { return counts_[error]; }
  [[nodiscard]] const Counter& operator[](std::size_t error) const { return counts_[error]; }

 private:
  static std::size_t index(int error) noexcept {
    return error > 0 && static_cast<std::size_t>(error) < limit ? static_cast<std::size_t>(error)
                                                                : 0;
  }
  std::array<Counter, limit> counts_;
};

/// The most connections that may be on their way to one worker.
inline constexpr std::size_t max_outstanding = 1024;

/// In consumed_copies: the connection was refused.
inline constexpr std::uint64_t refused_flag = std::uint64_t{1} << 32;
/// In ended_copies: the connection lives, and stands between requests.
inline constexpr std::uint64_t handed_back_flag = std::uint64_t{1} << 33;

/// Which copies of connections there are, by ConnectionTag::copy; one writer. Of higher numbers it says no.
class CopySet {
 public:
  void set(std::uint32_t copy) noexcept {
    if (copy >= most) return;
    Counter& word = words_[copy / 64];
    word.set(word.get() | std::uint64_t{1} << copy % 64);
  }
  [[nodiscard]] bool has(std::uint32_t copy) const noexcept {
    return copy < most && (words_[copy / 64].get() >> copy % 64 & 1) != 0;
  }

 private:
  static constexpr std::uint32_t most = 1U << 17;
  std::array<Counter, most / 64> words_;
};

/// The counters of one process; a replaced worker gets new ones.
struct alignas(64) ProcessCounters {
  // Connections. `consumed` counts what came out of the source, in order, and is what lets the
  // acceptor close its copies; `received` is the part of it that is (or was) served here.
  Counter consumed;
  Counter received;
  Counter refused;               ///< consumed, but for want of a descriptor not received
  Counter accepted;              ///< accepted by this process itself
  Counter shed;                  ///< accepted and closed at once for want of a descriptor
  Counter finished;              ///< closed, for whatever reason
  Counter finished_redelivered;  ///< those of them that had been handed over before
  Counter handed_back;           ///< given up alive: the acceptor's copy is the only one
  Counter adopted;               ///< taken over alive from the server before this one
  Counter closed_idle;           ///< closed by --idle-timeout
  Counter closed_silent;         ///< closed by --first-byte-timeout
  Counter closed_stalled;        ///< closed by --write-timeout
  Counter closed_draining;       ///< closed because the drain's deadline came

  Counter queue_peak;  ///< the longest accept queue that was seen

  // Traffic.
  Counter echoes;
  Counter bytes;
  ErrorTally errors;
  LatencyHistogram hand_off;  ///< accept to usable in the worker

  /// ConnectionTag::copy of the n-th connection consumed, at n modulo the size.
  std::array<Counter, max_outstanding> consumed_copies;
  /// Counts when the worker begins to receive and when what came has been counted: odd in between.
  Counter receive_steps;
  /// Turns of the worker's loop: what stands still for one that is stuck.
  Counter turns;
  /// When the acceptor retains its copies: ConnectionTag::copy of the n-th connection that has ended
  /// here, at n modulo the size. `ended` stays at most the size ahead of `ended_seen`.
  std::array<Counter, max_outstanding> ended_copies;
  Counter ended;

  rusage at_ready{};  ///< What the process had used up when it was ready to serve.

  /// Written by the acceptor: it has closed its copies of all connections up to this number. What
  /// is above it is open there too, so closing it here alone would neither end its events nor its
  /// life.
  alignas(64) Counter released;
  Counter ended_seen;  ///< Written by the acceptor: how far it has read ended_copies.
  /// Written by the acceptor before it asks a worker to give up connections: those that it has a copy of. (Under
  /// --retain it serves without one when it has run out of descriptors.)
  CopySet retained;
};

}  // namespace c10k
