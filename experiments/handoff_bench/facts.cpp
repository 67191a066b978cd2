#include <sys/resource.h>
#include <sys/utsname.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "experiments/handoff_bench/report.hpp"

namespace c10k {
namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

/// What git says about the tree that this was built from; null where it cannot.
nlohmann::json git(const char* arguments) {
  const std::string command =
      std::string("git --no-optional-locks -C '" C10K_SOURCE_DIR "' ") + arguments + " 2>/dev/null";
  FILE* pipe = ::popen(command.c_str(), "re");
  if (pipe == nullptr) return nullptr;
  std::string text;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) text.push_back(static_cast<char>(c));
  if (::pclose(pipe) != 0) return nullptr;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

nlohmann::json facts_of_host() {
  utsname name{};
  ::uname(&name);
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  double load = 0;
  (void)::getloadavg(&load, 1);
  const nlohmann::json status = git("status --porcelain");
  const std::string sanitize = C10K_SANITIZE_NAME;
  const std::string build_type = C10K_BUILD_TYPE_NAME;
  nlohmann::json host = {{"kernel", name.release},
                         {"machine", name.machine},
                         {"cpu_model", cpu_model()},
                         {"cores", std::thread::hardware_concurrency()},
                         {"rlimit_nofile", files.rlim_cur},
                         {"load_average_1min", load},
                         {"revision", git("rev-parse HEAD")},
                         {"dirty", status.is_null() ? status : nlohmann::json(status != "")},
                         {"build_type", build_type},
                         {"sanitize", sanitize},
                         {"flags", nlohmann::json::array()}};
  nlohmann::json& flags = host["flags"];
  if (!sanitize.empty() || (build_type != "Release" && build_type != "RelWithDebInfo"))
    flags.push_back("not for comparing: " + (sanitize.empty() ? build_type : sanitize) +
                    " build (use the release preset)");
  if (host["dirty"] == true)
    flags.push_back("dirty tree: the revision does not name this source (commit first)");
  if (load > 0.5)
    flags.push_back("busy host: load " + std::to_string(load).substr(0, 4) + " at the start");
  return host;
}

}  // namespace c10k
