// c10k-client: puts load on an echo server and checks every echo.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "experiments/client/conductor.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/hdr_text.hpp"
#include "experiments/client/options.hpp"
#include "experiments/client/report.hpp"
#include "experiments/client/shared_run.hpp"
#include "ipc/command_line.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

/// Where a result goes. Opened before the run, so that none is lost for a wrong name.
OwnedFd open_result(const char* option, const std::string& name) {
  if (name.empty()) return {};
  if (name == "-") return duplicate(STDOUT_FILENO);
  OwnedFd fd(retry_eintr(
      [&] { return ::open(name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666); }));
  if (!fd) {
    throw UsageError(fmt::format("{}: cannot write {}: {}; give a file, or - for stdout", option,
                                 name, std::strerror(errno)));
  }
  return fd;
}

void write_all(int fd, std::string_view text, std::string_view what) {
  while (!text.empty()) {
    const auto size =
        checked([&] { return ::write(fd, text.data(), text.size()); }, "write {}", what);
    text.remove_prefix(static_cast<std::size_t>(size));
  }
}

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

  if (json) write_all(json.get(), report.to_json().dump() + '\n', options->json);
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
