#include "strategies/event_loop.hpp"

#include <signal.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cassert>

#include "ipc/syscall.hpp"

namespace c10k {

EventLoop::EventLoop(const PollerEntry& poller) : entry_(poller), poller_(poller.make()) {}

void EventLoop::watch(int fd, Interest interest, EventHandler& handler) {
  const auto number = static_cast<std::size_t>(fd);
  if (number >= watches_.size()) watches_.resize(std::max(number + 1, watches_.size() * 2));
  watches_[number].handler = &handler;
  watches_[number].since_turn = turn_;
  poller_->update(fd, interest);
}

void EventLoop::forget(int fd, Removal why) {
  Watch& watch = watches_[static_cast<std::size_t>(fd)];
  assert(watch.handler != nullptr);
  watch.handler = nullptr;
  ++watch.generation;
  poller_->remove(fd, why);
}

void EventLoop::call_again(int fd) {
  // Who is told the level is told again anyway.
  if (entry_.edge_triggered)
    again_.push_back({fd, watches_[static_cast<std::size_t>(fd)].generation});
}

std::uint64_t Loop::after(std::int64_t delay_ns, std::function<void()> action) {
  timers_.emplace(monotonic_ns() + delay_ns, std::make_pair(++last_timer_, std::move(action)));
  return last_timer_;
}

void Loop::cancel(std::uint64_t timer) {
  const auto found = std::find_if(timers_.begin(), timers_.end(),
                                  [&](const auto& entry) { return entry.second.first == timer; });
  if (found != timers_.end()) timers_.erase(found);
}

void Loop::run() {
  if (!stopping_) end_turn();
  while (!stopping_) turn();
  stopping_ = false;
}

std::int64_t EventLoop::timeout_ns() const {
  if (!again_.empty()) return 0;
  if (timers_.empty()) return -1;
  return std::max<std::int64_t>(timers_.begin()->first - monotonic_ns(), 0);
}

void EventLoop::turn() {
  const auto events = poller_->wait(timeout_ns());
  ++turn_;
  now_ns_ = monotonic_ns();
  calling_again_.swap(again_);
  for (const Event& event : events) {
    const Watch& watch = watches_[static_cast<std::size_t>(event.fd)];
    // Forgotten earlier in this turn, or watched anew under the same number: then the event is not
    // its.
    if (watch.handler == nullptr || watch.since_turn == turn_) continue;
    watch.handler->on_ready(event.ready);
    if (stopping_) return;
  }
  for (const Again& again : calling_again_) {
    const Watch& watch = watches_[static_cast<std::size_t>(again.fd)];
    if (watch.handler != nullptr && watch.generation == again.generation) {
      watch.handler->on_ready({.read = true, .write = true, .read_to_end = true});
    }
  }
  calling_again_.clear();
  run_timers();
  end_turn();
}

void Loop::end_turn() {
  for (const auto& action : end_of_turn_) action();
}

void Loop::run_timers() {
  while (!timers_.empty() && timers_.begin()->first <= now_ns_) {
    const auto action = std::move(timers_.begin()->second.second);
    timers_.erase(timers_.begin());
    action();
  }
}

SignalWatch::SignalWatch(Loop& loop, std::initializer_list<int> signals,
                         std::function<void(int)> action)
    : loop_(loop), action_(std::move(action)) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : signals) sigaddset(&set, number);
  checked([&] { return ::sigprocmask(SIG_BLOCK, &set, nullptr); }, "sigprocmask");
  fd_ = OwnedFd(
      checked([&] { return ::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC); }, "signalfd"));
  loop_.watch(fd_.get(), {.read = true, .level = true}, *this);
}

SignalWatch::~SignalWatch() {
  loop_.forget(fd_.get(), Removal::closing);
}

void SignalWatch::on_ready(Readiness) {
  signalfd_siginfo info;
  while (true) {
    const auto size =
        checked_nonblocking([&] { return ::read(fd_.get(), &info, sizeof info); }, "read signalfd");
    if (!size) return;
    action_(static_cast<int>(info.ssi_signo));
  }
}

}  // namespace c10k
