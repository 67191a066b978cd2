#include "experiments/handoff_bench/options.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "experiments/handoff_bench/floors.hpp"
#include "experiments/handoff_bench/targets.hpp"
#include "ipc/command_line.hpp"
#include "ipc/registry.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

namespace po = boost::program_options;

po::options_description describe_options() {
  const auto value = [](const char* default_text) {
    return po::value<std::string>()->default_value(default_text);
  };
  po::options_description options("Options", 80, 50);
  options.add_options()  //
      ("methods", po::value<std::string>(),
       "NAME,...: hand-off methods (default: all with a sink; --check: what the targets name). The "
       "floors are always measured")  //
      ("batch", po::value<std::string>(),
       "N,...: descriptors given to send() at once, and the method's own batch=, 1 to 253 "
       "(default: "
       "1,16,64,253; --check: 1,64)")  //
      ("pin", po::value<std::string>(),
       "one: both processes on one core; free: anywhere; both (default; --check: one)")  //
      ("duration", value("0.05"),
       "seconds of a cell, after a warm-up; a method that consumes what it is handed has a count "
       "of its own")                                                                             //
      ("descriptors", po::value<std::string>(), "descriptors of a cell, instead of a duration")  //
      ("repetitions", value("7"), "of every cell, interleaved in random order")                  //
      ("latencies", value("300"), "hand-offs one at a time, in each repetition; 0: none")        //
      ("seed", po::value<std::string>(), "of the order (default: a random one, which is told)")  //
      ("baseline", value("dup-close"), "what the others are compared to, at the same batch")     //
      ("json", po::value<std::string>(), "write the result as JSON to this file; - is stdout")   //
      ("check", "measure what the targets need; exit 1 when one is missed");
  return options;
}

std::vector<std::string> split(const std::string& option, const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    if (part.empty())
      throw UsageError(fmt::format("--{}: '{}' has an empty part; give A,B,...", option, text));
    if (std::find(parts.begin(), parts.end(), part) != parts.end())
      throw UsageError(fmt::format("--{}: '{}' is given twice", option, part));
    parts.push_back(part);
    begin = end + 1;
  }
  return parts;
}

std::vector<std::string> methods_of(const CommandLine& line, bool check) {
  std::vector<std::string> all;
  for (const MethodEntry& entry : handoff_methods()) {
    if (!entry.kernel_dispatches) all.emplace_back(entry.name);
  }
  if (check && !line.has("methods")) {
    std::erase_if(all, [](const std::string& name) { return !is_targeted(name); });
    return all;
  }
  if (!line.has("methods")) return all;
  std::vector<std::string> chosen = split("methods", line.text("methods"));
  for (const std::string& name : chosen) {
    if (find_handoff_method(name).kernel_dispatches) {
      throw UsageError(
          fmt::format("--methods: {} has no sink, as the kernel dispatches; allowed: {}", name,
                      fmt::join(all, ", ")));
    }
  }
  return chosen;
}

}  // namespace

const char* name_of(Pin pin) {
  return pin == Pin::one ? "one" : "free";
}

std::optional<BenchOptions> parse_bench_options(int argc, char** argv) {
  const auto line = parse_command_line(
      argc, argv, "Measures the hand-off alone: one established connection, over and over.",
      describe_options());
  if (!line) return std::nullopt;
  BenchOptions options;
  options.check = line->has("check");
  options.methods = methods_of(*line, options.check);
  const std::string batches = line->has("batch") ? line->text("batch")
                              : options.check    ? "1,64"
                                                 : "1,16,64,253";
  for (const std::string& batch : split("batch", batches))
    options.batches.push_back(parse_integer<std::size_t>("--batch", batch, 1, 253));
  const std::string pin = line->has("pin")
                              ? parse_choice("--pin", line->text("pin"), {"one", "free", "both"})
                          : options.check ? "one"
                                          : "both";
  if (pin != "free") options.pins.push_back(Pin::one);
  if (pin != "one") options.pins.push_back(Pin::free);
  options.duration_ns = line->seconds_ns("duration", 0.001, 60);
  if (line->has("descriptors")) {
    if (line->given("duration"))
      throw UsageError("--descriptors: not together with --duration; give one of them");
    options.descriptors = static_cast<std::uint64_t>(line->integer("descriptors", 1, 100'000'000));
  }
  options.repetitions = static_cast<std::size_t>(line->integer("repetitions", 1, 1000));
  options.latencies = static_cast<std::size_t>(line->integer("latencies", 0, 4096));
  options.seed = line->has("seed") ? parse_integer<std::uint64_t>("--seed", line->text("seed"), 0,
                                                                  ~std::uint64_t{0})
                                   : std::random_device()();
  std::vector<std::string> known = options.methods;
  for (const Floor& floor : floors()) known.emplace_back(floor.entry.name);
  options.baseline = parse_choice("--baseline", line->text("baseline"), known);
  if (line->has("json")) {
    options.json = line->text("json");
    if (options.json.empty())
      throw UsageError("--json: the name is empty; give a file, or - for stdout");
  }
  return options;
}

nlohmann::json BenchOptions::to_json() const {
  auto pin_names = nlohmann::json::array();
  for (const Pin pin : pins) pin_names.push_back(c10k::name_of(pin));
  nlohmann::json object = {
      {"methods", methods},     {"batch", batches},       {"pin", pin_names},
      {"duration_s", nullptr},  {"descriptors", nullptr}, {"repetitions", repetitions},
      {"latencies", latencies}, {"baseline", baseline},   {"check", check}};
  if (descriptors != 0) {
    object["descriptors"] = descriptors;
  } else {
    object["duration_s"] = static_cast<double>(duration_ns) / 1e9;
  }
  return object;
}

}  // namespace c10k
