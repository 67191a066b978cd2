#include "workers/echo_service.hpp"

#include <sys/socket.h>

#include <cerrno>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::size_t scratch_bytes = 64 * 1024;
constexpr int reads_per_wake_up = 4;

}  // namespace

bool ReadAheadGuess::worth_trying() {
  // Now and then against the odds, or a change would go unnoticed.
  if (score_ >= 512 || ++skipped_ % 64 == 0) return true;
  return false;
}

class EchoService::Connection : public EventHandler {
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
  std::vector<char> pending;  // read, but not yet taken by the kernel; empty unless the client is slow
  std::size_t pending_from = 0;

  std::int64_t last_active_ns = 0;
  Connection* older = nullptr;
  Connection* newer = nullptr;

 private:
  EchoService& service_;
};

EchoService::EchoService(EventLoop& loop, const EchoOptions& options, ProcessCounters& counters)
    : loop_(loop), options_(options), counters_(counters), scratch_(scratch_bytes) {}

EchoService::~EchoService() {
  on_closed_ = nullptr;
  close_all();
  if (idle_timer_ != 0) loop_.cancel(idle_timer_);
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
  // A client mostly sends at once. Then a read right now saves a turn of the loop, and the whole
  // registration if the connection ends with it; a read in vain costs a system call.
  if (guess_.worth_trying()) {
    const std::uint64_t before = counters_.bytes.get();
    pump(connection, false);
    guess_.record(counters_.bytes.get() != before);
  }
  if (connection.fd && !connection.watched) watch(connection, {.read = true});
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
  std::vector<char>().swap(connection.pending);

  if (options_.idle_timeout_ns != 0) {
    (connection.older != nullptr ? connection.older->newer : oldest_) = connection.newer;
    (connection.newer != nullptr ? connection.newer->older : newest_) = connection.older;
    connection.older = connection.newer = nullptr;
    connection.last_active_ns = 0;
  }
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
  if (options_.idle_timeout_ns == 0) return;
  const bool listed = connection.last_active_ns != 0;
  connection.last_active_ns = loop_.now_ns();
  if (newest_ == &connection) return;
  if (listed) {
    (connection.older != nullptr ? connection.older->newer : oldest_) = connection.newer;
    connection.newer->older = connection.older;
  }
  connection.older = newest_;
  connection.newer = nullptr;
  (newest_ != nullptr ? newest_->newer : oldest_) = &connection;
  newest_ = &connection;
  if (idle_timer_ == 0) idle_timer_ = loop_.after(options_.idle_timeout_ns, [this] { close_idle(); });
}

void EchoService::close_idle() {
  idle_timer_ = 0;
  const std::int64_t limit = loop_.now_ns() - options_.idle_timeout_ns;
  while (oldest_ != nullptr && oldest_->last_active_ns <= limit) {
    counters_.closed_idle.add();
    close(*oldest_);
  }
  if (oldest_ != nullptr) {
    idle_timer_ = loop_.after(oldest_->last_active_ns - limit, [this] { close_idle(); });
  }
}

}  // namespace c10k
