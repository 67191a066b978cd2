// One thread, and who is called when a descriptor is ready or a time has come: what every loop
// offers, and the loop over a poller.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/syscall.hpp"
#include "strategies/poller.hpp"

namespace c10k {

/// Whoever watches a descriptor. Must stay alive until it has called forget().
class EventHandler {
 public:
  virtual ~EventHandler() = default;
  virtual void on_ready(Readiness ready) = 0;
};

/// What does not depend on how a loop learns of things.
class Loop {
 public:
  Loop() : now_ns_(monotonic_ns()) {}
  virtual ~Loop() = default;
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// Watches a descriptor (borrowed) until forget().
  virtual void watch(int fd, Interest interest, EventHandler& handler) = 0;
  /// Changes what to wait for on a watched descriptor.
  virtual void change(int fd, Interest interest) = 0;
  virtual void forget(int fd, Removal why) = 0;

  /// Calls `action` in the turn after `delay_ns`. Returns a number for cancel().
  std::uint64_t after(std::int64_t delay_ns, std::function<void()> action);
  void cancel(std::uint64_t timer);

  /// Calls `action` at the end of every turn, when all events of the turn have been handled, and
  /// before the first: for what was begun before run().
  void at_end_of_turn(std::function<void()> action) { end_of_turn_.push_back(std::move(action)); }

  /// The time at which this turn began; monotonic_ns().
  [[nodiscard]] std::int64_t now_ns() const { return now_ns_; }

  /// Turns until stop(), which may have been called before. An exception of a handler passes through.
  void run();
  /// Ends the turn at once, and with it what else was ready in it: edges that have been reported
  /// are not reported again.
  void stop() { stopping_ = true; }

 protected:
  virtual void turn() = 0;
  void end_turn();
  void run_timers();

  std::int64_t now_ns_;
  bool stopping_ = false;
  std::multimap<std::int64_t, std::pair<std::uint64_t, std::function<void()>>> timers_;

 private:
  std::uint64_t last_timer_ = 0;
  std::vector<std::function<void()>> end_of_turn_;
};

class EventLoop : public Loop {
 public:
  explicit EventLoop(const PollerEntry& poller);

  void watch(int fd, Interest interest, EventHandler& handler) override;
  void change(int fd, Interest interest) override { poller_->update(fd, interest); }
  void forget(int fd, Removal why) override;

  /// Says that the handler of a watched descriptor stopped before it had read all there is. It is
  /// called again in the next turn, as no edge would come for that.
  void call_again(int fd);

  [[nodiscard]] const PollerEntry& poller() const { return entry_; }

 private:
  struct Watch {
    EventHandler* handler = nullptr;
    std::uint64_t since_turn = 0;
    std::uint64_t generation = 0;
  };

  void turn() override;
  [[nodiscard]] std::int64_t timeout_ns() const;

  PollerEntry entry_;
  std::unique_ptr<Poller> poller_;
  std::vector<Watch> watches_;  // by descriptor
  std::uint64_t turn_ = 0;

  struct Again {
    int fd;
    std::uint64_t generation;
  };
  std::vector<Again> again_;
  std::vector<Again> calling_again_;
};

/// Signals as events (signalfd(2)): blocks them for this thread and the threads and children it
/// makes, so that no handler ever runs between two lines of code.
class SignalWatch : public EventHandler {
 public:
  SignalWatch(Loop& loop, std::initializer_list<int> signals, std::function<void(int)> action);
  ~SignalWatch() override;
  void on_ready(Readiness ready) override;

 private:
  Loop& loop_;
  OwnedFd fd_;
  std::function<void(int)> action_;
};

}  // namespace c10k
