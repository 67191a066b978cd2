// c10k-server
#include <fmt/format.h>

#include "acceptor/list.hpp"
#include "acceptor/server_run.hpp"
#include "ipc/command_line.hpp"

int main(int argc, char** argv) {
  return c10k::run_program(argc, argv, [&] {
    auto options = c10k::parse_server_options(argc, argv);
    if (!options) return 0;
    if (options->list) {
      c10k::print_list(options->list_json);
      return 0;
    }
    const auto require = [](std::string_view name, const c10k::Support& support) {
      if (!support.available)
        throw std::runtime_error(
            fmt::format("{} is unsupported, because {}", name, support.reason));
    };
    if (options->method.method)
      require(options->method.entry->name, options->method.method->probe());
    if (options->loop != nullptr) require(options->loop->name, options->loop->probe());
    return options->strategy->run(*options);
  });
}
