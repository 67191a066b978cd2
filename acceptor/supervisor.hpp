// Spawns, watches, replaces and ends the workers of a pool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "acceptor/report.hpp"
#include "acceptor/server_options.hpp"
#include "ipc/process.hpp"
#include "ipc/shared_memory.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// A worker process and the acceptor's end of what leads to it. A successor in the same slot is
/// another incarnation with its own link and its own counters.
struct WorkerProcess {
  std::size_t slot = 0;
  ChildProcess child;
  OwnedFd stat;  ///< open_stat() of it: it is also looked at when no descriptor is left
  OwnedFd control;
  std::unique_ptr<ConnectionSink> sink;  ///< null when the kernel hands over
  std::unique_ptr<SharedArray<ProcessCounters>> shared;
  bool ready = false;
  std::int64_t started_ns = 0;

  [[nodiscard]] ProcessCounters& counters() const { return (*shared)[0]; }
};

class Supervisor {
 public:
  struct Hooks {
    /// A worker has been forked. It may receive before its word that it is ready has been heard.
    std::function<void(WorkerProcess&)> started;
    /// A worker has said that it is ready.
    std::function<void(WorkerProcess&)> ready;
    /// A worker has ended and been reaped; its counters are final. It is destroyed afterwards.
    std::function<void(WorkerProcess&)> ended;
    /// Whether a worker has, or may have, something to do: then it must turn its loop when poked.
    std::function<bool(const WorkerProcess&)> may_have_work;
    /// The last worker has ended after stop(), or there is none left that may be restarted: failure()
    /// says so then.
    std::function<void()> all_ended;
  };

  Supervisor(EventLoop& loop, const ServerOptions& options, int listener, Hooks hooks);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  /// Forks all workers. One that ends before it was ever ready, or is not ready by the start deadline,
  /// throws from the loop: what does not start once will not start again. (A successor that does neither is
  /// killed and replaced, if there is a worker deadline.)
  void start();
  [[nodiscard]] bool all_ready() const;

  /// The worker in a slot; null while it is dead.
  [[nodiscard]] WorkerProcess* worker(std::size_t slot) const { return slots_[slot].worker.get(); }
  [[nodiscard]] std::size_t size() const { return slots_.size(); }

  /// Tells all workers to drain (SIGTERM; SIGQUIT the second time), replaces none, and kills those that are still there
  /// some time after their drain's deadline. A second call ends their drain at once.
  void stop();

  /// Another server has taken over: tells all workers (Worker::retire()). Those that accept for themselves
  /// then drain, as after stop(); `left` is called when none of them looks at a listener any more. The
  /// others are replaced as ever until stop().
  void retire(std::function<void()> left);
  /// Tells all workers to begin to accept, or to look once more (Worker::look_again()). Until the first
  /// call, workers of a server that takes another over wait for it.
  void look_again();

  /// This process fails: its workers are not killed with this object, but see its end, and drain.
  void spare_workers();

  [[nodiscard]] std::uint64_t deaths() const { return deaths_; }
  /// Those of them that were stuck and killed for it.
  [[nodiscard]] std::uint64_t stuck() const { return stuck_; }
  /// Which slots have no worker that is ready, and why, in words; empty when all workers run.
  [[nodiscard]] std::string degraded() const;
  /// Why no worker is left, though nobody has called stop(); empty while there is one.
  [[nodiscard]] const std::string& failure() const { return failure_; }
  /// A row a slot, all its incarnations together.
  [[nodiscard]] std::vector<ProcessTotals> totals() const;

 private:
  class ExitWatch;
  class ControlWatch;

  struct Slot {
    std::unique_ptr<WorkerProcess> worker;
    std::unique_ptr<ExitWatch> exit_watch;
    std::unique_ptr<ControlWatch> control_watch;
    ProcessTotals past;  // of the incarnations that have ended
    bool ever_ready = false;
    int failures_in_row = 0;
    bool abandoned = false;  // its worker asked not to be restarted
    // Of the worker that runs: its turns and echoes when last looked at, and for how many looks it has
    // owed one.
    std::uint64_t progress = 0;
    int looks_in_debt = 0;
    bool killed = false;
    bool leaving = false;  // it has been told to retire, and has not said that it has left
  };

  void spawn(std::size_t slot);
  void on_ready(std::size_t slot);
  void on_ended(std::size_t slot);
  void replace(std::size_t slot);
  void abandon(std::size_t slot);
  void check_start();
  [[nodiscard]] double start_deadline_s() const;
  void look_after_workers();
  void look_after(Slot& slot, bool one_is_stopped);
  void tell(const Slot& slot, char byte) const;
  void on_left(std::size_t slot);
  void end_workers_after(std::int64_t delay_ns);

  EventLoop& loop_;
  const ServerOptions& options_;
  int listener_;
  Hooks hooks_;
  SharedArray<Counter> active_;
  std::vector<Slot> slots_;
  std::uint64_t deaths_ = 0;
  std::uint64_t stuck_ = 0;
  std::string failure_;
  bool stopping_ = false;
  bool wait_to_accept_;
  std::function<void()> all_left_;
};

}  // namespace c10k
