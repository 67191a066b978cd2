// One function a strategy, and what they all begin and end with.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "acceptor/report.hpp"
#include "acceptor/server_options.hpp"
#include "acceptor/take_over.hpp"
#include "acceptor/upgrade.hpp"
#include "ipc/owned_fd.hpp"

namespace c10k {

/// A line of the registry of server shapes.
struct StrategyEntry {
  std::string_view name;
  std::string_view summary;
  int (*run)(ServerOptions& options);
  /// With --user: what the process that accepts calls in this shape, beside what its loop and its serving
  /// need. A pool's acceptor is not confined.
  CallGroups calls = {};
  /// By trying it.
  Support (*probe)() = [] { return Support{}; };
};

/// In the order in which they are listed.
[[nodiscard]] std::span<const StrategyEntry> strategies();
/// Throws UsageError naming the known ones.
[[nodiscard]] const StrategyEntry& find_strategy(std::string_view name);

int run_fork_server(ServerOptions& options);
int run_single_server(ServerOptions& options);
int run_pool_server(ServerOptions& options);

/// The listener, the upgrade, the report and the intervals, which every strategy has.
class ServerFrame {
 public:
  struct Hooks {
    std::function<ServerReport()> report;
    /// Upgrade::Hooks::retire.
    std::function<void(bool adopts)> retire;
    /// TakeOver::Hooks.
    std::function<void()> look_again;
    std::function<void(OwnedFd)> adopt = nullptr;
  };

  /// Opens the listener, or takes it over. Throws SystemError with a hint for an address in use.
  explicit ServerFrame(const ServerOptions& options);

  [[nodiscard]] int listener() const { return listener_.get(); }
  [[nodiscard]] const SocketAddress& address() const { return address_; }
  /// No more connections; what is still in the queue is reset.
  void close_listener() { listener_.reset(); }

  /// All workers are ready. Where another server is taken over, this is the moment; it throws when that
  /// one does not retire, and nobody may accept before. Then prints `listening HOST:PORT`, the first line on
  /// stdout, and starts the interval lines. Nothing is counted for the report before.
  void announce(Loop& loop, Hooks hooks);
  /// SIGHUP: starts a successor.
  void start_successor();
  /// What retire() may use, and the end; null before announce().
  [[nodiscard]] Upgrade* upgrade() { return upgrade_.get(); }
  /// Watches nothing any more: for a loop that ends before this object.
  void leave_loop() {
    upgrade_.reset();
    take_over_.reset();
  }
  /// This server ends, and is not taken over any more.
  void stop_upgrades() {
    if (upgrade_) upgrade_->stop();
    stop_adopting();
  }
  /// What the old server still hands on it takes back, and serves itself.
  void stop_adopting() { take_over_.reset(); }
  /// True once, for the first signal to end after a successor has taken over: the server drains already, and
  /// is told so for the first time.
  [[nodiscard]] bool drains_already() {
    return upgrade_ && upgrade_->retired() && !std::exchange(told_to_end_, true);
  }
  /// Turns the loop to its end (`run`), and writes the report. Of a server that fails then as well, which is
  /// told so (`failed`) before the exception passes through.
  void run(const std::function<void()>& run, const std::function<void()>& failed);
  /// Writes the report with what all strategies know filled in; what fails is said on stderr.
  void try_write_report();

 private:
  void write_report();
  [[nodiscard]] ServerReport full_report() const;
  void print_interval(Loop& loop);
  [[nodiscard]] OwnedFd open_listener();
  [[nodiscard]] std::string listening() const;
  [[nodiscard]] std::vector<int> listeners() const;
  void claim_listeners();

  const ServerOptions& options_;
  ReportFile file_;
  std::unique_ptr<TakeOver> take_over_;
  OwnedFd listener_;
  SocketAddress address_;
  AcceptQueue queue_;
  ListenDropCounters drops_;
  std::int64_t started_ns_;
  Hooks hooks_;
  std::unique_ptr<Upgrade> upgrade_;
  bool told_to_end_ = false;
  std::uint64_t last_accepted_ = 0;
  std::uint64_t last_echoes_ = 0;
};

}  // namespace c10k
