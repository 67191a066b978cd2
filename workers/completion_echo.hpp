// The echo over a completion loop: it says what is to be received and sent, and is told what has been.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "strategies/completion_loop.hpp"
#include "strategies/provided_buffers.hpp"
#include "workers/echo_service.hpp"

namespace c10k {

/// One receive of many shots waits on each connection; the kernel takes a buffer for it when there are
/// bytes. They are echoed at the end of the turn, out of the same buffer and without waiting
/// (MSG_DONTWAIT), so a buffer is back after one io_uring_enter, whatever the client does. What the kernel
/// does not take moves to memory of the connection; it is sent from there, and at 64 KiB the receive is
/// withdrawn until all has left. (Until it is, the kernel may bring 32 buffers more: MULTISHOT_MAX_RETRY.)
///
/// The first receive is a single one: of a short connection the end may have come by the time of the
/// second, which then completes without being hung on the socket's queue and taken off again.
class CompletionEcho : public EchoService {
 public:
  CompletionEcho(CompletionLoop& loop, const EchoOptions& options, ProcessCounters& counters,
                 unsigned buffers = 256);
  ~CompletionEcho() override;

  void serve(Received connection, std::uint64_t sequence) override;
  void close_all() override;
  void leave() override;

  /// Connections that have found no buffer, ever: they go on in the next turn.
  [[nodiscard]] std::uint64_t starved() const { return starved_; }
  /// Those served or ended whose last completion is to come.
  [[nodiscard]] std::size_t slots_in_use() const;

 private:
  class Connection;
  enum Operation : unsigned { receive, send_buffer, send_pending };

  /// Bytes that have come and are to be echoed: a buffer, and the next of the same connection.
  struct Chunk {
    unsigned length = 0;
    unsigned next = 0;
  };

  void close_late(EchoConnection& connection) override;
  void on_received(Connection& connection, int result, unsigned flags);
  void on_buffer_sent(Connection& connection, int result);
  void on_pending_sent(Connection& connection, int result);
  void begin_receive(Connection& connection, bool many);
  void begin_send_pending(Connection& connection);
  void settle();
  void settle_soon(Connection& connection);
  void echo(Connection& connection);
  void go_on_reading(Connection& connection);
  void keep(Connection& connection, const char* data, std::size_t size);
  void fail(Connection& connection, int error);
  void close(Connection& connection);
  void hand_back(Connection& connection);
  void recycle(Connection& connection);

  CompletionLoop& loop_;
  ProvidedBuffers buffers_;
  std::vector<Chunk> chunks_;           // by buffer
  std::vector<Connection*> unsettled_;  // something has happened to them in this turn
  std::vector<Connection*> settling_;
  std::deque<Connection> connections_;  // never shrinks; those free are reused
  std::vector<Connection*> free_;
  std::uint64_t starved_ = 0;
};

}  // namespace c10k
