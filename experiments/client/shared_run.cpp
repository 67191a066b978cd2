#include "experiments/client/shared_run.hpp"

#include <sys/eventfd.h>

#include <algorithm>

#include "experiments/client/misbehave.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

std::string_view end_name(End end) {
  switch (end) {
    case End::completed:
      return "completed";
    case End::interrupted:
      return "interrupted";
    case End::unreachable:
      return "unreachable";
    case End::stalled:
      return "stalled";
  }
  return "";
}

Usage Usage::of(const rusage& usage) {
  const auto microseconds = [](const timeval& time) {
    return std::int64_t{time.tv_sec} * 1'000'000 + time.tv_usec;
  };
  return {.user_us = microseconds(usage.ru_utime),
          .system_us = microseconds(usage.ru_stime),
          .voluntary_switches = usage.ru_nvcsw,
          .involuntary_switches = usage.ru_nivcsw,
          .max_rss_bytes = usage.ru_maxrss * 1024};
}

Usage& Usage::operator+=(const Usage& other) {
  user_us += other.user_us;
  system_us += other.system_us;
  voluntary_switches += other.voluntary_switches;
  involuntary_switches += other.involuntary_switches;
  max_rss_bytes += other.max_rss_bytes;
  return *this;
}

Usage Usage::since(const Usage& before) const {
  return {.user_us = user_us - before.user_us,
          .system_us = system_us - before.system_us,
          .voluntary_switches = voluntary_switches - before.voluntary_switches,
          .involuntary_switches = involuntary_switches - before.involuntary_switches,
          .max_rss_bytes = max_rss_bytes};
}

namespace {

OwnedFd make_eventfd(int flags) {
  return OwnedFd(
      checked([&] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | flags); }, "eventfd"));
}

/// Threads of one process write too; the processes of the engine that has thousands take turns.
std::size_t writers(const Options& options) {
  return options.engine == "threads" ? options.connections : options.processes;
}

double expected_s(const Options& options) {
  return 2 * static_cast<double>(options.warmup_ns + options.idle_ns + options.duration_ns) / 1e9;
}

OutcomeSet intended_outcomes(const Options& options) {
  const Misbehaviour* misbehaviour = find_misbehaviour(options.misbehave);
  return misbehaviour != nullptr ? misbehaviour->intended : OutcomeSet{Outcome::echoed};
}

}  // namespace

SharedRun::SharedRun(const Options& run_options, std::vector<Phase> run_phases)
    : options(run_options),
      phases(std::move(run_phases)),
      arrived(make_eventfd(0)),
      go{make_eventfd(EFD_SEMAPHORE), make_eventfd(EFD_SEMAPHORE)},
      intended(intended_outcomes(options)),
      books(writers(options), expected_s(options), options.rate > 0, intended),
      state_(1),
      processes_(options.processes) {
  ::sem_init(&state().turns, 1, Phase{}.first_at_once);
}

void SharedRun::stop(End why) const {
  if (!state().stopped.exchange(true)) state().end = why;
}

std::int64_t SharedRun::last_echo_ns() const {
  std::int64_t last = state().progress.times[state().progress.phases_begun - 1].begin_ns;
  for (const Process& process : processes()) last = std::max(last, process.last_echo_ns.load());
  return last;
}

}  // namespace c10k
