// What c10k-client was asked to do, with every default resolved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "ipc/socket.hpp"

namespace c10k {

struct Options {
  SocketAddress target;
  std::string engine;
  std::string workload;
  std::size_t connections = 0;
  std::size_t processes = 1;
  std::size_t active = 0;  ///< hold only.
  /// 0: never closed for that. crr and rr only.
  std::uint64_t requests_per_connection = 0;
  double rate = 0;  ///< Starts per second, at times that do not wait for echoes; 0: closed loop.
  bool poisson = false;        ///< Exponential times between the starts, not equal ones.
  std::int64_t warmup_ns = 0;  ///< Before the measured phase.
  std::int64_t idle_ns = 0;    ///< hold only: nothing is sent, all are held.
  std::int64_t duration_ns = 0;
  std::optional<std::uint64_t> requests;
  std::size_t payload_bytes = 0;
  std::uint32_t sources = 1;
  std::int64_t timeout_ns = 0;
  std::string misbehave;       ///< One of misbehaviours(); empty for a client that behaves.
  bool server_closes = false;  ///< An attempt ends well with the server's EOF after the echo.
  std::string json;            ///< A file, - for stdout, empty for none.
  std::string hdr;             ///< Likewise: the percentiles as HdrHistogram's text.
  bool announce_phases = false;
  bool progress = false;

  [[nodiscard]] nlohmann::json to_json() const;
};

/// Reads the command line. No value after --help and --version. Throws UsageError for what is
/// malformed, out of range or contradictory, and for what this host's limits do not allow, naming
/// the number that would work. Raises the limit of open files as far as it goes.
[[nodiscard]] std::optional<Options> parse_options(int argc, char** argv);

/// Descriptors that the client needs beside its connections: standard streams, the JSON file, the
/// loop's and the signals', and some that a library may open for a moment.
inline constexpr std::size_t spare_descriptors = 32;

}  // namespace c10k
