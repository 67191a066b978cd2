// Everything that a person types: the command lines of c10k-server and c10k-client (an argument a line of the
// input), and their parts alone: a hand-off method with its options, --service-time, addresses, seconds, numbers.
// Text is either understood, and then what was understood says the same when it is read again, or refused with
// one UsageError. No name is looked up.
#include "experiments/client/options.hpp"

#include <dlfcn.h>
#include <netdb.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "acceptor/server_options.hpp"
#include "ipc/command_line.hpp"
#include "ipc/registry.hpp"
#include "ipc/usage.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "workers/service_time.hpp"

/// In the place of the C library's, which would ask a name server.
extern "C" int getaddrinfo(const char* host, const char* port, const addrinfo* hints,
                           addrinfo** result) {
  using Function = int (*)(const char*, const char*, const addrinfo*, addrinfo**);
  static const auto real = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "getaddrinfo"));
  addrinfo numeric = *hints;
  numeric.ai_flags |= AI_NUMERICHOST;
  return real(host, port, &numeric, result);
}

namespace {

using namespace c10k;
using fuzz::expect;

/// A program's arguments: the input's lines.
class Arguments {
 public:
  explicit Arguments(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; texts_.size() < 24 && std::getline(lines, line);) {
      // They print, and that is all.
      if (line == "--help" || line == "--version") continue;
      texts_.push_back(line);
    }
    for (std::string& one : texts_) pointers_.push_back(one.data());
    pointers_.push_back(nullptr);
  }
  [[nodiscard]] int count() const { return static_cast<int>(pointers_.size()) - 1; }
  [[nodiscard]] char** values() { return pointers_.data(); }

 private:
  std::vector<std::string> texts_{"program"};
  std::vector<char*> pointers_;
};

void read(std::uint8_t what, const std::string& text) {
  switch (what % 8) {
    case 0: {
      Arguments arguments(text);
      const auto options = parse_server_options(arguments.count(), arguments.values());
      expect(options.has_value(), "options, as neither --help nor --version was asked for");
      if (!options->list) (void)json_text(options->to_json());
      return;
    }
    case 1: {
      Arguments arguments(text);
      const auto options = parse_options(arguments.count(), arguments.values());
      expect(options.has_value(), "options, as neither --help nor --version was asked for");
      expect(options->connections >= options->processes && options->processes != 0,
             "a connection a process");
      (void)json_text(options->to_json());
      return;
    }
    case 2: {
      const ConfiguredMethod method = configure_handoff_method(text);
      expect(configure_handoff_method(method.resolved).resolved == method.resolved,
             "resolved options resolve to themselves");
      return;
    }
    case 3: {
      const ServiceTime time = ServiceTime::parse("--service-time", text);
      expect(time.text() == text && time.none() == (text == "0"), "a service time as it was given");
      return;
    }
    case 4: {
      const SocketAddress address = SocketAddress::parse("--listen", text);
      expect(SocketAddress::parse("--listen", address.text()).text() == address.text(),
             "an address reads as it is written");
      return;
    }
    case 5: {
      const std::int64_t ns = parse_seconds("--duration", text, 0.001, 86'400);
      expect(ns >= 999'999 && ns <= 86'400'000'000'000, "seconds within their bounds");
      return;
    }
    case 6: {
      const auto number = parse_integer<std::int64_t>("--backlog", text, 1, 65'535);
      expect(number >= 1 && number <= 65'535, "a number within its bounds");
      return;
    }
    default: {
      MethodOptions options = MethodOptions::parse(text);
      (void)options.integer("batch", 64, 1, 253);
      (void)options.choice("auth", "on", {"on", "no-hmac", "off"});
      (void)options.flag("lock", true);
      options.finish();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::NothingLeftOpen check(32);
  fuzz::Input input(data, std::min<std::size_t>(size, 1024));
  const std::uint8_t what = input.byte();
  std::string text = input.text();
  text.resize(std::min(text.size(), text.find('\0')));  // where an argument ends
  try {
    read(what, text);
  } catch (const UsageError& error) {
    expect(*error.what() != 0, "an error says what is wrong");
  }
  return 0;
}
