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
  std::string known;
  for (const PollerEntry& entry : pollers()) {
    if (entry.name == name) return entry;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.name);
  }
  throw UsageError(fmt::format("unknown loop '{}'; known: {}", name, known));
}

}  // namespace c10k
