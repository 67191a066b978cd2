#include "acceptor/report.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <sstream>

#include "ipc/command_line.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// What was used since: `since` is a worker's own word, so anything may stand there.
std::int64_t used(std::int64_t now, std::int64_t since) {
  return since >= 0 && since <= now ? now - since : now;
}

std::int64_t used_us(const timeval& now, const timeval& since) {
  constexpr std::int64_t most_s = 1'000'000'000;  // beyond it, microseconds would not fit either
  const auto us = [](const timeval& time) {
    const bool possible =
        time.tv_sec >= 0 && time.tv_sec < most_s && time.tv_usec >= 0 && time.tv_usec < 1'000'000;
    return possible ? std::int64_t{time.tv_sec} * 1'000'000 + time.tv_usec : -1;
  };
  return used(us(now), us(since));
}

}  // namespace

void ProcessTotals::add(const ProcessCounters& counters, bool alive) {
  // Each is read once, and the end of a connection before its beginning: one that begins or ends in
  // between then stands in the books as open, and they balance while the process runs.
  const std::uint64_t redelivered_now = counters.finished_redelivered.get();
  const std::uint64_t finished_now = counters.finished.get();
  const std::uint64_t handed_back_now = counters.handed_back.get();
  const std::uint64_t shed_now = counters.shed.get();
  const std::uint64_t accepted_now = counters.accepted.get();
  const std::uint64_t received_now = counters.received.get();
  const std::uint64_t adopted_now = counters.adopted.get();
  (alive ? active : lost) +=
      received_now + accepted_now + adopted_now - shed_now - finished_now - handed_back_now;
  adopted += adopted_now;
  handed_back += handed_back_now;
  finished += finished_now;
  finished_redelivered += redelivered_now;
  accepted += accepted_now;
  received += received_now;
  refused += counters.refused.get();
  shed += shed_now;
  closed_idle += counters.closed_idle.get();
  closed_silent += counters.closed_silent.get();
  closed_stalled += counters.closed_stalled.get();
  closed_draining += counters.closed_draining.get();
  queue_peak = std::max(queue_peak, counters.queue_peak.get());
  echoes += counters.echoes.get();
  bytes += counters.bytes.get();
  for (std::size_t error = 0; error < ErrorTally::limit; ++error) {
    if (const auto count = counters.errors[error].get(); count != 0)
      errors[static_cast<int>(error)] += count;
  }
  hand_off.merge(counters.hand_off);
}

void ProcessTotals::add(const rusage& usage, const rusage& since) {
  user_us += used_us(usage.ru_utime, since.ru_utime);
  system_us += used_us(usage.ru_stime, since.ru_stime);
  voluntary_switches += used(usage.ru_nvcsw, since.ru_nvcsw);
  involuntary_switches += used(usage.ru_nivcsw, since.ru_nivcsw);
  max_rss_bytes = std::max<std::int64_t>(max_rss_bytes, usage.ru_maxrss * 1024L);
}

void ProcessTotals::add(const ProcessTotals& other) {
  restarts += other.restarts;
  accepted += other.accepted;
  adopted += other.adopted;
  handed_back += other.handed_back;
  handed_on += other.handed_on;
  handed += other.handed;
  received += other.received;
  refused += other.refused;
  redelivered += other.redelivered;
  shed += other.shed;
  active += other.active;
  finished += other.finished;
  finished_redelivered += other.finished_redelivered;
  lost += other.lost;
  closed_idle += other.closed_idle;
  closed_silent += other.closed_silent;
  closed_stalled += other.closed_stalled;
  closed_draining += other.closed_draining;
  queue_peak = std::max(queue_peak, other.queue_peak);
  echoes += other.echoes;
  bytes += other.bytes;
  for (const auto& [error, count] : other.errors) errors[error] += count;
  hand_off.merge(other.hand_off);
  user_us += other.user_us;
  system_us += other.system_us;
  voluntary_switches += other.voluntary_switches;
  involuntary_switches += other.involuntary_switches;
  max_rss_bytes = std::max(max_rss_bytes, other.max_rss_bytes);
}

nlohmann::json ProcessTotals::to_json() const {
  nlohmann::json by_name = nlohmann::json::object();
  for (const auto& [error, count] : errors) {
    const char* name = ::strerrorname_np(error);
    by_name[name == nullptr || error == 0 ? "other" : name] = count;
  }
  nlohmann::json json = {{"role", role},
                         {"slot", slot},
                         {"pid", pid},
                         {"restarts", restarts},
                         {"accepted", accepted},
                         {"adopted", adopted},
                         {"handed", handed},
                         {"received", received},
                         {"refused", refused},
                         {"redelivered", redelivered},
                         {"shed", shed},
                         {"active", active},
                         {"finished", finished},
                         {"lost", lost},
                         {"handed_back", handed_back},
                         {"handed_on", handed_on},
                         {"closed_idle", closed_idle},
                         {"closed_silent", closed_silent},
                         {"closed_stalled", closed_stalled},
                         {"closed_draining", closed_draining},
                         {"echoes", echoes},
                         {"bytes", bytes},
                         {"errors", std::move(by_name)},
                         {"user_us", user_us},
                         {"system_us", system_us},
                         {"voluntary_switches", voluntary_switches},
                         {"involuntary_switches", involuntary_switches},
                         {"max_rss_bytes", max_rss_bytes}};
  if (hand_off.count() != 0) json["hand_off_latency"] = hand_off.to_json(true);
  return json;
}

namespace {

/// The fields of a /proc/PID/stat from the third on; empty when the process has gone.
std::string stat_fields(int stat) {
  std::string text(1024, '\0');
  const ssize_t size = retry_eintr([&] { return ::pread(stat, text.data(), text.size(), 0); });
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  // The name, in parentheses, may hold anything; the fields are counted behind it (proc(5)).
  const auto behind_name = text.rfind(')');
  if (behind_name == std::string::npos || behind_name + 2 > text.size()) return {};
  return text.substr(behind_name + 2);
}

}  // namespace

OwnedFd open_stat(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/stat", pid);
  return OwnedFd(
      checked([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }, "open {}", path));
}

char state_of(int stat) {
  const std::string fields = stat_fields(stat);
  return fields.empty() ? '?' : fields[0];
}

rusage usage_of(pid_t pid, int stat) {
  rusage usage{};
  std::istringstream fields(stat_fields(stat));
  std::string field;
  for (int number = 3; number <= 15 && fields >> field; ++number) {
    if (number < 14) continue;
    const std::int64_t us = std::stoll(field) * 1'000'000 / ::sysconf(_SC_CLK_TCK);
    (number == 14 ? usage.ru_utime : usage.ru_stime) = {us / 1'000'000, us % 1'000'000};
  }
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    const auto value = [&](std::string_view key, long& into) {
      if (line.starts_with(key)) into = std::stol(line.substr(key.size()));
    };
    value("VmHWM:", usage.ru_maxrss);
    value("voluntary_ctxt_switches:", usage.ru_nvcsw);
    value("nonvoluntary_ctxt_switches:", usage.ru_nivcsw);
  }
  return usage;
}

namespace {

/// How evenly something is spread over the workers: 1 and 0 when all have the same.
nlohmann::json balance_of(const std::vector<ProcessTotals>& processes,
                          const std::function<double(const ProcessTotals&)>& share) {
  std::vector<double> shares;
  for (const ProcessTotals& process : processes) {
    if (process.role == "worker") shares.push_back(share(process));
  }
  const double mean =
      std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size());
  if (shares.empty() || mean == 0) return nullptr;
  double squares = 0;
  for (const double value : shares) squares += (value - mean) * (value - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(shares.size()));
  return {{"largest_to_mean", *std::max_element(shares.begin(), shares.end()) / mean},
          {"coefficient_of_variation", deviation / mean}};
}

}  // namespace

nlohmann::json ServerReport::to_json() const {
  ProcessTotals all;
  std::int64_t acceptor_cpu_us = 0;
  std::int64_t worker_cpu_us = 0;
  auto rows = nlohmann::json::array();
  for (const ProcessTotals& process : processes) {
    all.add(process);
    (process.role == "acceptor" ? acceptor_cpu_us : worker_cpu_us) +=
        process.user_us + process.system_us;
    rows.push_back(process.to_json());
  }
  auto totals = all.to_json();
  for (const char* key : {"role", "slot", "pid"}) totals.erase(key);
  totals["acceptor_cpu_us"] = acceptor_cpu_us;
  totals["worker_cpu_us"] = worker_cpu_us;

  const std::uint64_t served = all.finished - all.finished_redelivered;
  const bool balanced = all.accepted + all.adopted == served + all.finished_redelivered + all.shed +
                                                          all.lost + all.handed_on + all.active +
                                                          in_hand_off;
  const nlohmann::json balance = {
      {"connections", balance_of(processes,
                                 [](const ProcessTotals& worker) {
                                   return static_cast<double>(worker.received + worker.accepted);
                                 })},
      {"requests",
       balance_of(processes,
                  [](const ProcessTotals& worker) { return static_cast<double>(worker.echoes); })},
      {"cpu", balance_of(processes, [](const ProcessTotals& worker) {
         return static_cast<double>(worker.user_us + worker.system_us);
       })}};
  nlohmann::json json = {{"schema", "c10k-server-report/1"},
                         {"version", project_version()},
                         {"pid", ::getpid()},
                         {"options", options},
                         {"uptime_s", uptime_s},
                         {"listener",
                          {{"address", address},
                           {"queue_limit", queue.limit},
                           {"queue_length", queue.length},
                           {"queue_peak", all.queue_peak},
                           {"listen_overflows", drops.overflows},
                           {"listen_drops", drops.drops}}},
                         {"processes", std::move(rows)},
                         {"totals", std::move(totals)},
                         {"books",
                          {{"accepted", all.accepted},
                           {"adopted", all.adopted},
                           {"served", served},
                           {"redelivered_and_served", all.finished_redelivered},
                           {"shed", all.shed},
                           {"lost", all.lost},
                           {"handed_on", all.handed_on},
                           {"active", all.active},
                           {"in_hand_off", in_hand_off},
                           {"balanced", balanced}}},
                         {"balance", balance},
                         {"worker_deaths", worker_deaths},
                         {"stuck_workers", stuck_workers},
                         {"not_retained", not_retained},
                         {"degraded", degraded}};
  if (load_age.count() != 0) {
    json["load_figures"] = {{"age_when_sent", load_age.to_json(false)},
                            {"largest_error_connections", load_error_max}};
  }
  return json;
}

ReportFile::ReportFile(std::string path) : path_(std::move(path)) {
  if (path_.empty()) return;
  file_ = path_ == "-" ? duplicate(STDOUT_FILENO)
                       : OwnedFd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!file_) {
    throw std::runtime_error(fmt::format(
        "--report: cannot write {}: {}; give a file, or - for stdout", path_, ::strerror(errno)));
  }
}

void ReportFile::write(const ServerReport& report) const {
  const std::string text = json_text(report.to_json(), 2);
  std::fflush(stdout);
  if (path_ != "-") {
    // A device such as /dev/null cannot be cut, and need not be.
    if (::ftruncate(file_.get(), 0) == 0) ::lseek(file_.get(), 0, SEEK_SET);
  }
  for (std::size_t done = 0; done < text.size();) {
    done += static_cast<std::size_t>(
        checked([&] { return ::write(file_.get(), text.data() + done, text.size() - done); },
                "write --report {}", path_));
  }
}

}  // namespace c10k
