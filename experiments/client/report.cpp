#include "experiments/client/report.hpp"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "ipc/command_line.hpp"

namespace c10k {
namespace {

double per_second(std::uint64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::string latency_line(std::string_view label, const LatencyHistogram& latency) {
  // Where there are many digits before the point, the one behind it would break the line.
  const int digits = latency.max_ns() < 100'000'000 ? 1 : 0;
  const auto us = [&](double fraction) {
    return fmt::format("{:.{}f}", latency.quantile_ns(fraction) / 1000, digits);
  };
  return fmt::format("{:<12} p50 {}  p90 {}  p99 {}  p99.9 {}  max {:.{}f}\n", label, us(0.5),
                     us(0.9), us(0.99), us(0.999), static_cast<double>(latency.max_ns()) / 1000,
                     digits);
}

/// Above these shares the client is a limit: what is left to the core is within what a run spreads.
constexpr double full_core = 0.95;
constexpr double late_share = 0.01;

/// What would help against a shortage of this host; empty for other errors.
std::string remedy(int error, const Options& options) {
  switch (error) {
    case EADDRNOTAVAIL:
      if (!options.target.is_loopback_v4())
        return "; this host ran out of ports: use less --connections";
      return fmt::format("; the client's ports ran out: use --sources {}",
                         std::min(254U, std::max(16U, 2 * options.sources)));
    case ECONNREFUSED:
      return "; is the server running?";
    case EMFILE:
      return fmt::format("; run 'ulimit -n {}' first",
                         2 * (options.connections + spare_descriptors));
    case ENFILE:
      return "; raise the sysctl fs.file-max";
    default:
      return "";
  }
}

}  // namespace

Report::Report(const SharedRun& run)
    : run_(run), tally_(run.books.total()), hold_(run.options.workload == "hold") {
  if (!tally_.adds_up()) throw std::logic_error("the outcomes do not add up to the attempts");
  std::int64_t end_ns = run.begin_ns();
  for (std::size_t i = 0; i < run.phases.size(); ++i) {
    if (run.phases[i].measured) measured_phase_ = i;
    if (run.phases[i].name != "warmup") all_.merge(tally_.phase(i));
    if (!ran(i)) continue;
    end_ns = run.state().progress.times[i].end_ns;
    std::int64_t busiest_us = 0;
    for (const SharedRun::Process& process : run.processes()) {
      const Usage used = process.ended[i].since(process.begun[i]);
      busiest_us = std::max(busiest_us, used.cpu_us());
      usage_ += used;
    }
    if (i == measured_phase_) {
      const double seconds = phase_s(i);
      busiest_share_ = seconds > 0 ? static_cast<double>(busiest_us) / 1e6 / seconds : 0;
    }
  }
  usage_.max_rss_bytes = 0;
  for (const SharedRun::Process& process : run.processes()) {
    std::int64_t most = 0;
    for (const Usage& usage : process.ended) most = std::max(most, usage.max_rss_bytes);
    usage_.max_rss_bytes += most;
    on_schedule_ += process.on_schedule;
    late_ += process.late;
  }
  elapsed_s_ = static_cast<double>(end_ns - run.begin_ns()) / 1e9;

  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  const double full = run.options.engine == "threads" ? full_core * cores : full_core;
  if (busiest_share_ > full) {
    limits_.push_back(
        fmt::format("a client process used {:.0f} % of a core", busiest_share_ * 100));
  } else if (cpu_share() > full_core * cores) {
    limits_.push_back(fmt::format("the client processes used {:.0f} % of {} cores",
                                  cpu_share() * 100 / cores, cores));
  }
  if (static_cast<double>(late_) > late_share * static_cast<double>(on_schedule_)) {
    limits_.push_back(fmt::format("{} of {} starts came more than {} ms late", late_, on_schedule_,
                                  SharedRun::late_ns / 1'000'000));
  }
}

bool Report::ran(std::size_t phase) const {
  return phase < run_.state().progress.phases_begun;
}

double Report::phase_s(std::size_t phase) const {
  const SharedRun::PhaseTime& time = run_.state().progress.times[phase];
  return static_cast<double>(time.end_ns - time.begin_ns) / 1e9;
}

double Report::connections_per_s() const {
  const std::size_t phase = hold_ ? 0 : measured_phase_;
  const PhaseTally& tally = tally_.phase(phase);
  // Where each connection has one request, only those with an echo count.
  const bool one_each = !hold_ && run_.options.requests_per_connection == 1;
  return per_second(one_each ? tally.count(Outcome::echoed) : tally.opened, phase_s(phase));
}

double Report::requests_per_s() const {
  return per_second(measured().count(Outcome::echoed), phase_s(measured_phase_));
}

double Report::cpu_share() const {
  return elapsed_s_ > 0 ? static_cast<double>(usage_.cpu_us()) / 1e6 / elapsed_s_ : 0;
}

int Report::commonest_error() const {
  const auto& errors = tally_.errors();
  return static_cast<int>(std::max_element(errors.begin(), errors.end()) - errors.begin());
}

std::uint64_t Report::intended() const {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < outcome_names.size(); ++i) {
    const auto outcome = static_cast<Outcome>(i);
    if (run_.intended.contains(outcome)) count += tally_.count(outcome);
  }
  return count;
}

nlohmann::json Report::phases_json() const {
  auto list = nlohmann::json::array();
  for (std::size_t i = 0; i < run_.phases.size() && ran(i); ++i) {
    const SharedRun::PhaseTime& time = run_.state().progress.times[i];
    const auto since_begin = [&](std::int64_t ns) {
      return static_cast<double>(ns - run_.begin_ns()) / 1e9;
    };
    Usage used;
    for (const SharedRun::Process& process : run_.processes())
      used += process.ended[i].since(process.begun[i]);
    const PhaseTally& tally = tally_.phase(i);
    list.push_back({{"name", run_.phases[i].name},
                    {"measured", run_.phases[i].measured},
                    {"begin_s", since_begin(time.begin_ns)},
                    {"end_s", since_begin(time.end_ns)},
                    {"attempts", tally.attempts()},
                    {"echoed", tally.count(Outcome::echoed)},
                    {"connections_opened", tally.opened},
                    {"client_user_us", used.user_us},
                    {"client_system_us", used.system_us}});
  }
  return list;
}

nlohmann::json Report::series_json() const {
  auto rows = nlohmann::json::array();
  for (std::size_t i = 0; i < run_.books.intervals(); ++i) {
    const IntervalTally interval = run_.books.interval(i);
    const auto us = [&](double fraction) {
      return std::round(interval.latency.quantile_ns(fraction)) / 1000;
    };
    rows.push_back({{"begin_s", static_cast<double>(i) * run_.books.interval_s()},
                    {"echoed", interval.echoed},
                    {"failed", interval.failed},
                    {"connections_opened", interval.opened},
                    {"p50_us", us(0.5)},
                    {"p99_us", us(0.99)},
                    {"max_us", static_cast<double>(interval.latency.max_ns()) / 1000}});
  }
  return {{"interval_s", run_.books.interval_s()}, {"intervals", std::move(rows)}};
}

nlohmann::json Report::client_json() const {
  return {{"processes", run_.options.processes},
          {"user_us", usage_.user_us},
          {"system_us", usage_.system_us},
          {"cpu_share", cpu_share()},
          {"busiest_process_share", busiest_share_},
          {"voluntary_switches", usage_.voluntary_switches},
          {"involuntary_switches", usage_.involuntary_switches},
          {"max_rss_bytes", usage_.max_rss_bytes},
          {"limited", !limits_.empty()},
          {"limited_because", limits_}};
}

nlohmann::json Report::to_json() const {
  const Options& options = run_.options;
  nlohmann::json json = {{"schema", "c10k-client-result/1"},
                         {"version", project_version()},
                         {"options", options.to_json()},
                         {"workload", options.workload},
                         {"engine", options.engine},
                         {"misbehave", nullptr},
                         {"ended", end_name(run_.state().end)},
                         {"elapsed_s", elapsed_s_},
                         {"attempts", tally_.attempts()},
                         {"outcomes", tally_.outcomes_json()},
                         {"totals_add_up", tally_.adds_up()},
                         {"errors", tally_.errors_json()},
                         {"connections_opened", tally_.connections_opened()},
                         {"peak_connections", run_.state().peak.load()},
                         {"connections_per_s", connections_per_s()},
                         {"requests_per_s", requests_per_s()},
                         {"latency", all_.latency.to_json(true)},
                         {"connect_latency", all_.connect.to_json(true)},
                         {"first_echo_latency", all_.first_echo.to_json(true)},
                         {"echo_latency", all_.echo.to_json(true)},
                         {"phases", phases_json()},
                         {"series", series_json()},
                         {"client", client_json()}};
  if (!options.misbehave.empty()) json["misbehave"] = options.misbehave;
  if (options.rate > 0) {
    json["service_time"] = all_.service_time.to_json(true);
    // The rest found every connection busy when their time came: the server's limit, or too few
    // connections for the rate.
    const std::uint64_t starts = measured().attempts();
    json["schedule"] = {{"starts", starts},
                        {"late", late_},
                        {"late_limit_us", SharedRun::late_ns / 1000},
                        {"waited_for_a_connection", starts - std::min(starts, on_schedule_)}};
  }
  if (hold_) {
    json["connect_all_s"] = phase_s(0);
    json["active_s"] = phase_s(measured_phase_);
    json["active_latency"] = measured().latency.to_json(true);
    if (options.rate > 0) json["active_service_time"] = measured().service_time.to_json(true);
  }
  return json;
}

std::string Report::summary() const {
  const Options& options = run_.options;
  std::string text = fmt::format("{:<12} {}\n", "target", options.target.text());
  text += fmt::format("{:<12} {}, engine {}, {} connections, {} bytes\n", "workload",
                      options.workload, options.engine, options.connections, options.payload_bytes);
  if (options.rate > 0) {
    text += fmt::format("{:<12} {:g} starts/s, {} times between them\n", "open loop", options.rate,
                        options.poisson ? "poisson" : "even");
  }
  text += fmt::format("{:<12} {:.2f} s, {}\n", "run", elapsed_s_, end_name(run_.state().end));
  if (!options.misbehave.empty()) {
    text += fmt::format("{:<12} {}: {} ended as intended\n", "misbehave", options.misbehave,
                        intended());
  }
  text += fmt::format("{:<12} {}: {} echoed, {} failed\n", "attempts", tally_.attempts(),
                      tally_.count(Outcome::echoed), failed());
  for (std::size_t i = 1; i < outcome_names.size(); ++i) {
    const std::uint64_t count = tally_.count(static_cast<Outcome>(i));
    if (count > 0) text += fmt::format("{:<12} {} {}\n", "", count, outcome_names[i]);
  }
  text += fmt::format("{:<12} {} opened, {} at once\n", "connections", tally_.connections_opened(),
                      run_.state().peak.load());
  if (hold_) {
    text += fmt::format("{:<12} {:.3f} s to connect all, {:.1f} connections/s\n", "hold",
                        phase_s(0), connections_per_s());
    text += fmt::format("{:<12} {:.1f} requests/s on {} connections\n", "active", requests_per_s(),
                        options.active);
    text += latency_line("active, us", measured().latency);
  } else {
    text += fmt::format("{:<12} {:.1f} requests/s\n", "rate", requests_per_s());
    text += latency_line("latency, us", all_.latency);
    if (options.rate > 0) text += latency_line("service, us", all_.service_time);
  }
  text += latency_line("connect, us", all_.connect);
  text += fmt::format(
      "{:<12} {}CPU {:.2f} s user, {:.2f} s system, {:.0f} % of a core; {:.1f} MiB\n", "client",
      options.processes == 1 ? "" : fmt::format("{} processes, ", options.processes),
      static_cast<double>(usage_.user_us) / 1e6, static_cast<double>(usage_.system_us) / 1e6,
      cpu_share() * 100, static_cast<double>(usage_.max_rss_bytes) / (1 << 20));
  for (const std::string& limit : limits_)
    text += fmt::format("{:<12} the client was the limit: {}\n", "", limit);
  return text;
}

std::string Report::failure() const {
  const int error = commonest_error();
  if (run_.state().end == End::unreachable) {
    return fmt::format("connect {}: {}{}", run_.options.target.text(), ::strerror(error),
                       remedy(error, run_.options));
  }
  if (failed() == 0) return "";
  std::size_t most = 1;
  std::uint64_t highest = 0;
  for (std::size_t i = 0; i < outcome_names.size(); ++i) {
    const auto outcome = static_cast<Outcome>(i);
    if (run_.intended.contains(outcome) || tally_.count(outcome) <= highest) continue;
    most = i;
    highest = tally_.count(outcome);
  }
  // The errno is told where it belongs to that outcome.
  const bool explains = error != 0 && outcome_of_errno(error) == static_cast<Outcome>(most);
  return fmt::format(
      "{} of {} attempts failed, most with {} ({}){}{}", failed(), tally_.attempts(),
      outcome_names[most],
      explains ? fmt::format("{}, {}", highest, errno_name(error)) : fmt::format("{}", highest),
      explains ? remedy(error, run_.options) : "",
      run_.state().end == End::stalled ? "; the server fell silent, so the run was ended" : "");
}

}  // namespace c10k
