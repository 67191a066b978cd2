#include "experiments/client/options.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "experiments/client/engines.hpp"
#include "experiments/client/payload.hpp"
#include "experiments/client/workload.hpp"
#include "ipc/command_line.hpp"
#include "ipc/process.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

namespace po = boost::program_options;

constexpr std::uint32_t max_sources = 254;  // 127.0.0.1 to 127.0.0.254
constexpr std::size_t default_active = 100;
/// Far below the 28,232 ephemeral ports of an address, because ports of finished connections
/// (TIME_WAIT) and of other programs are among them.
constexpr std::size_t connections_per_source = 20'000;
/// crr leaves a port in TIME_WAIT at every attempt. On loopback the kernel takes such a port again
/// after one second (net.ipv4.tcp_tw_reuse = 2), so 16 addresses carry 450,000 attempts a second.
constexpr std::uint32_t crr_sources = 16;

template <typename Entries>
std::vector<std::string> names_of(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return names;
}

template <typename Entries>
std::string help_of(const Entries& entries) {
  std::string text;
  for (const auto& entry : entries) {
    text += fmt::format("{}{}: {}", text.empty() ? "" : "\n", entry.name, entry.summary);
  }
  return text;
}

po::options_description describe_options() {
  const auto value = [](const char* default_text) {
    return po::value<std::string>()->default_value(default_text);
  };
  po::options_description options("Options", 80, 50);
  const std::string engine_help = help_of(engines());
  const std::string workload_help = help_of(workloads());
  options.add_options()                                                                //
      ("target", value("127.0.0.1:8000"), "HOST:PORT of the echo server")              //
      ("engine", value("epoll"), engine_help.c_str())                                  //
      ("workload", value("crr"), workload_help.c_str())                                //
      ("connections", value("64"), "concurrent connections (hold: connections held)")  //
      ("active", po::value<std::string>(),
       "hold: connections that ping-pong (default: 100, or all if fewer)")                    //
      ("duration", value("5"), "seconds in which attempts are started (hold: active phase)")  //
      ("requests", po::value<std::string>(),
       "end after this many attempts, if the duration has not ended before (hold: active phase)")  //
      ("payload", po::value<std::string>(),
       "bytes of a request: a timestamp, padded (default: 20, the timestamp alone)")  //
      ("sources", po::value<std::string>(),
       "client addresses from 127.0.0.1 up, for a target in 127.0.0.0/8 (default: as many as the "
       "workload needs)")                                                //
      ("timeout", value("5"), "seconds for a connect, and for an echo")  //
      ("close-by", value("client"),
       "client: it closes after the echo; server: wait for its EOF after the echo (crr)")       //
      ("json", po::value<std::string>(), "write the result as JSON to this file; - is stdout")  //
      ("progress", value("auto"), "auto (where stderr is a terminal), on, off");
  return options;
}

/// The number of ephemeral ports of one address.
std::size_t ephemeral_ports() {
  std::ifstream file("/proc/sys/net/ipv4/ip_local_port_range");
  std::size_t first = 0;
  std::size_t last = 0;
  if (!(file >> first >> last) || last < first)
    return 28'232;  // the kernel's default, 32768 to 60999
  return last - first + 1;
}

std::uint32_t sources_for(std::size_t connections) {
  return static_cast<std::uint32_t>((connections + connections_per_source - 1) /
                                    connections_per_source);
}

void resolve_sources(const CommandLine& line, Options& options) {
  const bool loopback = options.target.is_loopback_v4();
  if (line.has("sources")) {
    options.sources = static_cast<std::uint32_t>(line.integer("sources", 1, max_sources));
    if (options.sources > 1 && !loopback) {
      throw UsageError(fmt::format("--sources: only 1 for {}, which is not in 127.0.0.0/8",
                                   options.target.text()));
    }
  } else if (loopback) {
    options.sources = std::min(max_sources, sources_for(options.connections));
    if (options.workload == "crr") options.sources = std::max(options.sources, crr_sources);
  }
}

void check_limits(const Options& options) {
  const std::size_t files = raise_descriptor_limit();
  if (options.connections + spare_descriptors > files) {
    throw UsageError(fmt::format(
        "--connections: {} need {} open files and the limit is {}; give up to {}, or allow more "
        "with ulimit -n {}",
        options.connections, options.connections + spare_descriptors, files,
        files - std::min(files, spare_descriptors), options.connections + spare_descriptors));
  }
  const std::size_t ports = ephemeral_ports();
  if (options.connections <= options.sources * ports) return;
  const std::size_t needed = (options.connections + ports - 1) / ports;
  throw UsageError(fmt::format(
      "--connections: {} need more than the {} ports of {} client address{}; give up to {}{}",
      options.connections, options.sources * ports, options.sources,
      options.sources == 1 ? "" : "es", options.sources * ports,
      options.target.is_loopback_v4() && needed <= max_sources
          ? fmt::format(", or --sources {}", needed)
          : ""));
}

}  // namespace

std::optional<Options> parse_options(int argc, char** argv) {
  const auto line = parse_command_line(
      argc, argv, "Puts load on an echo server and checks every echo.", describe_options());
  if (!line) return std::nullopt;
  Options options;
  options.target = SocketAddress::parse("--target", line->text("target"));
  if (options.target.port() == 0)
    throw UsageError("--target: port 0 is no server's; give 1 to 65535");
  options.engine = parse_choice("--engine", line->text("engine"), names_of(engines()));
  options.workload = parse_choice("--workload", line->text("workload"), names_of(workloads()));
  options.connections = static_cast<std::size_t>(line->integer("connections", 1, 1'000'000));
  options.duration_ns = line->seconds_ns("duration", 0.001, 86'400);
  options.timeout_ns = line->seconds_ns("timeout", 0.001, 3'600);
  if (line->has("requests")) {
    options.requests = static_cast<std::uint64_t>(line->integer("requests", 1, 1'000'000'000'000));
  }
  options.payload_bytes = stamp_size;
  if (line->has("payload")) {
    options.payload_bytes =
        static_cast<std::size_t>(line->integer("payload", stamp_size, max_payload));
  }
  if (options.workload == "hold") {
    options.active = std::min(default_active, options.connections);
    if (line->has("active")) {
      options.active = static_cast<std::size_t>(
          line->integer("active", 1, static_cast<std::int64_t>(options.connections)));
    }
  } else if (line->has("active")) {
    throw UsageError("--active: only with --workload hold");
  }
  options.server_closes =
      parse_choice("--close-by", line->text("close-by"), {"client", "server"}) == "server";
  if (options.server_closes && options.workload != "crr") {
    throw UsageError(
        "--close-by: server only with --workload crr, as others keep connections open");
  }
  if (line->has("json")) {
    options.json = line->text("json");
    if (options.json.empty())
      throw UsageError("--json: the name is empty; give a file, or - for stdout");
  }
  const std::string progress =
      parse_choice("--progress", line->text("progress"), {"auto", "on", "off"});
  options.progress = progress == "on" || (progress == "auto" && ::isatty(STDERR_FILENO) == 1);
  resolve_sources(*line, options);
  check_limits(options);
  return options;
}

nlohmann::json Options::to_json() const {
  const auto seconds = [](std::int64_t ns) { return static_cast<double>(ns) / 1e9; };
  nlohmann::json object = {{"target", target.text()},
                           {"engine", engine},
                           {"workload", workload},
                           {"connections", connections},
                           {"duration_s", seconds(duration_ns)},
                           {"requests", nullptr},
                           {"payload_bytes", payload_bytes},
                           {"sources", sources},
                           {"timeout_s", seconds(timeout_ns)},
                           {"close_by", server_closes ? "server" : "client"}};
  if (requests) object["requests"] = *requests;
  if (workload == "hold") object["active"] = active;
  return object;
}

}  // namespace c10k
