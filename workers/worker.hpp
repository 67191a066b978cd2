// The worker: a source of connections, a loop, and the echo handler. It does not know which method
// feeds it, nor whether it is a process of a pool or the whole server.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "ipc/handoff.hpp"
#include "strategies/event_loop.hpp"
#include "workers/active_counts.hpp"
#include "workers/counters.hpp"
#include "workers/echo_service.hpp"
#include "workers/loops.hpp"

namespace c10k {

struct WorkerOptions {
  EchoOptions echo;
  std::int64_t drain_timeout_ns = 5'000'000'000;
  std::size_t max_connections =
      0;  ///< Over all workers; 0: no limit. Only for who accepts for itself.
  /// Over one worker of a pool; 0: no limit.
  std::size_t max_connections_per_worker = 0;
  bool wait_to_accept = false;  ///< One that accepts for itself begins with Worker::look_again().
  /// What a worker process may call from the moment it is ready; empty: anything.
  CallGroups allowed_calls;
};

/// What acceptor and worker say to each other over the control socket, in messages of one byte.
namespace control {
inline constexpr char ready = 'r';       ///< From the worker.
inline constexpr char left = 'l';        ///< From the worker, after `retire`.
inline constexpr char poke = 'p';        ///< To the worker: turn your loop.
inline constexpr char look_again = 'a';  ///< To the worker: Worker::look_again().
inline constexpr char retire = 'e';      ///< To the worker: Worker::retire().
}  // namespace control

class Worker {
 public:
  /// `accepts` says that the source is a listener: what it brings counts as accepted here.
  /// `counters` and `active` (whose entry `slot` is this worker's) outlive the worker.
  Worker(const LoopEntry& loop, std::unique_ptr<ConnectionSource> source, bool accepts,
         const WorkerOptions& options, ProcessCounters& counters, ActiveCounts active,
         std::size_t slot);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  [[nodiscard]] Loop& loop() { return serving_->loop(); }
  [[nodiscard]] const ConnectionSource& source() const { return *source_; }

  /// Serves until drained.
  void run();
  /// Takes what still waits in the source (but not from another server's queue, where it was to
  /// wait_to_accept and has never been told to begin), then no more; run() returns when the last
  /// connection has ended, or closes what is left after the drain timeout.
  void drain();
  /// The same, when there is nobody any more who accepts.
  void acceptor_ended();
  /// Takes nothing more, and ends without waiting for the connections that are open.
  void end_drain();
  [[nodiscard]] bool draining() const { return draining_; }

  /// Another server has taken over. Who accepts for itself drains, but leaves what waits in the accept queue
  /// to that server, unless the queue is this worker's own; `left` is called when nothing here looks at the
  /// listener any more. Who is handed connections gives up those that stand between requests, each as soon
  /// as it does, where the acceptor retains copies; what comes later it serves.
  void retire(std::function<void()> left);
  /// Begins to accept, or looks once more at a source whose wake-up somebody else may have had.
  void look_again();

 private:
  void take_batch();
  void check_arrived(std::span<const Received> arrived);
  void pause();
  [[nodiscard]] std::size_t room_under_limit_of_all();
  [[nodiscard]] std::size_t room_under_cap();
  void leave_to_others();
  [[nodiscard]] EchoService& service() { return serving_->service(); }
  void count_closed();
  void take_no_more();
  void end_if_drained();
  void report_active();

  WorkerOptions options_;
  ProcessCounters& counters_;
  ActiveCounts active_;
  std::size_t slot_;
  bool accepts_;
  bool waits_to_accept_;  // until look_again()
  std::unique_ptr<Serving> serving_;
  std::unique_ptr<ConnectionSource> source_;
  std::unique_ptr<Intake> intake_;
  std::array<Received, receive_room> batch_;
  std::size_t claimed_ = 0;  // under --max-connections: counted as open, not accepted or served yet
  bool taking_ = true;
  bool at_limit_ = false;  // leaves the source alone until a connection ends
  bool draining_ = false;
  std::function<void()> on_left_;  // retired: to be called once
};

/// The body of a worker process of a pool: tells `channel` that it is ready, serves, and
/// drains on SIGTERM or when the process `acceptor` has ended, and ends at once on SIGQUIT (a second
/// SIGTERM could merge with the first). On `channel` the acceptor says what `control` names. Returns 0. What
/// fails ends the process at once, so that what it serves is lost as by a kill and not closed as served: with
/// exit_do_not_restart when the listener that it accepts from has failed for good, else with 1.
int run_worker_process(const LoopEntry& loop, std::unique_ptr<ConnectionSource> source,
                       bool accepts, const WorkerOptions& options, ProcessCounters& counters,
                       ActiveCounts active, std::size_t slot, OwnedFd channel, pid_t acceptor);

}  // namespace c10k
