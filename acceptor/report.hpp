// What the server says about itself: per process, in all, and whether the books balance.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ipc/latency_histogram.hpp"
#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"
#include "workers/counters.hpp"

namespace c10k {

/// The numbers of one process, or of all that ran in one slot, as a plain value.
struct ProcessTotals {
  std::string role;  ///< acceptor, worker, server or children
  std::size_t slot = 0;
  pid_t pid = 0;
  std::uint64_t restarts = 0;

  std::uint64_t accepted = 0;
  std::uint64_t adopted = 0;  ///< taken over alive from the server before this one
  std::uint64_t handed = 0;
  std::uint64_t received = 0;
  std::uint64_t refused = 0;
  std::uint64_t redelivered = 0;
  std::uint64_t shed = 0;
  std::uint64_t active = 0;
  std::uint64_t finished = 0;
  std::uint64_t finished_redelivered = 0;
  std::uint64_t lost = 0;         ///< held by a process that died
  std::uint64_t handed_back = 0;  ///< given up alive by a worker
  std::uint64_t handed_on = 0;    ///< and taken over by the server after this one
  std::uint64_t closed_idle = 0;
  std::uint64_t closed_silent = 0;   ///< by --first-byte-timeout
  std::uint64_t closed_stalled = 0;  ///< by --write-timeout
  std::uint64_t closed_draining = 0;
  std::uint64_t queue_peak = 0;
  std::uint64_t echoes = 0;
  std::uint64_t bytes = 0;
  std::map<int, std::uint64_t> errors;
  LatencyHistogram hand_off;

  // Since the process was ready to serve.
  std::int64_t user_us = 0;
  std::int64_t system_us = 0;
  std::int64_t voluntary_switches = 0;
  std::int64_t involuntary_switches = 0;
  std::int64_t max_rss_bytes = 0;

  /// Adds the counters of a process: what it has open counts as active, or, if it has died, as lost.
  void add(const ProcessCounters& counters, bool alive);
  void add(const rusage& usage, const rusage& since);
  void add(const ProcessTotals& other);
  [[nodiscard]] nlohmann::json to_json() const;
};

/// A process's /proc/PID/stat, for these two. Throws SystemError.
[[nodiscard]] OwnedFd open_stat(pid_t pid);

/// The letter for its state (proc(5), stat): R, S, D, T ...; ? when it has gone.
[[nodiscard]] char state_of(int stat);

/// What a live process has used up, from /proc (in clock ticks); its end gives it exactly.
[[nodiscard]] rusage usage_of(pid_t pid, int stat);

struct ServerReport {
  nlohmann::json options;
  double uptime_s = 0;
  std::string address;
  AcceptQueue queue;
  ListenDrops drops;  ///< since the start
  std::vector<ProcessTotals> processes;
  std::uint64_t in_hand_off = 0;  ///< accepted, and in no worker yet
  std::uint64_t worker_deaths = 0;
  std::uint64_t not_retained = 0;   ///< under --retain: see DispatchCounts
  std::uint64_t stuck_workers = 0;  ///< those of them that stood still and were killed
  /// Of a policy that goes by load: see DispatchCounts.
  LatencyHistogram load_age;
  std::uint64_t load_error_max = 0;
  std::string degraded;  ///< why the server is not whole; empty when it is

  [[nodiscard]] nlohmann::json to_json() const;
};

/// Where reports go: a file, written whole each time, or stdout.
class ReportFile {
 public:
  /// Opens the file, without emptying it, so that a bad path fails at the start; it stays open, so that
  /// a server that has run out of descriptors can still report. "-" is stdout, "" nowhere.
  explicit ReportFile(std::string path);
  void write(const ServerReport& report) const;

 private:
  std::string path_;
  OwnedFd file_;
};

}  // namespace c10k
