// Accepts by completions: one accept of many shots (IORING_ACCEPT_MULTISHOT) in place of a poll and an
// accept4 for each connection.
#pragma once

#include <deque>
#include <functional>

#include "ipc/listener_source.hpp"
#include "strategies/completion_loop.hpp"
#include "workers/intake.hpp"

namespace c10k {

/// For a listener on which this process accepts alone, and takes all there is. (The kernel takes whatever
/// comes for as long as the accept is under way: where the number is limited, that is too much. And where
/// several processes wait, an accept under way takes the one wake-up that a connection brings, also while
/// its process is busy or stopped. With one of two stopped, the other accepted none of ten; waiting by polls
/// of a single shot with EPOLLEXCLUSIVE it accepted nine, and without all ten.)
///
/// It begins, and goes on after any error, with a poll and the source's own receive(), which knows what
/// each error means and sheds at the limit of descriptors; the first connection received well brings the
/// accept of many shots. A successor of a killed process, whose ring the kernel may not have torn down
/// yet, thus does not depend on a wake-up that the dead one still takes.
class CompletionIntake : public Intake, public Completer, public EventHandler {
 public:
  /// As ReadinessIntake. `reader` is the source's sole_reader().
  CompletionIntake(CompletionLoop& loop, ConnectionSource& source, AcceptQueueReader& reader,
                   std::function<void()> arrived);

  ReceiveResult receive(std::span<Received> batch) override;
  void pause() override;
  void resume() override;
  void stop() override;
  [[nodiscard]] bool ended() const override {
    return state_ == State::stopped && in_flight() == 0 && arrived_connections_.empty();
  }

  void on_ready(Readiness) override { arrived_(); }
  void on_completion(unsigned operation, int result, unsigned flags) override;

 private:
  enum class State {
    waiting,    ///< For the listener to be readable.
    accepting,  ///< The accept is under way.
    paused,
    stopped,
  };

  void leave_accepting(State next);
  void wait();
  void deliver();

  CompletionLoop& loop_;
  ConnectionSource& source_;
  AcceptQueueReader& reader_;
  std::function<void()> arrived_;
  State state_ = State::waiting;
  bool news_ = false;  // since the last end of a turn
  std::deque<Received> arrived_connections_;
};

}  // namespace c10k
