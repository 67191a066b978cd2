#include "experiments/client/engines.hpp"

#include <algorithm>
#include <array>

#include "strategies/completion_loop.hpp"

namespace c10k {

std::span<const Engine> engines() {
  static constexpr std::array registry{
      Engine{"processes", "a process with blocking calls per connection", run_process_engine},
      Engine{"threads", "a thread with blocking calls per connection", run_thread_engine},
      Engine{"select", "one thread, select(2)", run_loop_engine},
      Engine{"poll", "one thread, poll(2)", run_loop_engine},
      Engine{"epoll", "one thread, epoll(7)", run_loop_engine},
      Engine{"uring", "one thread, io_uring(7)", run_uring_engine, probe_completion_loop},
      Engine{.name = "coroutines",
             .summary = "one thread, epoll(7), a C++20 coroutine per connection",
             .run = run_coroutine_engine,
             .misbehaves = true}};
  return registry;
}

const Engine& find_engine(std::string_view name) {
  return *std::find_if(engines().begin(), engines().end(),
                       [&](const Engine& engine) { return engine.name == name; });
}

}  // namespace c10k
