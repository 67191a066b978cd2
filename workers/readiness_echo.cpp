#include "workers/readiness_echo.hpp"

#include <sys/socket.h>

#include <cerrno>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::size_t scratch_bytes = std::size_t{64} * 1024;
constexpr int reads_per_wake_up = 4;

}  // namespace

class ReadinessEcho::Connection : public EventHandler, public EchoConnection {
 public:
  explicit Connection(ReadinessEcho& service) : service_(service) {}
  void on_ready(Readiness ready) override {
    if (!pending.empty()) {
      service_.flush(*this);
    } else {
      service_.pump(*this, ready.read_to_end);
    }
  }

  bool watched = false;
  bool fresh = false;

 private:
  ReadinessEcho& service_;
};

ReadinessEcho::ReadinessEcho(EventLoop& loop, const EchoOptions& options, ProcessCounters& counters)
    : EchoService(loop, options, counters), loop_(loop), scratch_(scratch_bytes) {
  loop_.at_end_of_turn([this] { settle_fresh(); });
}

ReadinessEcho::~ReadinessEcho() {
  on_closed(nullptr);
  close_all();
}

void ReadinessEcho::serve(Received received, std::uint64_t sequence) {
  if (free_.empty()) free_.push_back(&connections_.emplace_back(*this));
  Connection& connection = *free_.back();
  free_.pop_back();
  count_opened(connection, std::move(received), sequence);
  // A client mostly sends at once, and a short-lived one has closed by the end of this turn. Then
  // reads right now save the registration; a read in vain costs a system call.
  if (first_read_.worth_trying()) {
    const bool found = try_read(connection);
    first_read_.record(found);
    if (!connection.fd || connection.watched) return;
    if (found && second_read_.worth_trying()) {
      connection.fresh = true;
      fresh_.push_back(&connection);
      return;
    }
  }
  watch(connection, {.read = true});
}

bool ReadinessEcho::try_read(Connection& connection) {
  const std::uint64_t before = counters_.bytes.get();
  pump(connection, false);
  return !connection.fd || counters_.bytes.get() != before;
}

void ReadinessEcho::settle_fresh() {
  for (Connection* connection : fresh_) {
    // One that has been closed meanwhile may be in the list again, as another connection.
    if (!std::exchange(connection->fresh, false)) continue;
    second_read_.record(try_read(*connection));
    if (connection->fd && !connection->watched) watch(*connection, {.read = true});
  }
  fresh_.clear();
}

void ReadinessEcho::watch(Connection& connection, Interest interest) {
  if (connection.watched) {
    loop_.change(connection.fd.get(), interest);
  } else {
    loop_.watch(connection.fd.get(), interest, connection);
    connection.watched = true;
  }
}

void ReadinessEcho::pump(Connection& connection, bool to_end) {
  const int fd = connection.fd.get();
  for (int reads = 0; reads < reads_per_wake_up; ++reads) {
    const ssize_t got =
        retry_eintr([&] { return ::recv(fd, scratch_.data(), scratch_.size(), MSG_DONTWAIT); });
    if (got == 0) return close(connection);
    if (got < 0) {
      if (errno != EAGAIN) fail(connection, errno);
      return;
    }
    const auto size = static_cast<std::size_t>(got);
    options_.service_time.burn();
    const ssize_t sent =
        retry_eintr([&] { return ::send(fd, scratch_.data(), size, MSG_NOSIGNAL | MSG_DONTWAIT); });
    if (sent < 0 && errno != EAGAIN) return fail(connection, errno);
    count_echo(connection, size);
    const auto taken = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    if (taken < size) {
      connection.pending.assign(scratch_.data() + taken, scratch_.data() + size);
      connection.pending_from = 0;
      set_backed_up(connection, true);
      return watch(connection, {.write = true});
    }
    if (options_.close_after_echo) return close(connection);
    if (size < scratch_.size() && !to_end) return;
  }
  if (connection.watched) loop_.call_again(fd);
}

void ReadinessEcho::flush(Connection& connection) {
  std::vector<char>& pending = connection.pending;
  const ssize_t sent = retry_eintr([&] {
    return ::send(connection.fd.get(), pending.data() + connection.pending_from,
                  pending.size() - connection.pending_from, MSG_NOSIGNAL | MSG_DONTWAIT);
  });
  if (sent < 0) {
    if (errno != EAGAIN) fail(connection, errno);
    return;
  }
  connection.pending_from += static_cast<std::size_t>(sent);
  if (connection.pending_from < pending.size()) return count_taken(connection);
  std::vector<char>().swap(pending);
  set_backed_up(connection, false);
  if (options_.close_after_echo) return close(connection);
  if (connection.leaving) return hand_back(connection);
  // Registering for reading anew reports what has come meanwhile, edge or not (epoll_ctl(2), MOD).
  watch(connection, {.read = true});
}

void ReadinessEcho::fail(Connection& connection, int error) {
  counters_.errors.add(error);
  close(connection);
}

void ReadinessEcho::close_late(EchoConnection& connection) {
  close(static_cast<Connection&>(connection));
}

void ReadinessEcho::close(Connection& connection) {
  const bool elsewhere = is_elsewhere(connection);
  if (connection.watched) {
    loop_.forget(connection.fd.get(), elsewhere ? Removal::still_open : Removal::closing);
    connection.watched = false;
  }
  if (elsewhere) ::shutdown(connection.fd.get(), SHUT_RDWR);
  connection.fd.reset();
  connection.fresh = false;
  std::vector<char>().swap(connection.pending);
  free_.push_back(&connection);
  count_closed(connection);
}

/// What is read is echoed in the same call, so whoever has nothing pending stands between requests.
void ReadinessEcho::leave() {
  for (Connection& connection : connections_) {
    if (!can_leave(connection)) continue;
    connection.leaving = true;
    if (connection.pending.empty()) hand_back(connection);
  }
}

void ReadinessEcho::hand_back(Connection& connection) {
  if (connection.watched) loop_.forget(connection.fd.get(), Removal::still_open);
  connection.watched = connection.fresh = false;
  connection.fd.reset();
  free_.push_back(&connection);
  count_handed_back(connection);
}

void ReadinessEcho::close_all() {
  for (Connection& connection : connections_) {
    if (connection.fd) close(connection);
  }
}

}  // namespace c10k
