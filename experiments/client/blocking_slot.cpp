#include "experiments/client/blocking_slot.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// A thread's stack is small, and this is the largest thing on it.
constexpr std::size_t receive_size = 16 * 1024;

void sleep_until(std::int64_t time_ns) {
  const timespec time{time_ns / 1'000'000'000, time_ns % 1'000'000'000};
  // It returns the error, other than most calls.
  while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

/// False when the run has been stopped before the time came.
bool wait_for_start(const Run& run, std::int64_t start_ns) {
  for (std::int64_t now = monotonic_ns(); now < start_ns; now = monotonic_ns()) {
    if (run.stopped()) return false;
    sleep_until(std::min(start_ns, now + Run::stop_check_ns));
  }
  return true;
}

}  // namespace

BlockingSlot::BlockingSlot(Run& run, const Dialer& dialer, std::size_t index)
    : run_(run), dialer_(dialer), index_(index), dials_(run.process() + index) {}

BlockingSlot::~BlockingSlot() {
  close();
}

void BlockingSlot::work_phase(const std::function<void()>& first_ended) {
  free_since_ns_ = monotonic_ns();
  Next next = attempt();
  first_ended();
  while (next != Next::rest) {
    if (next == Next::pause) sleep_until(monotonic_ns() + refusal_pause_ns);
    next = attempt();
  }
}

Next BlockingSlot::attempt() {
  const Phase& phase = run_.phase();
  if (!fd_ && !phase.connects) return Next::rest;
  std::int64_t now = monotonic_ns();
  const auto start = run_.take_start(now);
  if (!start) return Next::rest;
  if (*start > now) {
    if (!wait_for_start(run_, *start)) return Next::rest;
    now = monotonic_ns();
  }
  run_.began(*start, now, free_since_ns_);
  Attempt result{.intended_ns = *start, .started_ns = now};
  Exchange::Step step{Exchange::State::more};
  if (!fd_) step = connect(result.connected_ns);
  if (step.state != Exchange::State::ended)
    step = exchange(result.connected_ns != 0 ? result.connected_ns : now);
  result.outcome = step.outcome;
  result.error = step.error;
  result.ended_ns = monotonic_ns();
  free_since_ns_ = result.ended_ns;
  const bool echoed = step.outcome == Outcome::echoed;
  if (echoed) {
    result.echoed_ns = exchange_.echoed_ns();
    ++echoes_;
  }
  const Next next = run_.ended(index_, result);
  if (!echoed || echoes_ == phase.requests_per_connection) close();
  return next;
}

Exchange::Step BlockingSlot::connect(std::int64_t& connected_ns) {
  auto [fd, error] = dialer_.dial(dials_++);
  if (error != 0) {
    // A blocking connect returns EINPROGRESS when the time of SO_SNDTIMEO is over.
    if (error == EINPROGRESS) return {Exchange::State::ended, Outcome::timeout};
    return {Exchange::State::ended, outcome_of_errno(error), error};
  }
  fd_ = std::move(fd);
  connected_ns = monotonic_ns();
  echoes_ = 0;
  run_.connection_opened();
  return {Exchange::State::more};
}

Exchange::Step BlockingSlot::exchange(std::int64_t started_ns) {
  const int fd = fd_.get();
  std::array<char, receive_size> scratch;
  exchange_.begin(run_.payload(), started_ns, run_.options().server_closes);
  const std::int64_t deadline = started_ns + run_.options().timeout_ns;
  while (true) {
    if (!exchange_.all_sent()) {
      const Exchange::Step step = exchange_.send(fd);
      if (step.state == Exchange::State::ended) return step;
    }
    const bool in_pieces = !exchange_.all_sent() || exchange_.receiving();
    if (in_pieces && !wait_ready(fd, deadline)) break;
    const Exchange::Step step = exchange_.receive(fd, in_pieces ? MSG_DONTWAIT : 0, scratch);
    if (step.state == Exchange::State::ended) return step;
    // Nothing came in the time of SO_RCVTIMEO.
    if (!in_pieces && !exchange_.receiving()) break;
  }
  return {Exchange::State::ended, Outcome::timeout};
}

/// False when the deadline has passed.
bool BlockingSlot::wait_ready(int fd, std::int64_t deadline_ns) const {
  const std::int64_t left = deadline_ns - monotonic_ns();
  if (left <= 0) return false;
  pollfd entry{fd, static_cast<short>(exchange_.all_sent() ? POLLIN : POLLIN | POLLOUT), 0};
  const timespec timeout{left / 1'000'000'000, left % 1'000'000'000};
  return retry_eintr([&] { return ::ppoll(&entry, 1, &timeout, nullptr); }) > 0;
}

void BlockingSlot::close() {
  if (!fd_) return;
  run_.connection_closed();
  fd_.reset();
}

}  // namespace c10k
