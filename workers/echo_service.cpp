#include "workers/echo_service.hpp"

#include <unistd.h>

namespace c10k {

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
  connection.redelivered = received.tag.attempt != 0;
  ++active_;
  touch(connection);
}

void EchoService::count_echo(EchoConnection& connection, std::size_t bytes) {
  counters_.echoes.add();
  counters_.bytes.add(bytes);
  touch(connection);
}

void EchoService::count_closed(EchoConnection& connection) {
  connection.unlink();
  counters_.finished.add();
  if (connection.redelivered) counters_.finished_redelivered.add();
  --active_;
  if (on_closed_) on_closed_();
}

}  // namespace c10k
