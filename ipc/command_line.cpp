#include "ipc/command_line.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/positional_options.hpp>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace po = boost::program_options;

std::int64_t CommandLine::integer(const std::string& name, std::int64_t low,
                                  std::int64_t high) const {
  return parse_integer("--" + name, text(name), low, high);
}

std::int64_t CommandLine::seconds_ns(const std::string& name, double low, double high) const {
  return parse_seconds("--" + name, text(name), low, high);
}

bool CommandLine::given(const std::string& name) const {
  return has(name) && !values_.at(name).defaulted();
}

namespace {

std::string_view program_name(char** argv) {
  const char* slash = std::strrchr(argv[0], '/');
  return slash == nullptr ? argv[0] : slash + 1;
}

}  // namespace

std::optional<CommandLine> parse_command_line(int argc, char** argv, std::string_view summary,
                                              po::options_description options) {
  options.add_options()("help", "print this and exit")("version", "print the version and exit");
  po::variables_map values;
  try {
    const auto style = po::command_line_style::allow_long |
                       po::command_line_style::long_allow_adjacent |
                       po::command_line_style::long_allow_next;
    po::store(po::command_line_parser(argc, argv)
                  .options(options)
                  .positional(po::positional_options_description())
                  .style(style)
                  .run(),
              values);
  } catch (const po::too_many_positional_options_error&) {
    throw UsageError("arguments without an option name are not allowed");
  } catch (const po::error_with_option_name& error) {
    // Boost replaces %NAME% in its text for as long as there is one: for ever, when an argument has brought it.
    const bool placeholder = std::any_of(argv, argv + argc, [](const std::string_view argument) {
      return std::count(argument.begin(), argument.end(), '%') > 1;
    });
    if (!placeholder) throw UsageError(error.what());
    throw UsageError(fmt::format("option '{}' is unknown, ambiguous, repeated or without a value",
                                 error.get_option_name()));
  } catch (const po::error& error) {
    throw UsageError(error.what());
  }
  if (values.count("help") != 0) {
    std::cout << "Usage: " << program_name(argv) << " [OPTION...]\n"
              << summary << "\n\n"
              << options;
    return std::nullopt;
  }
  if (values.count("version") != 0) {
    std::cout << program_name(argv) << ' ' << project_version() << '\n';
    return std::nullopt;
  }
  return CommandLine(std::move(values));
}

OwnedFd open_result(std::string_view option, const std::string& name) {
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

std::string json_text(const nlohmann::json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
}

int run_program(int argc, char** argv, const std::function<int()>& body) {
  if (argc < 1) return 2;
  // A write to a pipe or socket that nobody reads any more is an error value, not our end.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    return body();
  } catch (const UsageError& error) {
    fmt::print(stderr, "{}: {} (see --help)\n", program_name(argv), error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", program_name(argv), error.what());
    return 1;
  }
}

std::string_view project_version() {
  return C10K_VERSION;
}

}  // namespace c10k
