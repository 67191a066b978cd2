// The loops that a worker can have, each with the echo on top of it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "workers/echo_service.hpp"
#include "workers/intake.hpp"

namespace c10k {

/// A loop and what serves over it.
class Serving {
 public:
  virtual ~Serving() = default;
  [[nodiscard]] virtual Loop& loop() = 0;
  [[nodiscard]] virtual EchoService& service() = 0;
  /// `unlimited`: whatever comes is taken.
  [[nodiscard]] virtual std::unique_ptr<Intake> intake(ConnectionSource& source, bool unlimited,
                                                       std::function<void()> arrived) = 0;
};

/// A line of the registry.
struct LoopEntry {
  std::string_view name;
  std::string_view summary;
  bool exclusive = false;               ///< Honours Interest::exclusive.
  const PollerEntry* poller = nullptr;  ///< Of a loop over a poller.
  CallGroups calls;                     ///< What it calls when it turns.
  /// By trying it.
  Support (*probe)();
  /// In the process that runs it. The counters outlive it.
  std::unique_ptr<Serving> (*make)(const LoopEntry& entry, const EchoOptions& options,
                                   ProcessCounters& counters);
};

/// Every loop there is, in the order in which they are listed.
[[nodiscard]] std::span<const LoopEntry> loops();
/// Throws UsageError naming the known ones.
[[nodiscard]] const LoopEntry& find_loop(std::string_view name);

}  // namespace c10k
