// Every hand-off method there is, in one explicit array.
#pragma once

#include <span>
#include <string_view>

#include "ipc/handoff.hpp"

namespace c10k {

/// In the order in which they are listed.
[[nodiscard]] std::span<const MethodEntry> handoff_methods();

/// Throws UsageError naming the known ones.
[[nodiscard]] const MethodEntry& find_handoff_method(std::string_view name);

/// A method made from `NAME[:key=value,...]`.
struct ConfiguredMethod {
  const MethodEntry* entry = nullptr;
  std::string resolved;  ///< With every option's value.
  std::unique_ptr<HandoffMethod> method;
};
/// Throws UsageError for an unknown name, key or value.
[[nodiscard]] ConfiguredMethod configure_handoff_method(std::string_view text);

}  // namespace c10k
