#include "experiments/handoff_bench/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "experiments/handoff_bench/stats.hpp"
#include "experiments/handoff_bench/targets.hpp"
#include "ipc/command_line.hpp"

namespace c10k {
namespace {

std::vector<double> values_of(const Stream& stream, double (*value)(const Sample&)) {
  std::vector<double> values;
  for (const auto& block : stream.blocks) {
    if (block) values.push_back(value(*block));
  }
  return values;
}
double wall(const Sample& sample) {
  return sample.wall_ns;
}
double both_cpu(const Sample& sample) {
  return sample.cpu_ns();
}
double sender_cpu(const Sample& sample) {
  return sample.sender_cpu_ns;
}
double receiver_cpu(const Sample& sample) {
  return sample.receiver_cpu_ns;
}

Ratio ratio_of(const BenchOptions& options, const Results& results, const Stream& stream) {
  const Stream* base = results.stream(options.baseline, stream.pin, stream.batch);
  return {base == nullptr ? std::vector<double>() : cpu_ratios(stream, *base),
          std::mt19937_64(options.seed)};
}

const char* state_name(const Filled& filled) {
  switch (filled.state) {
    case Channel::would_block:
      return "full";
    case Channel::starved:
    case Channel::at_limit:
      return "starved";
    case Channel::more:
      return "not full";
    case Channel::closed:
      break;
  }
  return "closed";
}

nlohmann::json per_descriptor(const Calls& calls, std::uint64_t descriptors) {
  auto object = nlohmann::json::object();
  for (const auto& [name, count] : calls)
    object[name] = static_cast<double>(count) / static_cast<double>(descriptors);
  return object;
}

nlohmann::json constant_json(const Results& results, const Constant& constant) {
  nlohmann::json row = {{"name", results.subjects[constant.subject].entry->name},
                        {"batch", constant.batch},
                        {"options", constant.resolved},
                        {"failure", constant.failure}};
  if (constant.filled) {
    const int error = constant.filled->error;
    row["in_flight"] = {{"descriptors", constant.filled->sent},
                        {"state", state_name(*constant.filled)},
                        {"error", error == 0 ? "" : ::strerrorname_np(error)}};
  }
  if (constant.calls.descriptors != 0) {
    const CallCounts& calls = constant.calls;
    row["calls"] = {{"descriptors", calls.descriptors},
                    {"sender_per_descriptor", per_descriptor(calls.sender, calls.descriptors)},
                    {"receiver_per_descriptor", per_descriptor(calls.receiver, calls.descriptors)}};
  }
  return row;
}

nlohmann::json stream_json(const BenchOptions& options, const Results& results,
                           const Stream& stream) {
  const Subject& subject = results.subjects[stream.subject];
  auto samples = nlohmann::json::array();
  for (std::size_t block = 0; block < stream.blocks.size(); ++block) {
    const auto& sample = stream.blocks[block];
    if (!sample) continue;
    samples.push_back({{"block", block},
                       {"descriptors", sample->descriptors},
                       {"wall_ns", sample->wall_ns},
                       {"sender_cpu_ns", sample->sender_cpu_ns},
                       {"receiver_cpu_ns", sample->receiver_cpu_ns},
                       {"sender_switches", sample->sender_switches},
                       {"receiver_switches", sample->receiver_switches}});
  }
  nlohmann::json row = {{"name", subject.entry->name}, {"kind", subject.floor ? "floor" : "method"},
                        {"pin", name_of(stream.pin)},  {"batch", stream.batch},
                        {"failure", stream.failure},   {"samples", samples}};
  if (samples.empty()) return row;
  row["wall_ns"] = Spread(values_of(stream, wall)).to_json();
  row["sender_cpu_ns"] = Spread(values_of(stream, sender_cpu)).to_json();
  row["receiver_cpu_ns"] = Spread(values_of(stream, receiver_cpu)).to_json();
  row["cpu_ns"] = Spread(values_of(stream, both_cpu)).to_json();
  row["cpu_ratio_to_baseline"] = ratio_of(options, results, stream).to_json();
  return row;
}

}  // namespace

nlohmann::json to_json(const BenchOptions& options, const Results& results, nlohmann::json host) {
  nlohmann::json json = {{"schema", "c10k-handoff-bench/1"}, {"version", project_version()},
                         {"options", options.to_json()},     {"seed", options.seed},
                         {"host", std::move(host)},          {"interrupted", results.interrupted}};
  for (const char* list : {"subjects", "streams", "latencies", "constants", "targets"})
    json[list] = nlohmann::json::array();
  for (const Subject& subject : results.subjects) {
    json["subjects"].push_back({{"name", subject.entry->name},
                                {"kind", subject.floor ? "floor" : "method"},
                                {"summary", subject.entry->summary},
                                {"syscalls", subject.entry->syscalls},
                                {"available", subject.support.available},
                                {"reason", subject.support.reason}});
  }
  for (const Stream& stream : results.streams)
    json["streams"].push_back(stream_json(options, results, stream));
  for (const Latency& latency : results.latencies) {
    nlohmann::json row = {{"name", results.subjects[latency.subject].entry->name},
                          {"pin", name_of(latency.pin)},
                          {"failure", latency.failure},
                          {"p50_samples_ns", latency.p50_ns},
                          {"p99_samples_ns", latency.p99_ns}};
    if (!latency.p50_ns.empty()) {
      row["p50_ns"] = Spread(latency.p50_ns).to_json();
      row["p99_ns"] = Spread(latency.p99_ns).to_json();
    }
    json["latencies"].push_back(std::move(row));
  }
  for (const Constant& constant : results.constants)
    json["constants"].push_back(constant_json(results, constant));
  for (const Verdict& verdict : check_targets(results, options.seed)) {
    json["targets"].push_back(
        {{"text", verdict.text},
         {"outcome", verdict.outcome == Verdict::Outcome::met      ? "met"
                     : verdict.outcome == Verdict::Outcome::missed ? "missed"
                                                                   : "not measured"}});
  }
  return json;
}

namespace {

std::uint64_t sum(const Calls& calls) {
  std::uint64_t total = 0;
  for (const auto& [_, count] : calls) total += count;
  return total;
}

/// "0.016", "1", "23.2": three digits that say something.
std::string short_number(double value) {
  if (value >= 100) return fmt::format("{:.0f}", value);
  return fmt::format("{:.{}f}", value, value >= 10 ? 1 : value >= 1 ? 2 : 3);
}

/// A reason in the width that is left beside a name.
void append_reason(std::string& text, std::string_view name, std::string reason) {
  std::string label(name);
  while (!reason.empty()) {
    std::size_t end = std::min<std::size_t>(reason.size(), 61);
    if (end < reason.size()) {
      const std::size_t blank = reason.rfind(' ', end);
      if (blank != std::string::npos && blank != 0) end = blank;
    }
    text += fmt::format("{:<18} {}\n", label, reason.substr(0, end));
    label.clear();
    reason.erase(0, std::min(reason.size(), end + 1));
  }
}

const Constant* constant_of(const Results& results, const Stream& stream) {
  for (const Constant& constant : results.constants) {
    if (constant.subject == stream.subject && constant.batch == stream.batch) return &constant;
  }
  return nullptr;
}

std::string stream_table(const BenchOptions& options, const Results& results, Pin pin) {
  std::string text = fmt::format(
      "\n{}; per descriptor, median of {}\n"
      "                        wall         CPU, ns                    x   system calls\n"
      "{:<18} batch   ns   +-% sender recver   both {:>9} sender recver\n",
      pin == Pin::one ? "Both processes on one core" : "Both processes anywhere",
      options.repetitions, "", options.baseline.substr(0, 9));
  for (const Stream& stream : results.streams) {
    if (stream.pin != pin) continue;
    const std::string_view name = results.subjects[stream.subject].entry->name;
    const auto walls = values_of(stream, wall);
    if (walls.empty()) {
      append_reason(text, name,
                    fmt::format("{}: {}", stream.batch,
                                stream.failure.empty() ? "not run" : "failed, " + stream.failure));
      continue;
    }
    const Spread wall_spread(walls);
    const Constant* constant = constant_of(results, stream);
    const auto calls = [&](const Calls& side) -> std::string {
      if (constant == nullptr || constant->calls.descriptors == 0) return "-";
      return short_number(static_cast<double>(sum(side)) /
                          static_cast<double>(constant->calls.descriptors));
    };
    text += fmt::format(
        "{:<18} {:>5} {:>6.0f} {:>3.0f} {:>6.0f} {:>6.0f} {:>6.0f} {:>9.2f} {:>6} {:>6}\n", name,
        stream.batch, wall_spread.median, 100 * wall_spread.relative(),
        Spread(values_of(stream, sender_cpu)).median,
        Spread(values_of(stream, receiver_cpu)).median, Spread(values_of(stream, both_cpu)).median,
        ratio_of(options, results, stream).median,
        constant == nullptr ? "-" : calls(constant->calls.sender),
        constant == nullptr ? "-" : calls(constant->calls.receiver));
    if (constant != nullptr && !constant->failure.empty())
      append_reason(text, "", "system calls, in flight: " + constant->failure);
  }
  return text;
}

/// A line for each subject that has latencies or a channel.
std::string latency_table(const BenchOptions& options, const Results& results) {
  std::string text =
      "\n                   latency of one, us          in flight at most, by batch\n";
  text += fmt::format("{:<18}", "");
  for (const Pin pin : options.pins)
    text += pin == Pin::one ? "    one core     " : "    anywhere     ";
  for (const std::size_t batch : options.batches) text += fmt::format("{:>6}", batch);
  text += fmt::format("\n{:<18}", "");
  for (std::size_t i = 0; i < options.pins.size(); ++i) text += "    p50     p99  ";
  text += '\n';
  for (std::size_t i = 0; i < results.subjects.size(); ++i) {
    const Subject& subject = results.subjects[i];
    if (!subject.support.available || subject.alone) continue;
    text += fmt::format("{:<18}", subject.entry->name);
    for (const Latency& latency : results.latencies) {
      if (latency.subject != i) continue;
      if (latency.p50_ns.empty()) {
        text += "      -       -  ";
      } else {
        text += fmt::format("{:>7.1f} {:>7.1f}  ", Spread(latency.p50_ns).median / 1000,
                            Spread(latency.p99_ns).median / 1000);
      }
    }
    for (const Constant& constant : results.constants) {
      if (constant.subject != i) continue;
      // What was not filled tells nothing: there were too few connections to send.
      const bool full = constant.filled && constant.filled->state != Channel::more;
      text += fmt::format("{:>6}", full ? std::to_string(constant.filled->sent) : "-");
    }
    text += '\n';
    for (const Latency& latency : results.latencies) {
      if (latency.subject == i && !latency.failure.empty())
        append_reason(text, "", "latency: " + latency.failure);
    }
  }
  return text;
}

}  // namespace

std::string to_table(const BenchOptions& options, const Results& results,
                     const nlohmann::json& host) {
  const auto text_of = [&](const char* key) {
    return host[key].is_string() ? host[key].get<std::string>() : "unknown";
  };
  std::string text = fmt::format("Linux {} {}, {}, {} cores\n{} build, revision {:.12}, seed {}\n",
                                 text_of("kernel"), text_of("machine"), text_of("cpu_model"),
                                 host["cores"].get<unsigned>(), text_of("build_type"),
                                 text_of("revision"), options.seed);
  for (const auto& flag : host["flags"]) text += "! " + flag.get<std::string>() + "\n";
  if (results.interrupted) text += "! interrupted: not every cell has all its repetitions\n";
  for (const Pin pin : options.pins) text += stream_table(options, results, pin);
  text += latency_table(options, results);
  text +=
      "\nSystem calls: counted in a traced run in which all is sent before the receiver\n"
      "looks. Latency: to a receiver that sleeps. The floors hand nothing over.\n";
  for (const Subject& subject : results.subjects) {
    if (!subject.support.available)
      append_reason(text, subject.entry->name, "unsupported, because " + subject.support.reason);
  }
  return text;
}

}  // namespace c10k
