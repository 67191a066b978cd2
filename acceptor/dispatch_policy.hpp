// Which worker gets the next connection.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace c10k {

/// What a policy sees of a worker.
struct WorkerLoad {
  bool eligible = false;   ///< Running, ready, and its channel has room.
  std::uint64_t open = 0;  ///< Connections handed to it and not yet ended.
};

class DispatchPolicy {
 public:
  virtual ~DispatchPolicy() = default;
  /// The index of an eligible worker; -1 when there is none.
  virtual int choose(std::span<const WorkerLoad> workers) = 0;
};

struct PolicyEntry {
  std::string_view name;
  std::string_view summary;
  std::unique_ptr<DispatchPolicy> (*make)();
};

/// In the order in which they are listed.
[[nodiscard]] std::span<const PolicyEntry> dispatch_policies();
/// Throws UsageError naming the known ones.
[[nodiscard]] const PolicyEntry& find_dispatch_policy(std::string_view name);

}  // namespace c10k
