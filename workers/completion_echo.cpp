#include "workers/completion_echo.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr unsigned buffer_bytes = 4096;
constexpr std::size_t most_pending = std::size_t{64} * 1024;
constexpr unsigned no_buffer = ~0U;

}  // namespace

class CompletionEcho::Connection : public Completer, public EchoConnection {
 public:
  explicit Connection(CompletionEcho& service) : service_(service) {}

  void on_completion(unsigned operation, int result, unsigned flags) override {
    switch (operation) {
      case receive:
        return service_.on_received(*this, result, flags);
      case send_buffer:
        return service_.on_buffer_sent(*this, result);
      default:
        return service_.on_pending_sent(*this, result);
    }
  }

  [[nodiscard]] bool open() const { return static_cast<bool>(fd); }
  [[nodiscard]] bool has_unsent() const {
    return first_chunk != no_buffer || sending != no_buffer || !pending.empty();
  }

  // Received and not begun to be sent.
  unsigned first_chunk = no_buffer;
  unsigned last_chunk = no_buffer;
  unsigned sending = no_buffer;  // the buffer whose bytes are being sent
  bool sending_pending = false;
  bool receiving = false;
  bool withdrawing = false;  // the receive
  bool ended = false;        // the client's stream
  bool echoed = false;
  bool unsettled = false;
  /// What has come while `pending` was being sent: that must not move.
  std::vector<char> more;

 private:
  CompletionEcho& service_;
};

CompletionEcho::CompletionEcho(CompletionLoop& loop, const EchoOptions& options,
                               ProcessCounters& counters, unsigned buffers)
    : EchoService(loop, options, counters),
      loop_(loop),
      buffers_(loop.ring(), 0, buffers, buffer_bytes),
      chunks_(buffers) {
  loop_.at_end_of_turn([this] { settle(); });
}

CompletionEcho::~CompletionEcho() {
  on_closed(nullptr);
  close_all();
  // Before the memory goes that entries may mean.
  loop_.flush();
}

std::size_t CompletionEcho::slots_in_use() const {
  return connections_.size() - free_.size();
}

void CompletionEcho::serve(Received received, std::uint64_t sequence) {
  if (free_.empty()) free_.push_back(&connections_.emplace_back(*this));
  Connection& connection = *free_.back();
  free_.pop_back();
  count_opened(connection, std::move(received), sequence);
  begin_receive(connection, false);
}

void CompletionEcho::begin_receive(Connection& connection, bool many) {
  connection.receiving = true;
  loop_.begin(connection, receive, [&](io_uring_sqe* sqe) {
    if (many) {
      ::io_uring_prep_recv_multishot(sqe, connection.fd.get(), nullptr, 0, 0);
    } else {
      ::io_uring_prep_recv(sqe, connection.fd.get(), nullptr, 0, 0);
    }
    buffers_.choose(sqe);
  });
}

void CompletionEcho::on_received(Connection& connection, int result, unsigned flags) {
  if ((flags & IORING_CQE_F_MORE) == 0) connection.receiving = connection.withdrawing = false;
  const bool filled = (flags & IORING_CQE_F_BUFFER) != 0;
  const unsigned buffer = ProvidedBuffers::chosen(flags);
  if (!connection.open()) {
    if (filled) buffers_.give_back(buffer);
    return recycle(connection);
  }
  if (result > 0) {
    options_.service_time.burn();
    count_echo(connection, static_cast<std::size_t>(result));
    chunks_[buffer] = {static_cast<unsigned>(result), no_buffer};
    if (connection.first_chunk == no_buffer) {
      connection.first_chunk = buffer;
    } else {
      chunks_[connection.last_chunk].next = buffer;
    }
    connection.last_chunk = buffer;
    return settle_soon(connection);
  }
  if (filled) buffers_.give_back(buffer);
  switch (-result) {
    case 0:
      connection.ended = true;
      break;
    case ENOBUFS:  // all buffers that are out come back with the next submission
      ++starved_;
      break;
    case ECANCELED:
    case EINTR:
      break;
    default:
      return fail(connection, -result);
  }
  settle_soon(connection);
}

void CompletionEcho::settle_soon(Connection& connection) {
  if (!std::exchange(connection.unsettled, true)) unsettled_.push_back(&connection);
}

void CompletionEcho::settle() {
  settling_.swap(unsettled_);
  for (Connection* connection : settling_) {
    connection->unsettled = false;
    if (connection->open()) echo(*connection);
  }
  // All echoes go first: by the time of these receives a client may have closed.
  for (Connection* connection : settling_) {
    if (connection->open()) go_on_reading(*connection);
  }
  settling_.clear();
}

void CompletionEcho::echo(Connection& connection) {
  const unsigned first = connection.first_chunk;
  if (first == no_buffer || connection.sending != no_buffer) return;
  const Chunk chunk = chunks_[first];
  if (connection.pending.empty() && chunk.next == no_buffer) {
    connection.sending = std::exchange(connection.first_chunk, no_buffer);
    return loop_.begin(connection, send_buffer, [&](io_uring_sqe* sqe) {
      ::io_uring_prep_send(sqe, connection.fd.get(), buffers_.data(first), chunk.length,
                           MSG_NOSIGNAL | MSG_DONTWAIT);
    });
  }
  // Several at once are a stream, or the client is slow.
  while (connection.first_chunk != no_buffer) {
    const unsigned buffer = connection.first_chunk;
    connection.first_chunk = chunks_[buffer].next;
    keep(connection, buffers_.data(buffer), chunks_[buffer].length);
    buffers_.give_back(buffer);
  }
  if (!connection.sending_pending) begin_send_pending(connection);
}

void CompletionEcho::keep(Connection& connection, const char* data, std::size_t size) {
  std::vector<char>& target = connection.sending_pending ? connection.more : connection.pending;
  target.insert(target.end(), data, data + size);
}

void CompletionEcho::begin_send_pending(Connection& connection) {
  connection.sending_pending = true;
  set_backed_up(connection, true);
  loop_.begin(connection, send_pending, [&](io_uring_sqe* sqe) {
    ::io_uring_prep_send(sqe, connection.fd.get(),
                         connection.pending.data() + connection.pending_from,
                         connection.pending.size() - connection.pending_from, MSG_NOSIGNAL);
  });
}

void CompletionEcho::on_buffer_sent(Connection& connection, int result) {
  const unsigned buffer = std::exchange(connection.sending, no_buffer);
  const std::size_t length = chunks_[buffer].length;
  const auto taken = static_cast<std::size_t>(std::max(result, 0));
  if (connection.open() && (result >= 0 || result == -EAGAIN)) {
    connection.echoed = true;
    if (taken < length) {
      keep(connection, buffers_.data(buffer) + taken, length - taken);
      begin_send_pending(connection);
    }
  }
  buffers_.give_back(buffer);
  if (!connection.open()) return recycle(connection);
  if (result < 0 && result != -EAGAIN) return fail(connection, -result);
  // The usual case has nothing more to settle.
  if (taken < length || connection.first_chunk != no_buffer || !connection.receiving)
    settle_soon(connection);
}

void CompletionEcho::on_pending_sent(Connection& connection, int result) {
  connection.sending_pending = false;
  if (!connection.open()) return recycle(connection);
  if (result < 0 && result != -EINTR && result != -EAGAIN) return fail(connection, -result);
  connection.echoed = true;
  connection.pending_from += static_cast<std::size_t>(std::max(result, 0));
  if (connection.pending_from == connection.pending.size()) {
    connection.pending_from = 0;
    connection.pending.clear();
    connection.pending.swap(connection.more);
    // Who was slow once does not keep its memory.
    if (connection.pending.empty()) std::vector<char>().swap(connection.more);
  }
  if (connection.pending.empty()) {
    set_backed_up(connection, false);
  } else {
    if (result > 0) count_taken(connection);
    begin_send_pending(connection);
  }
  settle_soon(connection);
}

void CompletionEcho::go_on_reading(Connection& connection) {
  if (!connection.has_unsent() &&
      (connection.ended || (options_.close_after_echo && connection.echoed)))
    return close(connection);
  if (connection.leaving) {
    // What a receive has brought by the time it is withdrawn is still ours to echo.
    if (connection.receiving && !std::exchange(connection.withdrawing, true))
      loop_.withdraw(connection, receive);
    if (connection.in_flight() == 0 && !connection.has_unsent() && !connection.ended)
      hand_back(connection);
    return;
  }
  if (connection.receiving) {
    const std::size_t unsent =
        connection.pending.size() - connection.pending_from + connection.more.size();
    if (unsent >= most_pending && !std::exchange(connection.withdrawing, true))
      loop_.withdraw(connection, receive);
    return;
  }
  const bool enough = connection.ended || !connection.pending.empty() ||
                      (options_.close_after_echo && connection.has_unsent());
  if (!enough) begin_receive(connection, !options_.close_after_echo);
}

void CompletionEcho::fail(Connection& connection, int error) {
  counters_.errors.add(error);
  close(connection);
}

void CompletionEcho::close_late(EchoConnection& connection) {
  close(static_cast<Connection&>(connection));
}

void CompletionEcho::close(Connection& connection) {
  // An operation under way holds the open file: closing the descriptor would end nothing. The shutdown
  // completes it.
  if (connection.in_flight() != 0 || is_elsewhere(connection))
    ::shutdown(connection.fd.get(), SHUT_RDWR);
  while (connection.first_chunk != no_buffer) {
    buffers_.give_back(connection.first_chunk);
    connection.first_chunk = chunks_[connection.first_chunk].next;
  }
  loop_.close(std::move(connection.fd));
  connection.fd.reset();
  count_closed(connection);
  recycle(connection);
}

void CompletionEcho::leave() {
  for (Connection& connection : connections_) {
    if (!can_leave(connection)) continue;
    connection.leaving = true;
    settle_soon(connection);
  }
}

void CompletionEcho::hand_back(Connection& connection) {
  loop_.close(std::move(connection.fd));
  connection.fd.reset();
  count_handed_back(connection);
  recycle(connection);
}

void CompletionEcho::recycle(Connection& connection) {
  if (connection.in_flight() != 0) return;
  std::vector<char>().swap(connection.pending);
  std::vector<char>().swap(connection.more);
  connection.pending_from = 0;
  connection.ended = connection.echoed = false;
  free_.push_back(&connection);
}

void CompletionEcho::close_all() {
  for (Connection& connection : connections_) {
    if (connection.open()) close(connection);
  }
}

}  // namespace c10k
