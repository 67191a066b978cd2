// The options of c10k-server, checked.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ipc/registry.hpp"
#include "ipc/socket.hpp"
#include "workers/worker.hpp"

namespace c10k {

struct StrategyEntry;
struct PolicyEntry;

struct ServerOptions {
  SocketAddress listen;
  std::string listen_text;
  const StrategyEntry* strategy = nullptr;
  const LoopEntry* loop = nullptr;  ///< Of the workers, or of the single process.
  ConfiguredMethod method;          ///< pool only
  std::size_t workers = 1;
  std::int64_t worker_deadline_ns =
      0;  ///< A worker that stands still for longer is killed; 0: never.
  std::int64_t start_deadline_ns = 10'000'000'000;  ///< How long a worker may take to be ready.
  const PolicyEntry* policy = nullptr;
  bool hand_off_at_first_byte = false;  ///< Else the moment it is accepted.
  bool retain = false;  ///< The acceptor keeps a copy for a connection's whole life.
  ListenOptions listener;
  bool accept_drain = true;
  std::size_t most_in_hand_off = 0;  ///< pool: what the descriptor limit leaves room for
  WorkerOptions worker;
  std::optional<UserIdentity> user;  ///< Whom the processes become that see clients' bytes.
  std::string control;     ///< Where a successor can take this server over; empty: nowhere.
  std::string take_over;   ///< PATH or fd:N of the server to take over; empty: none.
  std::string executable;  ///< Where this program's file was when it started.
  std::vector<std::string> command;  ///< argv
  std::string report_file;           ///< empty: none; "-": stdout
  std::int64_t stats_interval_ns = 0;
  bool list = false;
  bool list_json = false;

  /// Under --user the process that has the listener is itself confined: it can neither start a successor
  /// nor be taken over. (A pool's acceptor keeps its rights.)
  [[nodiscard]] bool gives_up_its_rights() const { return user && method.entry == nullptr; }

  /// Everything as it was resolved, for the report.
  [[nodiscard]] nlohmann::json to_json() const;
};

/// Reads the command line. Nothing when --help or --version was all. Throws UsageError.
[[nodiscard]] std::optional<ServerOptions> parse_server_options(int argc, char** argv);

}  // namespace c10k
