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
  /// The index of an eligible worker; -1 when there is none. `source` is a hash of the client's
  /// address, for a policy that uses it.
  virtual int choose(std::span<const WorkerLoad> workers, std::uint64_t source) = 0;
};

struct PolicyEntry {
  std::string_view name;
  std::string_view summary;
  bool uses_load = false;    ///< Looks at WorkerLoad::open.
  bool uses_source = false;  ///< Needs the client's address: a getpeername for each connection.
  std::unique_ptr<DispatchPolicy> (*make)() = nullptr;
};

/// In the order in which they are listed.
[[nodiscard]] std::span<const PolicyEntry> dispatch_policies();
/// Throws UsageError naming the known ones.
[[nodiscard]] const PolicyEntry& find_dispatch_policy(std::string_view name);

/// A hash of the address of a connection's client, without its port; 0 when it has none any more.
[[nodiscard]] std::uint64_t source_of(int connection);

}  // namespace c10k
