// --take-over: the side of the new server, which gets the listeners of a running one.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "ipc/handoff.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

class TakeOver : public EventHandler {
 public:
  struct Hooks {
    /// The old server has let go of the listeners. Until then it may have swallowed a wake-up: look at
    /// them once more.
    std::function<void()> left;
    /// A live connection of the old server, which is ours from now on. Null: none is wanted.
    std::function<void(OwnedFd)> adopt;
  };

  /// `from` is PATH or fd:N, which is then owned here. Connects and checks who is there. Throws
  /// UsageError or std::runtime_error.
  explicit TakeOver(const std::string& from);
  ~TakeOver() override;
  TakeOver(const TakeOver&) = delete;
  TakeOver& operator=(const TakeOver&) = delete;

  /// Gets what the running server listens with, for one that would listen as `how` says
  /// (HandoffMethod::listening()). The first is a listener that fits `asked`; nothing is known of the
  /// others. Throws std::runtime_error when the servers do not fit together.
  [[nodiscard]] std::vector<OwnedFd> listeners(std::string_view how, const SocketAddress& asked);

  /// This server is ready: tells the old one to stop accepting, and waits until it does so. Throws when it
  /// is not there any more, or has given up waiting. Afterwards watches what it says.
  void commit(Loop& loop, Hooks hooks);

  void on_ready(Readiness) override;

 private:
  void receive_connections();
  void end();

  OwnedFd socket_;
  Loop* loop_ = nullptr;  // once committed
  Hooks hooks_;
};

}  // namespace c10k
