#include "workers/echo_service.hpp"

#include <unistd.h>

#include <utility>

namespace c10k {
namespace {

/// How soon to look whether the acceptor has read what it was told. It reads at each of its turns.
constexpr std::int64_t ended_retry_ns = 2'000'000;

}  // namespace

EchoService::EchoService(Loop& loop, const EchoOptions& options, ProcessCounters& counters)
    : options_(options), counters_(counters), loop_(loop) {
  options_.service_time.seed(static_cast<std::uint32_t>(::getpid()));
  if (options.idle_timeout_ns == 0) return;
  idle_ = std::make_unique<DueList<EchoConnection>>(loop, options.idle_timeout_ns,
                                                    [this](EchoConnection& connection) {
                                                      counters_.closed_idle.add();
                                                      close_idle(connection);
                                                    });
}

void EchoService::count_opened(EchoConnection& connection, Received received,
                               std::uint64_t sequence) {
  connection.fd = std::move(received.fd);
  connection.sequence = sequence;
  connection.copy = received.tag.copy;
  connection.redelivered = received.tag.attempt != 0;
  connection.leaving = false;
  ++active_;
  touch(connection);
}

void EchoService::count_echo(EchoConnection& connection, std::size_t bytes) {
  counters_.echoes.add();
  counters_.bytes.add(bytes);
  touch(connection);
}

void EchoService::count_ended(EchoConnection& connection, bool handed_back) {
  connection.unlink();
  // Before it counts as finished: what is counted here is not handed to somebody else after our death.
  if (options_.report_ended && connection.sequence != 0) {
    ended_.push_back(connection.copy | (handed_back ? handed_back_flag : 0));
    publish_ended();
  }
  if (handed_back) {
    counters_.handed_back.add();
  } else {
    counters_.finished.add();
    if (connection.redelivered) counters_.finished_redelivered.add();
  }
  --active_;
  if (on_closed_) on_closed_();
}

void EchoService::publish_ended() {
  std::uint64_t ended = counters_.ended.get();
  while (!ended_.empty() && ended - counters_.ended_seen.get() < max_outstanding) {
    counters_.ended_copies[++ended % max_outstanding].set(ended_.front());
    ended_.pop_front();
  }
  counters_.ended.set(ended);
  if (ended_.empty() || std::exchange(ended_later_, true)) return;
  loop_.after(ended_retry_ns, [this] {
    ended_later_ = false;
    publish_ended();
  });
}

}  // namespace c10k
