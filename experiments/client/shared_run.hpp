// What all processes of a run share: the phase they are in, when to stop, and the books.
#pragma once

#include <semaphore.h>
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experiments/client/options.hpp"
#include "experiments/client/results.hpp"
#include "experiments/client/schedule.hpp"
#include "experiments/client/workload.hpp"
#include "ipc/owned_fd.hpp"
#include "ipc/shared_memory.hpp"

namespace c10k {

/// Why a run started no further attempts.
enum class End : std::uint8_t {
  completed,    ///< All phases have done what they do.
  interrupted,  ///< SIGINT or SIGTERM.
  unreachable,  ///< Not one connection could be opened.
  stalled,      ///< In a phase without a duration the server echoed nothing for a whole timeout.
};
[[nodiscard]] std::string_view end_name(End end);

/// What a process used up: from rusage.
struct Usage {
  std::int64_t user_us = 0;
  std::int64_t system_us = 0;
  std::int64_t voluntary_switches = 0;
  std::int64_t involuntary_switches = 0;
  std::int64_t max_rss_bytes = 0;

  [[nodiscard]] static Usage of(const rusage& usage);
  [[nodiscard]] std::int64_t cpu_us() const { return user_us + system_us; }
  /// Adds; the memory too, as each process has its own.
  Usage& operator+=(const Usage& other);
  /// What was used since `before`; the memory as it is now.
  [[nodiscard]] Usage since(const Usage& before) const;
};

/// Made before the client processes are forked; they see the same object.
///
/// A phase begins in all processes at once: each says by `arrived` that nothing of its own is in
/// flight, and takes one token of `go` for each phase. Only the conductor begins phases.
///
/// Two eventfds take turns as `go`: who is through with a phase before another has begun it must not
/// take that one's token for the next.
class SharedRun {
 public:
  SharedRun(const Options& options, std::vector<Phase> phases);

  const Options options;
  const std::vector<Phase> phases;
  /// An eventfd that counts the processes which are through with the phase, or ready for the first.
  const OwnedFd arrived;
  /// Eventfds that hand out one token at each read (EFD_SEMAPHORE); of the phases with an even and
  /// an odd number.
  const std::array<OwnedFd, 2> go;
  /// How attempts are meant to end: echoed, unless the client misbehaves.
  const OutcomeSet intended;
  SharedBooks books;

  struct PhaseTime {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
  };
  /// Written by the conductor between phases only.
  struct Progress {
    std::atomic<std::size_t> phases_begun = 0;
    std::atomic<bool> over = false;  ///< No further phase.
    std::array<PhaseTime, max_phases> times;
    std::int64_t deadline_ns = 0;  ///< Of a phase with a duration.
  };
  struct State {
    alignas(64) Progress progress;
    alignas(64) std::atomic<bool> stopped = false;
    std::atomic<End> end = End::completed;
    std::atomic<bool> any_opened = false;
    std::atomic<bool> silent = false;                  ///< Nothing echoed for a whole timeout.
    alignas(64) std::atomic<std::uint64_t> taken = 0;  ///< Of the number of requests.
    alignas(64) std::atomic<std::size_t> open = 0;
    std::atomic<std::size_t> peak = 0;
    alignas(64) Schedule schedule;
    sem_t turns;  ///< As many as Phase::first_at_once; see Run::wait_for_turn().
  };
  /// One writer each.
  struct alignas(64) Process {
    std::atomic<std::int64_t> last_echo_ns = 0;
    std::array<Usage, max_phases> begun;  ///< Usage when a phase began and
    std::array<Usage, max_phases> ended;  ///< when the process was through with it.
    std::atomic<std::uint64_t> on_schedule =
        0;  ///< Starts, in the measured phase, for which a slot was free.
    std::atomic<std::uint64_t> late = 0;  ///< Of these, begun more than `late_ns` after their time.
  };

  [[nodiscard]] State& state() const { return state_[0]; }
  [[nodiscard]] Process& process(std::size_t index) const { return processes_[index]; }
  [[nodiscard]] std::span<Process> processes() const { return processes_.all(); }

  void stop(End why) const;
  [[nodiscard]] std::int64_t begin_ns() const { return state().progress.times.front().begin_ns; }
  /// The latest echo of any process, or the begin of the phase.
  [[nodiscard]] std::int64_t last_echo_ns() const;

  /// A start that is later than this, though a slot was free, is the client's own lateness: some ten
  /// times what a wake-up costs.
  static constexpr std::int64_t late_ns = 1'000'000;

 private:
  SharedArray<State> state_;
  SharedArray<Process> processes_;
};

}  // namespace c10k
