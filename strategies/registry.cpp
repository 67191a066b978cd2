#include <fmt/format.h>

#include <array>
#include <string>

#include "ipc/usage.hpp"
#include "strategies/poller.hpp"

namespace c10k {

std::span<const PollerEntry> pollers() {
  static const std::array registry{select_poller(), poll_poller(), epoll_poller()};
  return registry;
}

const PollerEntry& find_poller(std::string_view name) {
  return find_by_name("loop", pollers(), name);
}

}  // namespace c10k
