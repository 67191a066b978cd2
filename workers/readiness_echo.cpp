#include "workers/echo_service.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::size_t scratch_bytes = std::size_t{64} * 1024;
constexpr int reads_per_wake_up = 4;

}  // namespace

bool ReadAheadGuess::worth_trying() {
  // Now and then against the odds, or a change would go unnoticed.
  if (score_ >= 512 || ++skipped_ % 64 == 0) return true;
  return false;
}

class EchoService::Connection : public EventHandler, public DueMember {
 public:
  explicit Connection(EchoService& service) : service_(service) {}
  void on_ready(Readiness ready) override {
    if (!pending.empty()) {
      service_.flush(*this);
    } else {
      service_.pump(*this, ready.read_to_end);
    }
  }

  OwnedFd fd;
  std::uint64_t sequence = 0;
  bool redelivered = false;
  bool watched = false;
  bool fresh = false;
  std::vector<char>
      pending;  // read, but not yet taken by the kernel; empty unless the client is slow
  std::size_t pending_from = 0;

 private:
  EchoService& service_;
};

EchoService::EchoService(EventLoop& loop, const EchoOptions& options, ProcessCounters& counters)
    : loop_(loop), options_(options), counters_(counters), scratch_(scratch_bytes) {
  options_.service_time.seed(static_cast<std::uint32_t>(::getpid()));
  loop_.at_end_of_turn([this] { settle_fresh(); });
  if (options.idle_timeout_ns == 0) return;
  idle_ = std::make_unique<DueList<Connection>>(loop_, options.idle_timeout_ns,
                                                [this](Connection& connection) {
                                                  counters_.closed_idle.add();
                                                  close(connection);
                                                });
}

EchoService::~EchoService() {
  on_closed_ = nullptr;
  close_all();
}

void EchoService::serve(Received received, std::uint64_t sequence) {
  if (free_.empty()) free_.push_back(&connections_.emplace_back(*this));
  Connection& connection = *free_.back();
  free_.pop_back();
  connection.fd = std::move(received.fd);
  connection.sequence = sequence;
  connection.redelivered = received.tag.attempt != 0;
  ++active_;
  touch(connection);
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

bool EchoService::try_read(Connection& connection) {
  const std::uint64_t before = counters_.bytes.get();
  pump(connection, false);
  return !connection.fd || counters_.bytes.get() != before;
}

void EchoService::settle_fresh() {
  for (Connection* connection : fresh_) {
    // One that has been closed meanwhile may be in the list again, as another connection.
    if (!std::exchange(connection->fresh, false)) continue;
    second_read_.record(try_read(*connection));
    if (connection->fd && !connection->watched) watch(*connection, {.read = true});
  }
  fresh_.clear();
}

void EchoService::watch(Connection& connection, Interest interest) {
  if (connection.watched) {
    loop_.change(connection.fd.get(), interest);
  } else {
    loop_.watch(connection.fd.get(), interest, connection);
    connection.watched = true;
  }
}

void EchoService::pump(Connection& connection, bool to_end) {
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
    counters_.echoes.add();
    counters_.bytes.add(size);
    touch(connection);
    const auto taken = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
    if (taken < size) {
      connection.pending.assign(scratch_.data() + taken, scratch_.data() + size);
      connection.pending_from = 0;
      return watch(connection, {.write = true});
    }
    if (options_.close_after_echo) return close(connection);
    if (size < scratch_.size() && !to_end) return;
  }
  if (connection.watched) loop_.call_again(fd);
}

void EchoService::flush(Connection& connection) {
  std::vector<char>& pending = connection.pending;
  const ssize_t sent = retry_eintr([&] {
    return ::send(connection.fd.get(), pending.data() + connection.pending_from,
                  pending.size() - connection.pending_from, MSG_NOSIGNAL | MSG_DONTWAIT);
  });
  if (sent < 0) {
    if (errno != EAGAIN) fail(connection, errno);
    return;
  }
  touch(connection);
  connection.pending_from += static_cast<std::size_t>(sent);
  if (connection.pending_from < pending.size()) return;
  std::vector<char>().swap(pending);
  if (options_.close_after_echo) return close(connection);
  // Registering for reading anew reports what has come meanwhile, edge or not (epoll_ctl(2), MOD).
  watch(connection, {.read = true});
}

void EchoService::fail(Connection& connection, int error) {
  counters_.errors.add(error);
  close(connection);
}

void EchoService::close(Connection& connection) {
  // As long as the acceptor has its copy, close() here ends neither the connection nor its events.
  const bool elsewhere = connection.sequence > counters_.released.get();
  if (connection.watched) {
    loop_.forget(connection.fd.get(), elsewhere ? Removal::still_open : Removal::closing);
    connection.watched = false;
  }
  if (elsewhere) ::shutdown(connection.fd.get(), SHUT_RDWR);
  connection.fd.reset();
  connection.fresh = false;
  std::vector<char>().swap(connection.pending);

  connection.unlink();
  counters_.finished.add();
  if (connection.redelivered) counters_.finished_redelivered.add();
  --active_;
  free_.push_back(&connection);
  if (on_closed_) on_closed_();
}

void EchoService::close_all() {
  for (Connection& connection : connections_) {
    if (connection.fd) close(connection);
  }
}

void EchoService::touch(Connection& connection) {
  if (idle_) idle_->push(connection, loop_.now_ns());
}

}  // namespace c10k
