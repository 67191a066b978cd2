#include "experiments/client/run.hpp"

#include <poll.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "ipc/syscall.hpp"

namespace c10k {

Run::Run(const SharedRun& shared, std::size_t process)
    : shared_(shared),
      state_(shared.state()),
      own_(shared.process(process)),
      process_(process),
      payload_(shared.options.payload_bytes, process, shared.options.processes) {}

std::size_t Run::share(std::size_t count) const {
  const std::size_t processes = options().processes;
  return (count + processes - 1 - process_) / processes;
}

Usage Run::own_usage() const {
  rusage usage{};
  checked([&] { return ::getrusage(RUSAGE_SELF, &usage); }, "getrusage");
  return Usage::of(usage);
}

void Run::phase_ended() {
  if (in_phase_) own_.ended[phase_index_] = own_usage();
  in_phase_ = false;
  arrived_ = true;
  checked([&] { return ::eventfd_write(shared_.arrived.get(), 1); }, "write eventfd");
}

bool Run::next_phase() {
  if (!arrived_) phase_ended();
  arrived_ = false;
  // There is one token for each process, and no process takes two: each that finds it readable
  // finds its own.
  eventfd_t token = 0;
  while (::eventfd_read(phase_fd(), &token) != 0) {
    if (errno != EAGAIN && errno != EINTR) throw_system_error(errno, "read eventfd");
    pollfd entry{phase_fd(), POLLIN, 0};
    (void)retry_eintr([&] { return ::poll(&entry, 1, -1); });
  }
  ++phases_taken_;
  if (state_.progress.over) return false;
  phase_index_ = state_.progress.phases_begun - 1;
  phase_ = shared_.phases[phase_index_];
  phase_.slots = share(phase_.slots);
  // A schedule says by itself how many begin at once.
  phase_.first_at_once =
      phase_.paced ? phase_.slots : std::max<std::size_t>(share(phase_.first_at_once), 1);
  own_.begun[phase_index_] = own_usage();
  in_phase_ = true;
  return true;
}

std::optional<std::int64_t> Run::take_start(std::int64_t now_ns) {
  if (stopped()) return std::nullopt;
  if (!phase_.repeats && state_.silent.load(std::memory_order_relaxed)) {
    // Thousands of connections that each wait for their own timeout could take hours.
    shared_.stop(End::stalled);
    return std::nullopt;
  }
  const std::int64_t start = phase_.paced ? state_.schedule.take() : now_ns;
  if (phase_.duration_ns != 0 && start >= state_.progress.deadline_ns) return std::nullopt;
  if (phase_.measured && phase_.repeats && options().requests &&
      state_.taken.fetch_add(1, std::memory_order_relaxed) >= *options().requests) {
    return std::nullopt;
  }
  return start;
}

void Run::began(std::int64_t intended_ns, std::int64_t now_ns, std::int64_t free_since_ns) {
  if (!phase_.paced || !phase_.measured || free_since_ns > intended_ns) return;
  ++own_.on_schedule;
  if (now_ns - intended_ns > SharedRun::late_ns) ++own_.late;
}

Next Run::ended(std::size_t slot, Attempt attempt) {
  attempt.phase = phase_index_;
  const std::size_t writer = options().processes == 1 ? slot : process_;
  shared_.books.add(writer, attempt, attempt.ended_ns - shared_.begin_ns());
  switch (attempt.outcome) {
    case Outcome::echoed:
      own_.last_echo_ns.store(attempt.ended_ns, std::memory_order_relaxed);
      break;
    case Outcome::refused:
    case Outcome::local_error:
      if (!state_.any_opened) shared_.stop(End::unreachable);
      break;
    case Outcome::timeout:
      if (shared_.intended.contains(Outcome::timeout)) break;
      if (attempt.ended_ns - shared_.last_echo_ns() >= options().timeout_ns) state_.silent = true;
      break;
    default:
      break;
  }
  if (stopped()) return Next::rest;
  return next_after(phase_, attempt.outcome);
}

void Run::connection_opened() {
  if (!state_.any_opened.load(std::memory_order_relaxed)) state_.any_opened = true;
  const std::size_t now_open = ++state_.open;
  std::size_t peak = state_.peak.load(std::memory_order_relaxed);
  while (peak < now_open && !state_.peak.compare_exchange_weak(peak, now_open)) {
  }
}

void Run::connection_closed() {
  --state_.open;
}

void Run::wait_for_turn() {
  const std::size_t at_once = shared_.phases[phase_index_].first_at_once;
  takes_turns_ = at_once == Phase{}.first_at_once && !phase_.paced;
  if (takes_turns_) (void)retry_eintr([&] { return ::sem_wait(&state_.turns); });
}

void Run::turn_over() {
  if (std::exchange(takes_turns_, false)) ::sem_post(&state_.turns);
}

}  // namespace c10k
