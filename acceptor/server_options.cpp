#include "acceptor/server_options.hpp"

#include <boost/program_options/value_semantic.hpp>
#include <nlohmann/json.hpp>
#include <thread>

#include "acceptor/dispatch_policy.hpp"
#include "acceptor/server_run.hpp"
#include "ipc/command_line.hpp"
#include "ipc/control_socket.hpp"
#include "ipc/process.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace po = boost::program_options;

namespace {

/// With the look at every half of it, a stopped worker is replaced within 0.8 s, so that nobody waits for 1 s.
constexpr std::int64_t default_worker_deadline_ns = 400'000'000;

/// The names in a registry, as --help shows a choice.
template <typename Entry>
std::string choice_of(std::span<const Entry> entries) {
  return names_of(entries, " | ");
}

po::options_description describe() {
  const auto text = [](const char* name, const char* fallback) {
    return po::value<std::string>()->value_name(name)->default_value(fallback);
  };
  const auto optional = [](const char* name) { return po::value<std::string>()->value_name(name); };
  po::options_description options("Options", 80, 40);
  options.add_options()("listen", text("HOST:PORT", "127.0.0.1:8000"),
                        "where to listen; port 0 picks one")("strategy", text("NAME", "epoll"),
                                                             choice_of(strategies()).c_str())(
      "loop", optional("NAME"),
      fmt::format("pool: the loop in each worker: {} (default epoll)", choice_of(loops())).c_str())(
      "ipc", optional("METHOD[:k=v,...]"),
      fmt::format("pool: {} (default scm-seqpacket)", choice_of(handoff_methods())).c_str())(
      "workers", optional("N"), "pool: worker processes (default: one per core)")(
      "dispatch", optional("POLICY"),
      fmt::format("pool: {} (default round-robin)", choice_of(dispatch_policies())).c_str())(
      "worker-deadline", optional("S"),
      "pool: kill and replace a worker that has work and stands still for S seconds (20 times as "
      "long "
      "when it is running); 0: never (default 0.4)")(
      "max-connections-per-worker", optional("N"),
      "pool: open at once in one worker; others get the rest, or it waits in the accept queue; 0: "
      "no limit (default 0)")(
      "hand-off-at", optional("WHEN"),
      "pool: accept | first-byte (once it is readable, as the original experiment does) "
      "(default accept)")(
      "retain",
      "pool: keep a copy of each connection while it lives, so that another worker "
      "takes over what a dead one had between requests; costs a descriptor each")(
      "backlog", text("N", "4096"),
      "length of the accept queue; the kernel cuts it to net.core.somaxconn")(
      "accept-drain", text("all|one", "all"), "connections to accept a wake-up")(
      "max-connections", text("N", "0"),
      "open at once, the rest waits in the accept queue; 0: no limit (fork: what the machine "
      "allows)")("idle-timeout", text("S", "0"),
                 "close a connection on which no byte has moved for S seconds; 0: never")(
      "first-byte-timeout", text("S", "0"),
      "close a connection that brings no byte within S seconds; 0: never")(
      "write-timeout", text("S", "0"),
      "close a connection whose client takes nothing of a waiting echo for S seconds; 0: never")(
      "close-after-echo", "one echo, then close (what the original experiment does)")(
      "service-time", text("SPEC", "0"),
      "CPU burnt per request: 0 | fixed:US | exp:US | bimodal:US,US,P (the second with probability "
      "P)")("drain-timeout", text("S", "5"),
            "after SIGTERM or SIGINT, or when another server has taken over: how long clients may "
            "take to finish; a second signal ends it")(
      "user", optional("NAME"),
      "name or uid: whoever reads clients' bytes (the workers of a pool, else the server once it "
      "listens) becomes this user and may call only what serving needs (seccomp)")(
      "control", optional("PATH"),
      "a socket, mode 0600, at which a new server can take this one over")(
      "take-over", optional("PATH"),
      "take the listeners, and the connections that it retains, from the running server with that "
      "--control; it drains when this one is ready. SIGHUP starts the same program anew in this "
      "way")("report", optional("FILE"),
             "JSON at exit and on SIGUSR1 (- is stdout); %p is the process's number")(
      "stats-interval", text("S", "0"), "a line to stderr every S seconds; 0: none")(
      "list", "list strategies, loops, methods and policies: available here, or why not")(
      "json", "with --list: as JSON");
  return options;
}

/// Whom to become, and what is left to call then.
void resolve_user(ServerOptions& options, const std::string& text) {
  const MethodFacts* facts = options.method.entry;
  if (facts != nullptr && !facts->needs_trust.empty())
    throw UsageError(fmt::format("--user: not with {}: {}", facts->name, facts->needs_trust));
  options.user = parse_user("--user", text);
  if (options.gives_up_its_rights() && !(options.control.empty() && options.take_over.empty())) {
    throw UsageError(fmt::format(
        "--user: with --strategy {} the server itself gives up its rights, so --control and "
        "--take-over are not for it; give --strategy pool",
        options.strategy->name));
  }
  if (const std::string reason = why_no_filter(); !reason.empty())
    throw UsageError(fmt::format("--user: {}", reason));
  CallGroups& calls = options.worker.allowed_calls;
  calls = {CallGroup::serve};
  const auto add = [&](const CallGroups& more) {
    calls.insert(calls.end(), more.begin(), more.end());
  };
  add(options.strategy->calls);
  if (options.loop != nullptr) add(options.loop->calls);
  if (facts != nullptr) add(facts->worker_calls);
}

}  // namespace

std::optional<ServerOptions> parse_server_options(int argc, char** argv) {
  const auto line = parse_command_line(
      argc, argv, "Echoes TCP (RFC 862) in one of several server shapes.", describe());
  if (!line) return std::nullopt;
  ServerOptions options;
  options.list = line->has("list");
  options.list_json = line->has("json");
  if (options.list_json && !options.list) throw UsageError("--json goes with --list");
  if (options.list) return options;

  options.strategy = &find_strategy(line->text("strategy"));
  const bool pool = options.strategy->name == "pool";
  for (const char* name : {"loop", "ipc", "workers", "dispatch", "hand-off-at", "retain",
                           "worker-deadline", "max-connections-per-worker"}) {
    if (!pool && line->has(name))
      throw UsageError(fmt::format("--{} goes with --strategy pool", name));
  }
  const auto or_default = [&](const char* name, std::string fallback) {
    return line->has(name) ? line->text(name) : std::move(fallback);
  };
  options.listen_text = line->text("listen");
  options.listen = SocketAddress::parse("--listen", options.listen_text);
  options.listener.backlog = static_cast<int>(line->integer("backlog", 1, 65535));
  options.accept_drain =
      parse_choice("--accept-drain", line->text("accept-drain"), {"all", "one"}) == "all";
  options.worker.max_connections =
      static_cast<std::size_t>(line->integer("max-connections", 0, 100'000'000));
  options.worker.echo.idle_timeout_ns = line->seconds_ns("idle-timeout", 0, 86400);
  options.worker.echo.first_byte_timeout_ns = line->seconds_ns("first-byte-timeout", 0, 86400);
  options.worker.echo.write_timeout_ns = line->seconds_ns("write-timeout", 0, 86400);
  options.worker.echo.close_after_echo = line->has("close-after-echo");
  options.worker.echo.service_time =
      ServiceTime::parse("--service-time", line->text("service-time"));
  options.worker.drain_timeout_ns = line->seconds_ns("drain-timeout", 0, 86400);
  options.report_file = or_default("report", "");
  for (auto at = options.report_file.find("%p"); at != std::string::npos;
       at = options.report_file.find("%p")) {
    options.report_file.replace(at, 2, fmt::format("{}", ::getpid()));
  }
  options.command.assign(argv, argv + argc);
  options.executable = path_of_this_program();
  options.control = or_default("control", "");
  options.take_over = or_default("take-over", "");
  if (!options.control.empty()) ControlSocket::check(options.control, !options.take_over.empty());
  options.stats_interval_ns = line->seconds_ns("stats-interval", 0, 86400);
  if (options.stats_interval_ns != 0 && options.stats_interval_ns < 10'000'000) {
    throw UsageError("--stats-interval: give 0, or at least 0.01 seconds");
  }

  std::size_t processes = 1;
  if (pool) {
    options.loop = &find_loop(or_default("loop", "epoll"));
    options.method = configure_handoff_method(or_default("ipc", "scm-seqpacket"));
    const MethodFacts& facts = *options.method.entry;
    if (line->has("dispatch") && facts.who_chooses() != nullptr)
      throw UsageError(fmt::format("--dispatch: with {} {}", facts.name, facts.who_chooses()));
    const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
    options.workers =
        line->has("workers") ? static_cast<std::size_t>(line->integer("workers", 1, 1024)) : cores;
    processes += options.workers;
    options.policy = &find_dispatch_policy(or_default("dispatch", "round-robin"));
    options.hand_off_at_first_byte =
        parse_choice("--hand-off-at", or_default("hand-off-at", "accept"),
                     {"accept", "first-byte"}) == "first-byte";
    if (options.hand_off_at_first_byte && facts.kernel_dispatches) {
      throw UsageError(fmt::format(
          "--hand-off-at first-byte: with {} the acceptor never has the connection", facts.name));
    }
    options.worker_deadline_ns = line->has("worker-deadline")
                                     ? line->seconds_ns("worker-deadline", 0, 86400)
                                     : default_worker_deadline_ns;
    if (line->has("max-connections-per-worker"))
      options.worker.max_connections_per_worker =
          static_cast<std::size_t>(line->integer("max-connections-per-worker", 0, 100'000'000));
    options.retain = line->has("retain");
    options.worker.echo.report_ended = options.retain;
    if (const char* reason = facts.why_not_retained(); options.retain && reason != nullptr)
      throw UsageError(fmt::format("--retain: with {} {}", facts.name, reason));
    options.listener.reuse_port = facts.listener_per_worker;
  } else if (options.strategy->name != "fork") {
    options.loop = &find_loop(options.strategy->name);
  }

  if (line->has("user")) resolve_user(options, line->text("user"));

  // A descriptor for each connection, and some for the server's own use.
  const std::size_t limit = raise_descriptor_limit();
  const std::size_t own = 16 + 7 * processes;
  if (limit < own + 1) {
    throw UsageError(
        fmt::format("RLIMIT_NOFILE is {}, and the server alone needs {}; raise it (ulimit -n)",
                    limit, own + 1));
  }
  if (pool) {
    options.most_in_hand_off = (limit - own) / (1 + options.method.entry->descriptors_in_flight);
  }
  const bool one_process_holds_all = options.strategy->run == run_single_server ||
                                     (pool && options.method.entry->connections_stay);
  if (one_process_holds_all && options.worker.max_connections > limit - own) {
    throw UsageError(fmt::format(
        "--max-connections: {} connections do not fit into RLIMIT_NOFILE {}; give at most {}",
        options.worker.max_connections, limit, limit - own));
  }
  return options;
}

nlohmann::json ServerOptions::to_json() const {
  const auto seconds = [](std::int64_t ns) { return static_cast<double>(ns) / 1e9; };
  nlohmann::json json = {{"listen", listen_text},
                         {"strategy", strategy->name},
                         {"backlog", listener.backlog},
                         {"accept_drain", accept_drain ? "all" : "one"},
                         {"max_connections", worker.max_connections},
                         {"idle_timeout_s", seconds(worker.echo.idle_timeout_ns)},
                         {"first_byte_timeout_s", seconds(worker.echo.first_byte_timeout_ns)},
                         {"write_timeout_s", seconds(worker.echo.write_timeout_ns)},
                         {"close_after_echo", worker.echo.close_after_echo},
                         {"service_time", worker.echo.service_time.text()},
                         {"drain_timeout_s", seconds(worker.drain_timeout_ns)},
                         {"control", control},
                         {"take_over", take_over}};
  if (user) json["user"] = user->name;
  if (loop != nullptr) json["loop"] = loop->name;
  if (method.entry != nullptr) {
    json["ipc"] = method.resolved;
    json["workers"] = workers;
    json["retain"] = retain;
    json["max_connections_per_worker"] = worker.max_connections_per_worker;
    json["worker_deadline_s"] = seconds(worker_deadline_ns);
    json["hand_off_at"] = hand_off_at_first_byte ? "first-byte" : "accept";
    json["dispatch"] = method.entry->kernel_dispatches ? "kernel"
                       : method.entry->shared_channel  ? "workers"
                                                       : policy->name;
  }
  return json;
}

}  // namespace c10k
