// The one echo handler that every server shape shares (RFC 862).
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
};

/// Guesses whether a read will find something, from whether the last ones did.
class ReadAheadGuess {
 public:
  [[nodiscard]] bool worth_trying();
  void record(bool found) { score_ += ((found ? 1024 : 0) - score_) / 16; }

 private:
  int score_ = 512;
  unsigned skipped_ = 0;
};

/// Echoes on any number of connections over one event loop.
///
/// Per connection: a partial write is buffered (at most one read's worth, 64 KiB), and nothing more
/// is read until it has left, so a slow reader costs bounded memory here and is pushed back by TCP.
/// The end of the client's stream closes the connection after all of it has been echoed. A wake-up
/// reads at most four times, so that one busy connection does not starve the others.
class EchoService {
 public:
  /// `counters` and `loop` outlive the service.
  EchoService(EventLoop& loop, const EchoOptions& options, ProcessCounters& counters);
  ~EchoService();
  EchoService(const EchoService&) = delete;
  EchoService& operator=(const EchoService&) = delete;

  /// Takes the connection over. `sequence` is its number among those from a sink, or 0 when no
  /// other process holds it.
  void serve(Received connection, std::uint64_t sequence);

  [[nodiscard]] std::size_t active() const { return active_; }
  /// Calls `action` whenever a connection has been closed.
  void on_closed(std::function<void()> action) { on_closed_ = std::move(action); }
  /// Closes whatever is left.
  void close_all();

 private:
  class Connection;

  void pump(Connection& connection, bool to_end);
  void flush(Connection& connection);
  void fail(Connection& connection, int error);
  void close(Connection& connection);
  void watch(Connection& connection, Interest interest);
  /// True when it found bytes or the end.
  bool try_read(Connection& connection);
  void settle_fresh();
  void touch(Connection& connection);

  EventLoop& loop_;
  EchoOptions options_;
  ProcessCounters& counters_;
  std::vector<char> scratch_;
  ReadAheadGuess first_read_;
  ReadAheadGuess second_read_;
  std::vector<Connection*> fresh_;      // echoed in this turn and not watched yet
  std::deque<Connection> connections_;  // never shrinks; those closed are reused
  std::vector<Connection*> free_;
  std::size_t active_ = 0;
  std::function<void()> on_closed_;
  std::unique_ptr<DueList<Connection>> idle_;  // with an idle timeout: when each has had its time
};

}  // namespace c10k
