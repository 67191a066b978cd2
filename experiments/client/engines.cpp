#include "experiments/client/engines.hpp"

#include <algorithm>
#include <array>

namespace c10k {

std::span<const Engine> engines() {
  static constexpr std::array registry{
      Engine{"processes", "a process with blocking calls per connection", run_process_engine},
      Engine{"threads", "a thread with blocking calls per connection", run_thread_engine},
      Engine{"select", "one thread, select(2)", run_loop_engine},
      Engine{"poll", "one thread, poll(2)", run_loop_engine},
      Engine{"epoll", "one thread, epoll(7)", run_loop_engine},
      Engine{"coroutines", "one thread, epoll(7), a C++20 coroutine per connection",
             run_coroutine_engine, true}};
  return registry;
}

const Engine& find_engine(std::string_view name) {
  return *std::find_if(engines().begin(), engines().end(),
                       [&](const Engine& engine) { return engine.name == name; });
}

}  // namespace c10k
