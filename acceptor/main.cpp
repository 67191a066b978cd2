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
    if (options->method.method) {
      const c10k::Support support = options->method.method->probe();
      if (!support.available) {
        throw std::runtime_error(fmt::format("{} is unsupported, because {}",
                                             options->method.entry->name, support.reason));
      }
    }
    return options->strategy->run(*options);
  });
}
