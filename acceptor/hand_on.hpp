// Live connections on their way to the server that has taken this one over (--retain).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "ipc/handoff.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// Keeps each connection until the successor says that it has adopted it, so that none is lost with it
/// before.
class HandOn : public EventHandler {
 public:
  struct Hooks {
    /// Something has been adopted, or there is room again.
    std::function<void()> moved;
    /// These are ours again: the successor had no descriptor for them, or (then `gone`) has ended. Nothing
    /// can be sent any more in the second case.
    std::function<void(std::vector<Received>, bool gone)> returned;
  };

  /// `pidfd` is the successor's, or empty. Its workers may hold the socket's other end open (in a shared table)
  /// for as long as they live, and then only the pidfd tells of its end.
  HandOn(Loop& loop, OwnedFd socket, OwnedFd pidfd, Hooks hooks);
  ~HandOn() override;
  HandOn(const HandOn&) = delete;
  HandOn& operator=(const HandOn&) = delete;

  /// Sends from the front as much as there is room for, and takes it over.
  void send(std::deque<Received>& connections);
  /// Sent, and not said to be adopted.
  [[nodiscard]] std::size_t on_their_way() const { return sent_.size(); }
  [[nodiscard]] std::uint64_t adopted() const { return adopted_; }

  /// This server ends: what is on its way is the successor's, who finds it in the socket.
  void leave();

  void on_ready(Readiness ready) override;

 private:
  class EndWatch : public EventHandler {
   public:
    explicit EndWatch(HandOn& owner) : owner_(owner) {}
    void on_ready(Readiness) override { owner_.on_successor_ended(); }

   private:
    HandOn& owner_;
  };

  void on_successor_ended();
  void let_go();
  void end(const std::string& why);
  void rest();
  void listen(bool for_room);

  Loop& loop_;
  OwnedFd socket_;
  OwnedFd pidfd_;
  EndWatch end_watch_{*this};
  Hooks hooks_;
  std::deque<Received> sent_;
  std::deque<std::size_t> frames_;  // how many each has of `sent_`
  std::uint64_t adopted_ = 0;
  std::uint64_t resting_ = 0;  // a timer
  bool full_ = false;
};

}  // namespace c10k
