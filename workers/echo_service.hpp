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
  bool close_after_echo = false;  ///< One echo, then close (what the original experiment does).
  ServiceTime service_time;       ///< Burnt for each read that brings bytes.
  // What a client may keep waiting, each 0: for ever. A connection is closed when
  std::int64_t idle_timeout_ns = 0;        ///< no byte has moved for so long;
  std::int64_t first_byte_timeout_ns = 0;  ///< its first byte has not come so long after it;
  std::int64_t write_timeout_ns = 0;  ///< none of an echo that waits has been taken for so long.
  bool report_ended = false;          ///< The acceptor retains copies: tell it which have ended.
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
    bool leaving = false;    // to be given up
    bool begun = false;      ///< Its first byte has come.
    bool backed_up = false;  ///< The kernel has not taken all of its echo: the client is slow.
    /// Read, but not yet taken by the kernel; empty unless the client is slow.
    std::vector<char> pending;
    std::size_t pending_from = 0;
  };

  void count_opened(EchoConnection& connection, Received received, std::uint64_t sequence);
  void count_echo(EchoConnection& connection, std::size_t bytes);
  /// Some of its echo waits for the client from now on, or none any more.
  void set_backed_up(EchoConnection& connection, bool backed_up) {
    if (std::exchange(connection.backed_up, backed_up) != backed_up) watch_deadline(connection);
  }
  /// The client has taken some of what waited for it.
  void count_taken(EchoConnection& connection) { watch_deadline(connection); }
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
  /// It has kept us waiting for too long.
  virtual void close_late(EchoConnection& connection) = 0;

  EchoOptions options_;
  ProcessCounters& counters_;

 private:
  void count_ended(EchoConnection& connection, bool handed_back);
  /// Connections that wait for the same thing, each for the same while.
  using Deadline = std::unique_ptr<DueList<EchoConnection>>;
  Deadline deadline(std::int64_t limit_ns, Counter& closed);
  /// Its time begins anew, in the list for what it waits for now.
  void watch_deadline(EchoConnection& connection) {
    if (has_deadlines_) move_to_list(connection);
  }
  void move_to_list(EchoConnection& connection);
  void publish_ended();

  Loop& loop_;
  std::size_t active_ = 0;
  std::deque<std::uint64_t> ended_;  // copies the acceptor has no room to be told of yet
  bool ended_later_ = false;
  std::function<void()> on_closed_;
  bool has_deadlines_ = false;
  Deadline first_byte_;
  Deadline next_byte_;
  Deadline write_;
};

}  // namespace c10k
