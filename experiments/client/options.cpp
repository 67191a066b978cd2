#include "experiments/client/options.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "experiments/client/engines.hpp"
#include "experiments/client/misbehave.hpp"
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
/// Fork takes a process some 0.3 ms and half a MiB.
constexpr std::size_t max_processes = 10'000;
/// Of the 28,232 ephemeral ports of an address connect tries every second one first, and when those are
/// taken it searches long: 18,000 connections took 21 s from one address and 1 s from many. Ports of
/// finished connections (TIME_WAIT) and of other programs count, too.
constexpr std::size_t connections_per_source = 10'000;
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
  const std::string misbehave_help =
      "crr, storm, with --engine coroutines (the default with it): a client that\n" +
      help_of(misbehaviours());
  options.add_options()                                                                //
      ("target", value("127.0.0.1:8000"), "HOST:PORT of the echo server")              //
      ("engine", value("epoll"), engine_help.c_str())                                  //
      ("workload", value("crr"), workload_help.c_str())                                //
      ("connections", value("64"), "concurrent connections (hold: connections held)")  //
      ("processes", po::value<std::string>(),
       "client processes that share the connections out among them, as each has a limit of open "
       "files and one core (default: 1; engine processes: one per connection)")  //
      ("requests-per-connection", po::value<std::string>(),
       "crr, rr: a connection is closed after so many echoes; 0: never (default: crr 1, rr 0)")  //
      ("rate", po::value<std::string>(),
       "open loop: attempts started per second, at times that do not wait for echoes; latency "
       "counts from the intended start (hold: active phase; storm: connects)")  //
      ("arrivals", po::value<std::string>(),
       "with --rate: even (default) or poisson times between the starts")           //
      ("warmup", value("0"), "seconds of the same load before the measured phase")  //
      ("active", po::value<std::string>(),
       "hold: connections that ping-pong (default: 100, or all if fewer)")                       //
      ("duration", value("5"), "seconds in which attempts are started (hold: active phase)")     //
      ("idle", value("0"), "hold: seconds between connect and active in which nothing is sent")  //
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
      ("misbehave", po::value<std::string>(), misbehave_help.c_str())                           //
      ("json", po::value<std::string>(), "write the result as JSON to this file; - is stdout")  //
      ("hdr", po::value<std::string>(),
       "write the percentiles of the latency to this file as HdrHistogram does, in ms; - is "
       "stdout")                                                               //
      ("announce-phases", "a line on stderr when a phase begins: phase NAME")  //
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

/// Above a million a second the schedule is finer than the clock's own cost.
double parse_rate(const std::string& text) {
  constexpr double most = 1'000'000;
  double rate = 0;
  const auto [stopped, error] = std::from_chars(text.data(), text.data() + text.size(), rate);
  if (text.empty() || error != std::errc() || stopped != text.data() + text.size() ||
      !(rate >= 0.001 && rate <= most)) {
    throw UsageError(fmt::format(
        "--rate: '{}' is not a number of starts per second; give 0.001 to {:.0f}", text, most));
  }
  return rate;
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
    if (options.requests_per_connection != 0 || options.workload == "storm")
      options.sources = std::max(options.sources, crr_sources);
  }
}

void check_limits(const Options& options) {
  const std::size_t files = raise_descriptor_limit();
  const std::size_t usable = files - std::min(files, spare_descriptors);
  const std::size_t each = (options.connections + options.processes - 1) / options.processes;
  if (each > usable) {
    throw UsageError(fmt::format(
        "--connections: {} in {} process{} need {} open files in each and the limit is {}; give up "
        "to {}, or {}allow more with ulimit -n {}",
        options.connections, options.processes, options.processes == 1 ? "" : "es",
        each + spare_descriptors, files, usable * options.processes,
        usable == 0
            ? ""
            : fmt::format("--processes {}, or ", (options.connections + usable - 1) / usable),
        each + spare_descriptors));
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

void resolve_processes(const CommandLine& line, Options& options) {
  const bool one_each = options.engine == "processes";
  if (one_each && line.has("processes"))
    throw UsageError("--processes: not with --engine processes, where each connection has its own");
  if (one_each && options.connections > max_processes) {
    throw UsageError(
        fmt::format("--connections: up to {} with --engine processes, one each", max_processes));
  }
  if (one_each) options.processes = options.connections;
  if (line.has("processes")) {
    options.processes = static_cast<std::size_t>(line.integer("processes", 1, max_processes));
    if (options.processes > options.connections) {
      throw UsageError(fmt::format("--processes: {} for {} connections; give up to {}",
                                   options.processes, options.connections, options.connections));
    }
  }
}

void resolve_pace(const CommandLine& line, Options& options) {
  options.warmup_ns = line.seconds_ns("warmup", 0, 3'600);
  if (options.warmup_ns > 0 && options.workload == "storm")
    throw UsageError("--warmup: not with --workload storm, which is one wave");
  if (line.has("rate")) options.rate = parse_rate(line.text("rate"));
  if (!line.has("arrivals")) return;
  if (options.rate == 0) throw UsageError("--arrivals: only with --rate");
  options.poisson =
      parse_choice("--arrivals", line.text("arrivals"), {"even", "poisson"}) == "poisson";
}

/// Before what depends on the engine.
void resolve_misbehaviour(const CommandLine& line, Options& options) {
  if (!line.has("misbehave")) return;
  options.misbehave =
      parse_choice("--misbehave", line.text("misbehave"), names_of(misbehaviours()));
  const auto able = std::find_if(engines().begin(), engines().end(),
                                 [](const Engine& engine) { return engine.misbehaves; });
  if (!line.given("engine")) options.engine = able->name;
  if (!find_engine(options.engine).misbehaves)
    throw UsageError(fmt::format("--misbehave: only with --engine {}", able->name));
}

/// The name of a file to write; empty where the option is not given.
std::string file_name(const CommandLine& line, const char* option) {
  if (!line.has(option)) return "";
  std::string name = line.text(option);
  if (name.empty())
    throw UsageError(fmt::format("--{}: the name is empty; give a file, or - for stdout", option));
  return name;
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
  options.connections = static_cast<std::size_t>(line->integer("connections", 1, 10'000'000));
  resolve_misbehaviour(*line, options);
  resolve_processes(*line, options);
  resolve_pace(*line, options);
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
    options.idle_ns = line->seconds_ns("idle", 0, 86'400);
  } else if (line->has("active") || line->given("idle")) {
    throw UsageError(
        fmt::format("--{}: only with --workload hold", line->has("active") ? "active" : "idle"));
  }
  const Workload& workload = find_workload(options.workload);
  options.requests_per_connection = workload.requests_per_connection;
  if (line->has("requests-per-connection")) {
    if (!workload.reconnects)
      throw UsageError("--requests-per-connection: only with --workload crr or rr");
    options.requests_per_connection =
        static_cast<std::uint64_t>(line->integer("requests-per-connection", 0, 1'000'000'000));
  }
  options.server_closes =
      parse_choice("--close-by", line->text("close-by"), {"client", "server"}) == "server";
  if (options.server_closes && options.requests_per_connection != 1) {
    throw UsageError("--close-by: server only where each connection has one request (crr, storm)");
  }
  if (!options.misbehave.empty() && options.requests_per_connection != 1) {
    throw UsageError("--misbehave: only where each connection has one request (crr, storm)");
  }
  options.json = file_name(*line, "json");
  options.hdr = file_name(*line, "hdr");
  if (options.json == "-" && options.hdr == "-")
    throw UsageError("--hdr: stdout is taken by --json -; give a file");
  options.announce_phases = line->has("announce-phases");
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
                           {"processes", processes},
                           {"requests_per_connection", requests_per_connection},
                           {"rate_per_s", nullptr},
                           {"arrivals", nullptr},
                           {"warmup_s", seconds(warmup_ns)},
                           {"duration_s", seconds(duration_ns)},
                           {"requests", nullptr},
                           {"payload_bytes", payload_bytes},
                           {"sources", sources},
                           {"timeout_s", seconds(timeout_ns)},
                           {"close_by", server_closes ? "server" : "client"},
                           {"misbehave", nullptr}};
  if (!misbehave.empty()) object["misbehave"] = misbehave;
  if (requests) object["requests"] = *requests;
  if (rate > 0) {
    object["rate_per_s"] = rate;
    object["arrivals"] = poisson ? "poisson" : "even";
  }
  if (workload == "hold") {
    object["active"] = active;
    object["idle_s"] = seconds(idle_ns);
  }
  return object;
}

}  // namespace c10k
