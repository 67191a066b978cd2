#include "experiments/client/report.hpp"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "ipc/command_line.hpp"

namespace c10k {
namespace {

std::int64_t microseconds(const timeval& time) {
  return time.tv_sec * 1'000'000 + time.tv_usec;
}

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

Report::Report(const Run& run, const rusage& before, const rusage& after)
    : run_(run),
      tally_(run.total()),
      hold_(run.options().workload == "hold"),
      elapsed_s_(run.all_phases_s()),
      user_us_(microseconds(after.ru_utime) - microseconds(before.ru_utime)),
      system_us_(microseconds(after.ru_stime) - microseconds(before.ru_stime)),
      voluntary_switches_(after.ru_nvcsw - before.ru_nvcsw),
      involuntary_switches_(after.ru_nivcsw - before.ru_nivcsw),
      max_rss_bytes_(after.ru_maxrss * 1024) {
  if (!tally_.adds_up()) throw std::logic_error("the outcomes do not add up to the attempts");
}

const PhaseTally& Report::measured() const {
  return tally_.phase(hold_ ? hold_active_phase : 0);
}

double Report::connections_per_s() const {
  if (run_.options().workload == "crr")
    return per_second(tally_.count(Outcome::echoed), elapsed_s_);
  return per_second(tally_.connections_opened(), run_.phase_s(0));
}

double Report::requests_per_s() const {
  return per_second(measured().count(Outcome::echoed), run_.phase_s(hold_ ? hold_active_phase : 0));
}

double Report::cpu_share() const {
  return elapsed_s_ > 0 ? static_cast<double>(user_us_ + system_us_) / 1e6 / elapsed_s_ : 0;
}

int Report::commonest_error() const {
  const auto most =
      std::max_element(tally_.errors().begin(), tally_.errors().end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == tally_.errors().end() ? 0 : most->first;
}

nlohmann::json Report::to_json() const {
  nlohmann::json json = {{"schema", "c10k-client-result/1"},
                         {"version", project_version()},
                         {"options", run_.options().to_json()},
                         {"workload", run_.options().workload},
                         {"engine", run_.options().engine},
                         {"ended", end_name(run_.end())},
                         {"elapsed_s", elapsed_s_},
                         {"attempts", tally_.attempts()},
                         {"outcomes", tally_.outcomes_json()},
                         {"totals_add_up", tally_.adds_up()},
                         {"errors", tally_.errors_json()},
                         {"connections_opened", tally_.connections_opened()},
                         {"peak_connections", run_.peak()},
                         {"connections_per_s", connections_per_s()},
                         {"requests_per_s", requests_per_s()},
                         {"latency", tally_.latency().to_json(true)},
                         {"connect_latency", tally_.connect_latency().to_json(true)},
                         {"client",
                          {{"user_us", user_us_},
                           {"system_us", system_us_},
                           {"cpu_share", cpu_share()},
                           {"voluntary_switches", voluntary_switches_},
                           {"involuntary_switches", involuntary_switches_},
                           {"max_rss_bytes", max_rss_bytes_}}}};
  if (hold_) {
    json["connect_all_s"] = run_.phase_s(hold_connect_phase);
    json["active_s"] = run_.phase_s(hold_active_phase);
    json["active_latency"] = measured().latency.to_json(true);
  }
  return json;
}

std::string Report::summary() const {
  const Options& options = run_.options();
  std::string text = fmt::format("{:<12} {}\n", "target", options.target.text());
  text += fmt::format("{:<12} {}, engine {}, {} connections, {} bytes\n", "workload",
                      options.workload, options.engine, options.connections, options.payload_bytes);
  text += fmt::format("{:<12} {:.2f} s, {}\n", "run", elapsed_s_, end_name(run_.end()));
  text += fmt::format("{:<12} {}: {} echoed, {} failed\n", "attempts", tally_.attempts(),
                      tally_.count(Outcome::echoed), tally_.failed());
  for (std::size_t i = 1; i < outcome_names.size(); ++i) {
    const std::uint64_t count = tally_.count(static_cast<Outcome>(i));
    if (count > 0) text += fmt::format("{:<12} {} {}\n", "", count, outcome_names[i]);
  }
  text += fmt::format("{:<12} {} opened, {} at once\n", "connections", tally_.connections_opened(),
                      run_.peak());
  if (hold_) {
    text += fmt::format("{:<12} {:.3f} s to connect all, {:.1f} connections/s\n", "hold",
                        run_.phase_s(hold_connect_phase), connections_per_s());
    text += fmt::format("{:<12} {:.1f} requests/s on {} connections\n", "active", requests_per_s(),
                        options.active);
    text += latency_line("active, us", measured().latency);
  } else {
    text += fmt::format("{:<12} {:.1f} requests/s\n", "rate", requests_per_s());
    text += latency_line("latency, us", tally_.latency());
  }
  text += latency_line("connect, us", tally_.connect_latency());
  text += fmt::format("{:<12} CPU {:.2f} s user, {:.2f} s system, {:.0f} % of a core; {:.1f} MiB\n",
                      "client", static_cast<double>(user_us_) / 1e6,
                      static_cast<double>(system_us_) / 1e6, cpu_share() * 100,
                      static_cast<double>(max_rss_bytes_) / (1 << 20));
  return text;
}

std::string Report::failure() const {
  const int error = commonest_error();
  if (run_.end() == End::unreachable) {
    return fmt::format("connect {}: {}{}", run_.options().target.text(), ::strerror(error),
                       remedy(error, run_.options()));
  }
  if (tally_.failed() == 0) return "";
  std::size_t most = 1;
  for (std::size_t i = 2; i < outcome_names.size(); ++i) {
    if (tally_.count(static_cast<Outcome>(i)) > tally_.count(static_cast<Outcome>(most))) most = i;
  }
  // The errno is told where it belongs to that outcome.
  const bool explains = error != 0 && outcome_of_errno(error) == static_cast<Outcome>(most);
  return fmt::format(
      "{} of {} attempts failed, most with {} ({}){}{}", tally_.failed(), tally_.attempts(),
      outcome_names[most],
      explains ? fmt::format("{}, {}", tally_.count(static_cast<Outcome>(most)), errno_name(error))
               : fmt::format("{}", tally_.count(static_cast<Outcome>(most))),
      explains ? remedy(error, run_.options()) : "",
      run_.end() == End::stalled ? "; the server fell silent, so the run was ended" : "");
}

}  // namespace c10k
