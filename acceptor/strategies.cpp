#include <array>

#include "acceptor/server_run.hpp"
#include "ipc/usage.hpp"
#include "strategies/completion_loop.hpp"

namespace c10k {

std::span<const StrategyEntry> strategies() {
  static const CallGroups single_calls{CallGroup::accept, CallGroup::report};
  static const std::array registry{
      StrategyEntry{"fork",
                    "a process per connection",
                    run_fork_server,
                    {CallGroup::wait_epoll, CallGroup::wait_poll, CallGroup::accept,
                     CallGroup::report, CallGroup::fork}},
      StrategyEntry{"select", "one process, select(2) without its limit of 1024", run_single_server,
                    single_calls},
      StrategyEntry{"poll", "one process, poll(2)", run_single_server, single_calls},
      StrategyEntry{"epoll", "one process, epoll(7), edge-triggered", run_single_server,
                    single_calls},
      StrategyEntry{"uring", "one process, io_uring(7): completions", run_single_server,
                    single_calls, probe_completion_loop},
      StrategyEntry{"pool",
                    "an acceptor and worker processes; --ipc says how a connection gets there",
                    run_pool_server},
  };
  return registry;
}

const StrategyEntry& find_strategy(std::string_view name) {
  return find_by_name("strategy", strategies(), name);
}

}  // namespace c10k
