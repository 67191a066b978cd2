// c10k-client: puts load on an echo server and checks every echo.
#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "experiments/client/conductor.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/hdr_text.hpp"
#include "experiments/client/options.hpp"
#include "experiments/client/report.hpp"
#include "experiments/client/shared_run.hpp"
#include "ipc/command_line.hpp"

namespace c10k {
namespace {

int run_client(int argc, char** argv) {
  const auto options = parse_options(argc, argv);
  if (!options) return 0;
  const OwnedFd json = open_result("--json", options->json);
  const OwnedFd hdr = open_result("--hdr", options->hdr);

  const Engine& engine = find_engine(options->engine);
  const Support support = engine.probe();
  if (!support.available) {
    throw std::runtime_error(
        fmt::format("--engine {}: unsupported, because {}", engine.name, support.reason));
  }
  const SharedRun run(*options, find_workload(options->workload).phases(*options));
  conduct(run, engine);
  const Report report(run);

  if (json) write_all(json.get(), json_text(report.to_json()), options->json);
  if (hdr) write_all(hdr.get(), hdr_text(report.latency()), options->hdr);
  const bool stdout_taken = options->json == "-" || options->hdr == "-";
  if (!stdout_taken && run.state().end != End::unreachable) {
    write_all(STDOUT_FILENO, report.summary(), "stdout");
  }
  const std::string failure = report.failure();
  if (!failure.empty()) throw std::runtime_error(failure);
  return 0;
}

}  // namespace
}  // namespace c10k

int main(int argc, char** argv) {
  return c10k::run_program(argc, argv, [&] { return c10k::run_client(argc, argv); });
}
