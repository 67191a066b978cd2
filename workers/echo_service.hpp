// The one echo policy that every server shape shares (RFC 862), and its books.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "ipc/handoff.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"
#include "workers/counters.hpp"
#include "workers/service_time.hpp"

namespace c10k {

struct EchoOptions {
  bool close_after_echo = false;     ///< One echo, then close (what the original experiment does).
  ServiceTime service_time;          ///< Burnt for each read that brings bytes.
  std::int64_t idle_timeout_ns = 0;  ///< Close what has moved no byte for so long; 0: never.
  bool report_ended = false;         ///< The acceptor retains copies: tell it which have ended.
};

/// Echoes on any number of connections over one loop: by readiness (ReadinessEcho) or by completions
/// (CompletionEcho).
///
/// Per connection: what the kernel does not take is buffered, and nothing more is read until it has
/// left, so a slow reader costs bounded memory here and is pushed back by TCP. The end of the client's
/// stream closes the connection after all of it has been echoed. A wake-up does bounded work for one
/// connection, so that a busy one does not starve the others.
class EchoService {
 public:
  /// `counters` and `loop` outlive the service.
  EchoService(Loop& loop, const EchoOptions& options, ProcessCounters& counters);
  virtual ~EchoService() = default;
  EchoService(const EchoService&) = delete;
  EchoService& operator=(const EchoService&) = delete;

  /// Takes the connection over. `sequence` is its number among those from a sink, or 0 when no
  /// other process holds it.
  virtual void serve(Received connection, std::uint64_t sequence) = 0;
  /// Closes whatever is left.
  virtual void close_all() = 0;
  /// Gives up each connection of which the acceptor retains a copy, as soon as all that has been read from
  /// it is echoed: it lives on, with what the kernel has received meanwhile. Those served later stay.
  virtual void leave() = 0;

  [[nodiscard]] std::size_t active() const { return active_; }
  /// Calls `action` whenever a connection has been closed.
  void on_closed(std::function<void()> action) { on_closed_ = std::move(action); }

 protected:
  /// What is the same however bytes are moved.
  struct EchoConnection : DueMember {
    OwnedFd fd;
    std::uint64_t sequence = 0;
    std::uint32_t copy = 0;  // the acceptor's
    bool redelivered = false;
    bool leaving = false;  // to be given up
    /// Read, but not yet taken by the kernel; empty unless the client is slow.
    std::vector<char> pending;
    std::size_t pending_from = 0;
  };

  void count_opened(EchoConnection& connection, Received received, std::uint64_t sequence);
  void count_echo(EchoConnection& connection, std::size_t bytes);
  /// A byte has moved.
  void touch(EchoConnection& connection) {
    if (idle_) idle_->push(connection, loop_.now_ns());
  }
  /// True as long as the acceptor has its copy: closing ours ends neither the connection nor its events.
  [[nodiscard]] bool is_elsewhere(const EchoConnection& connection) const {
    return connection.sequence > counters_.released.get();
  }
  /// The last that is done to a connection: it may be another one when this returns.
  void count_closed(EchoConnection& connection) { count_ended(connection, false); }
  /// The same for one that has been given up alive.
  void count_handed_back(EchoConnection& connection) { count_ended(connection, true); }
  /// Whether leave() means it.
  [[nodiscard]] bool can_leave(const EchoConnection& connection) const {
    return connection.fd && options_.report_ended && connection.sequence != 0 &&
           counters_.retained.has(connection.copy);
  }
  /// The idle timeout.
  virtual void close_idle(EchoConnection& connection) = 0;

  EchoOptions options_;
  ProcessCounters& counters_;

 private:
  void count_ended(EchoConnection& connection, bool handed_back);
  void publish_ended();

  Loop& loop_;
  std::size_t active_ = 0;
  std::deque<std::uint64_t> ended_;  // copies the acceptor has no room to be told of yet
  bool ended_later_ = false;
  std::function<void()> on_closed_;
  std::unique_ptr<DueList<EchoConnection>>
      idle_;  // with an idle timeout: when each has had its time
};

}  // namespace c10k
