// What every program of the project does alike: --help, --version, exit codes, one-line errors.
#pragma once

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/variables_map.hpp>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// The options given, all as text, with defaults filled in.
class CommandLine {
 public:
  explicit CommandLine(boost::program_options::variables_map values) : values_(std::move(values)) {}

  [[nodiscard]] bool has(const std::string& name) const { return values_.count(name) != 0; }
  [[nodiscard]] std::string text(const std::string& name) const {
    return values_.at(name).as<std::string>();
  }
  /// As parse_integer() and parse_seconds(), which name the option in their errors.
  [[nodiscard]] std::int64_t integer(const std::string& name, std::int64_t low,
                                     std::int64_t high) const;
  [[nodiscard]] std::int64_t seconds_ns(const std::string& name, double low, double high) const;
  /// True where the user gave it, false where it is the default.
  [[nodiscard]] bool given(const std::string& name) const;

 private:
  boost::program_options::variables_map values_;
};

/// Reads the command line. Prints and returns nothing for --help and --version, which it adds to
/// `options`. Throws UsageError for an unknown option, a missing value or a stray argument.
[[nodiscard]] std::optional<CommandLine> parse_command_line(
    int argc, char** argv, std::string_view summary,
    boost::program_options::options_description options);

/// Opens the file in which a program's result goes: made or emptied; - is stdout, and "" none. To be called
/// before the work, so that no result is lost for a wrong name. Throws UsageError, naming `option`.
[[nodiscard]] OwnedFd open_result(std::string_view option, const std::string& name);

/// Writes all of `text`. Throws SystemError, naming `what`.
void write_all(int fd, std::string_view text, std::string_view what);

/// A result as text with an end of line, indented by so many spaces (-1: all in one line). A path need not
/// be UTF-8, as JSON must be: what is not stands as U+FFFD, instead of costing the whole result.
[[nodiscard]] std::string json_text(const nlohmann::json& value, int indent = -1);

/// Runs a program: returns what `body` returned, 2 after a UsageError and 1 after any other
/// exception, either printed to stderr as "program: message". SIGPIPE is ignored.
int run_program(int argc, char** argv, const std::function<int()>& body);

/// The project's version, as --version prints it.
[[nodiscard]] std::string_view project_version();

}  // namespace c10k
