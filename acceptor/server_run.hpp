// One function a strategy, and what they all begin and end with.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "acceptor/report.hpp"
#include "acceptor/server_options.hpp"
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

/// The listener, the report and the intervals, which every strategy has.
class ServerFrame {
 public:
  /// Opens the listener. Throws SystemError with a hint for an address in use.
  explicit ServerFrame(const ServerOptions& options);

  [[nodiscard]] int listener() const { return listener_.get(); }
  [[nodiscard]] const SocketAddress& address() const { return address_; }
  /// No more connections; what is still in the queue is reset.
  void close_listener() { listener_.reset(); }

  /// Prints `listening HOST:PORT`, the first line on stdout, and starts the interval lines, which
  /// ask `processes` for the numbers. Nothing is counted for the report before.
  void announce(Loop& loop, std::function<ServerReport()> report);
  /// Writes the report with what all strategies know filled in. Throws SystemError.
  void write_report();
  /// The same while the server runs: what fails is said on stderr.
  void try_write_report();

 private:
  [[nodiscard]] ServerReport full_report() const;
  void print_interval(Loop& loop);

  const ServerOptions& options_;
  ReportFile file_;
  OwnedFd listener_;
  SocketAddress address_;
  AcceptQueue queue_;
  ListenDropCounters drops_;
  std::int64_t started_ns_;
  std::function<ServerReport()> report_;
  std::uint64_t last_accepted_ = 0;
  std::uint64_t last_echoes_ = 0;
};

}  // namespace c10k
