// The echo over an event loop: told what is ready, it calls recv and send.
#pragma once

#include <deque>
#include <vector>

#include "workers/echo_service.hpp"
#include "workers/read_ahead_guess.hpp"

namespace c10k {

/// A partial write is buffered (at most one read's worth, 64 KiB). A wake-up reads at most four times.
class ReadinessEcho : public EchoService {
 public:
  ReadinessEcho(EventLoop& loop, const EchoOptions& options, ProcessCounters& counters);
  ~ReadinessEcho() override;

  void serve(Received connection, std::uint64_t sequence) override;
  void close_all() override;
  void leave() override;

 private:
  class Connection;

  void close_late(EchoConnection& connection) override;
  void pump(Connection& connection, bool to_end);
  void flush(Connection& connection);
  void fail(Connection& connection, int error);
  void close(Connection& connection);
  void hand_back(Connection& connection);
  void watch(Connection& connection, Interest interest);
  /// True when it found bytes or the end.
  bool try_read(Connection& connection);
  void settle_fresh();

  EventLoop& loop_;
  std::vector<char> scratch_;
  ReadAheadGuess first_read_;
  ReadAheadGuess second_read_;
  std::vector<Connection*> fresh_;      // echoed in this turn and not watched yet
  std::deque<Connection> connections_;  // never shrinks; those closed are reused
  std::vector<Connection*> free_;
};

}  // namespace c10k
