// handoff-bench: what each hand-off method costs, alone.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "experiments/handoff_bench/bench.hpp"
#include "experiments/handoff_bench/report.hpp"
#include "experiments/handoff_bench/targets.hpp"
#include "ipc/command_line.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

volatile sig_atomic_t stop_requested = 0;

/// Prints each target; throws when one is missed.
void judge(const Results& results, const BenchOptions& options) {
  std::string missed;
  std::string text = "\nTargets: CPU of both sides, on one core, per descriptor (95 % interval)\n";
  for (const Verdict& verdict : check_targets(results, options.seed)) {
    const bool met = verdict.outcome == Verdict::Outcome::met;
    const bool miss = verdict.outcome == Verdict::Outcome::missed;
    text += fmt::format("{:<7} {}\n", met ? "met" : miss ? "MISSED" : "-", verdict.text);
    if (miss) missed += (missed.empty() ? "" : " | ") + verdict.text;
  }
  if (options.json != "-") write_all(STDOUT_FILENO, text, "stdout");
  if (!missed.empty()) throw std::runtime_error("missed: " + missed);
}

int run(int argc, char** argv) {
  const auto options = parse_bench_options(argc, argv);
  if (!options) return 0;
  const OwnedFd json = open_result("--json", options->json);
  (void)raise_descriptor_limit();
  struct sigaction stop {};
  stop.sa_handler = [](int) { stop_requested = 1; };
  ::sigaction(SIGINT, &stop, nullptr);
  ::sigaction(SIGTERM, &stop, nullptr);

  const nlohmann::json host = facts_of_host();
  const bool progress = ::isatty(STDERR_FILENO) == 1;
  const Results results = run_bench(*options, [&](std::size_t done, std::size_t all) {
    if (progress) fmt::print(stderr, "\r{} of {} cells ", done, all);
    return stop_requested == 0;
  });
  if (progress) fmt::print(stderr, "\r{:30}\r", "");

  if (json) write_all(json.get(), json_text(to_json(*options, results, host)), options->json);
  if (options->json != "-") write_all(STDOUT_FILENO, to_table(*options, results, host), "stdout");
  if (options->check) judge(results, *options);
  return 0;
}

}  // namespace
}  // namespace c10k

int main(int argc, char** argv) {
  return c10k::run_program(argc, argv, [&] { return c10k::run(argc, argv); });
}
