// The worker: a source of connections, a loop, and the echo handler. It does not know which method
// feeds it, nor whether it is a process of a pool or the whole server.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ipc/handoff.hpp"
#include "strategies/event_loop.hpp"
#include "workers/counters.hpp"
#include "workers/echo_service.hpp"

namespace c10k {

struct WorkerOptions {
  EchoOptions echo;
  std::int64_t drain_timeout_ns = 5'000'000'000;
  std::size_t max_connections =
      0;  ///< Over all workers; 0: no limit. Only for who accepts for itself.
};

/// How many connections each worker of a pool has open: one writer a slot.
using ActiveCounts = std::span<Counter>;

class Worker : public EventHandler {
 public:
  /// `accepts` says that the source is a listener: what it brings counts as accepted here.
  /// `counters` and `active` (whose entry `slot` is this worker's) outlive the worker.
  Worker(const PollerEntry& poller, std::unique_ptr<ConnectionSource> source, bool accepts,
         const WorkerOptions& options, ProcessCounters& counters, ActiveCounts active,
         std::size_t slot);
  ~Worker() override;

  [[nodiscard]] EventLoop& loop() { return loop_; }
  [[nodiscard]] const ConnectionSource& source() const { return *source_; }

  /// Serves until drained.
  void run();
  /// Takes what still waits in the source, then no more; run() returns when the last connection has
  /// ended, or closes what is left after the drain timeout.
  void drain();
  /// Drains without waiting for the connections that are open.
  void end_drain();
  [[nodiscard]] bool draining() const { return draining_; }

  void on_ready(Readiness ready) override;

 private:
  /// The source's second descriptor, where it has one.
  class Attention : public EventHandler {
   public:
    explicit Attention(Worker& worker) : worker_(worker) {}
    void on_ready(Readiness) override {
      worker_.source_->attend();
      worker_.take_batch();
    }

   private:
    Worker& worker_;
  };

  void take_batch();
  void pause();
  void watch_source(bool read);
  [[nodiscard]] std::size_t room() const;
  [[nodiscard]] Interest source_interest(bool read) const;
  void stop_taking();
  void count_closed();
  void end_if_drained();
  void report_active();

  WorkerOptions options_;
  ProcessCounters& counters_;
  ActiveCounts active_;
  std::size_t slot_;
  bool accepts_;
  EventLoop loop_;
  std::unique_ptr<ConnectionSource> source_;
  EchoService service_;
  std::array<Received, receive_room> batch_;
  Attention attention_{*this};
  bool taking_ = true;
  bool at_limit_ = false;  // leaves the source alone until a connection ends
  bool draining_ = false;
};

/// The body of a worker process of a pool: tells `control` that it is ready (one byte), serves, and
/// drains on SIGTERM or when the process `acceptor` has ended, and ends at once on SIGQUIT (a second
/// SIGTERM could merge with the first). Returns the exit code.
int run_worker_process(const PollerEntry& poller, std::unique_ptr<ConnectionSource> source,
                       bool accepts, const WorkerOptions& options, ProcessCounters& counters,
                       ActiveCounts active, std::size_t slot, OwnedFd control, pid_t acceptor);

}  // namespace c10k
