#include "workers/echo_service.hpp"

#include <unistd.h>

#include <utility>

#include "ipc/socket.hpp"

namespace c10k {
namespace {

/// How soon to look whether the acceptor has read what it was told. It reads at each of its turns.
constexpr std::int64_t ended_retry_ns = 2'000'000;

}  // namespace

EchoService::EchoService(Loop& loop, const EchoOptions& options, ProcessCounters& counters)
    : options_(options), counters_(counters), loop_(loop) {
  options_.service_time.seed(static_cast<std::uint32_t>(::getpid()));
  first_byte_ = deadline(options.first_byte_timeout_ns, counters.closed_silent);
  next_byte_ = deadline(0, counters.closed_idle);
  write_ = deadline(options.write_timeout_ns, counters.closed_stalled);
  has_deadlines_ = first_byte_ || next_byte_ || write_;
}

/// In each state no byte moves either, so the idle timeout holds beside the state's own: the shorter one
/// is what comes.
EchoService::Deadline EchoService::deadline(std::int64_t limit_ns, Counter& closed) {
  const std::int64_t idle_ns = options_.idle_timeout_ns;
  const bool by_idle = limit_ns == 0 || (idle_ns != 0 && idle_ns < limit_ns);
  const std::int64_t wait_ns = by_idle ? idle_ns : limit_ns;
  if (wait_ns == 0) return nullptr;
  Counter& counter = by_idle ? counters_.closed_idle : closed;
  return std::make_unique<DueList<EchoConnection>>(loop_, wait_ns,
                                                   [this, &counter](EchoConnection& connection) {
                                                     counter.add();
                                                     close_late(connection);
                                                   });
}

void EchoService::move_to_list(EchoConnection& connection) {
  const Deadline& list = connection.backed_up ? write_
                         : connection.begun   ? next_byte_
                                              : first_byte_;
  if (list) {
    list->push(connection, loop_.now_ns());
  } else {
    connection.unlink();
  }
}

void EchoService::count_opened(EchoConnection& connection, Received received,
                               std::uint64_t sequence) {
  connection.fd = std::move(received.fd);
  connection.sequence = sequence;
  connection.copy = received.tag.copy;
  connection.redelivered = received.tag.attempt != 0;
  connection.leaving = false;
  connection.backed_up = false;
  // One that has lived in another worker, or in the server before this one, may have had its first byte
  // there.
  connection.begun = first_byte_ && stream_progress(connection.fd.get()).read != 0;
  ++active_;
  watch_deadline(connection);
}

void EchoService::count_echo(EchoConnection& connection, std::size_t bytes) {
  counters_.echoes.add();
  counters_.bytes.add(bytes);
  connection.begun = true;
  // What a client sends is no excuse for what it does not take.
  if (!connection.backed_up || options_.write_timeout_ns == 0) watch_deadline(connection);
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
