// The side of the running server: it lets a successor take its listeners over, and starts one on SIGHUP.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "acceptor/server_options.hpp"
#include "ipc/control_socket.hpp"
#include "ipc/process.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

class Upgrade : public EventHandler {
 public:
  struct Hooks {
    /// What the successor gets, lent. The first is the listener.
    std::function<std::vector<int>()> listeners;
    /// A successor is ready, and accepts by now: stop accepting, leave to it what waits in the accept
    /// queues, and finish. `adopts`: it takes live connections, through take_channel(). Call left() when
    /// no process of this server looks at the listeners any more.
    std::function<void(bool adopts)> retire;
    /// A successor has failed, after it may have drawn connections to itself.
    std::function<void()> reclaim;
  };

  /// `how` it listens (HandoffMethod::listening()). The control socket is opened by the caller before.
  Upgrade(Loop& loop, const ServerOptions& options, std::unique_ptr<ControlSocket> control,
          std::string how, Hooks hooks);
  /// A successor that is not ready by then is killed if this process has started it.
  ~Upgrade() override;
  Upgrade(const Upgrade&) = delete;
  Upgrade& operator=(const Upgrade&) = delete;

  /// Starts the program from the path where it was, with the same arguments, to take this server over.
  void start_successor();
  /// A successor has taken over.
  [[nodiscard]] bool retired() const { return state_ == State::retired; }
  /// No process of this server looks at the listeners any more.
  void left();
  /// The socket on which the successor adopts connections; not watched here any more.
  [[nodiscard]] OwnedFd take_channel();
  /// A pidfd of the successor; empty when there is none to be had.
  [[nodiscard]] OwnedFd successor() const;
  /// This server ends: it is not taken over any more.
  void stop();
  /// For a server that reaps all its children: true when it was the successor.
  [[nodiscard]] bool reaped(pid_t pid, const ChildExit& exit);

  /// The control socket: somebody has connected.
  void on_ready(Readiness) override;

 private:
  enum class State : std::uint8_t { idle, greeting, starting, retired };

  class Peer : public EventHandler {
   public:
    explicit Peer(Upgrade& upgrade) : upgrade_(upgrade) {}
    void on_ready(Readiness) override { upgrade_.on_peer(); }

   private:
    Upgrade& upgrade_;
  };
  class ChildWatch : public EventHandler {
   public:
    explicit ChildWatch(Upgrade& upgrade) : upgrade_(upgrade) {}
    void on_ready(Readiness) override;

   private:
    Upgrade& upgrade_;
  };

  void greet(OwnedFd socket, pid_t pid);
  void on_peer();
  void answer_hello();
  void retire(bool adopts);
  void fail(const std::string& why);
  void let_go();
  void set_deadline(std::int64_t delay_ns, const char* what);
  [[nodiscard]] int execute(int channel) const;

  Loop& loop_;
  const ServerOptions& options_;
  std::unique_ptr<ControlSocket> control_;
  std::string how_;
  Hooks hooks_;
  State state_ = State::idle;
  bool stopped_ = false;
  bool starved_ = false;  // somebody waits at the control socket for a descriptor here
  OwnedFd socket_;        // to the successor
  pid_t pid_ = 0;
  std::string who_;  // it is, in words
  Peer peer_{*this};
  bool watching_peer_ = false;
  std::uint64_t deadline_ = 0;
  ChildProcess child_;
  ChildWatch child_watch_{*this};
};

}  // namespace c10k
