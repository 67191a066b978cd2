// One thread, one poller, and who is called when a descriptor is ready or a time has come.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "strategies/poller.hpp"

namespace c10k {

/// Whoever watches a descriptor. Must stay alive until it has called forget().
class EventHandler {
 public:
  virtual ~EventHandler() = default;
  virtual void on_ready(Readiness ready) = 0;
};

class EventLoop {
 public:
  explicit EventLoop(const PollerEntry& poller);

  /// Watches a descriptor (borrowed) until forget().
  void watch(int fd, Interest interest, EventHandler& handler);
  /// Changes what to wait for on a watched descriptor.
  void change(int fd, Interest interest) { poller_->update(fd, interest); }
  void forget(int fd, Removal why);

  /// Says that the handler of a watched descriptor stopped before it had read all there is. It is
  /// called again in the next turn, as no edge would come for that.
  void call_again(int fd);

  /// Calls `action` in the turn after `delay_ns`. Returns a number for cancel().
  std::uint64_t after(std::int64_t delay_ns, std::function<void()> action);
  void cancel(std::uint64_t timer);

  /// Calls `action` at the end of every turn, when all events of the turn have been handled, and
  /// before the first: for what was begun before run().
  void at_end_of_turn(std::function<void()> action) { end_of_turn_.push_back(std::move(action)); }

  /// The time at which this turn began; monotonic_ns().
  [[nodiscard]] std::int64_t now_ns() const { return now_ns_; }
  [[nodiscard]] const PollerEntry& poller() const { return entry_; }

  /// Turns until stop(), which may have been called before. An exception of a handler passes through.
  void run();
  /// Ends the turn at once, and with it what else was ready in it: edges that have been reported
  /// are not reported again.
  void stop() { stopping_ = true; }

 private:
  struct Watch {
    EventHandler* handler = nullptr;
    std::uint64_t since_turn = 0;
    std::uint64_t generation = 0;
  };

  void turn();
  void end_turn();
  [[nodiscard]] std::int64_t timeout_ns() const;
  void run_timers();

  PollerEntry entry_;
  std::unique_ptr<Poller> poller_;
  std::vector<Watch> watches_;  // by descriptor
  std::uint64_t turn_ = 0;
  std::int64_t now_ns_ = 0;
  bool stopping_ = false;

  struct Again {
    int fd;
    std::uint64_t generation;
  };
  std::vector<Again> again_;
  std::vector<Again> calling_again_;

  std::multimap<std::int64_t, std::pair<std::uint64_t, std::function<void()>>> timers_;
  std::uint64_t last_timer_ = 0;
  std::vector<std::function<void()>> end_of_turn_;
};

/// Signals as events (signalfd(2)): blocks them for this thread and the threads and children it
/// makes, so that no handler ever runs between two lines of code.
class SignalWatch : public EventHandler {
 public:
  SignalWatch(EventLoop& loop, std::initializer_list<int> signals, std::function<void(int)> action);
  ~SignalWatch() override;
  void on_ready(Readiness ready) override;

 private:
  EventLoop& loop_;
  OwnedFd fd_;
  std::function<void(int)> action_;
};

}  // namespace c10k
