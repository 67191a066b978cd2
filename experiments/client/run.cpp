#include "experiments/client/run.hpp"

#include <utility>

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

Run::Run(const Options& options, std::vector<Phase> phases)
    : options_(options),
      phases_(std::move(phases)),
      payload_(options.payload_bytes),
      tally_(options.engine == "threads" ? options.connections : 1, phases_.size()),
      phase_times_(phases_.size()) {}

bool Run::next_phase() {
  const std::int64_t now = monotonic_ns();
  if (phases_begun_ > 0) phase_times_[phase_index()].end_ns = now;
  if (stopped_ || phases_begun_ == phases_.size()) return false;
  phase_times_[phases_begun_] = {now, now};
  deadline_ns_ = now + options_.duration_ns;
  last_echo_ns_ = now;
  silent_ = false;
  ++phases_begun_;
  return true;
}

bool Run::may_start(std::int64_t now_ns) {
  if (stopped_.load(std::memory_order_relaxed)) return false;
  if (!phase().repeats) {
    // Thousands of connections that each wait for their own timeout could take hours.
    if (silent_.load(std::memory_order_relaxed)) stop(End::stalled);
    return !stopped_;
  }
  if (now_ns >= deadline_ns_) return false;
  return !options_.requests || taken_.fetch_add(1, std::memory_order_relaxed) < *options_.requests;
}

Next Run::ended(std::size_t slot, Attempt attempt, std::int64_t now_ns) {
  attempt.phase = phase_index();
  tally_.add(slot, attempt);
  switch (attempt.outcome) {
    case Outcome::echoed:
      last_echo_ns_.store(now_ns, std::memory_order_relaxed);
      break;
    case Outcome::refused:
    case Outcome::local_error:
      if (!any_opened_) stop(End::unreachable);
      break;
    case Outcome::timeout:
      if (now_ns - last_echo_ns_ >= options_.timeout_ns) silent_ = true;
      break;
    default:
      break;
  }
  return stopped_ ? Next::rest : next_after(phase(), attempt.outcome);
}

void Run::stop(End why) {
  if (!stopped_.exchange(true)) end_ = why;
}

void Run::connection_opened() {
  if (!any_opened_.load(std::memory_order_relaxed)) any_opened_ = true;
  const std::size_t now_open = ++open_;
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now_open && !peak_.compare_exchange_weak(peak, now_open)) {
  }
}

double Run::elapsed_s(std::int64_t now_ns) const {
  return static_cast<double>(now_ns - phase_times_.front().begin_ns) / 1e9;
}

double Run::phase_s(std::size_t index) const {
  return static_cast<double>(phase_times_[index].end_ns - phase_times_[index].begin_ns) / 1e9;
}

double Run::all_phases_s() const {
  return elapsed_s(phase_times_[phase_index()].end_ns);
}

}  // namespace c10k
