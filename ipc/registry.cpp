#include "ipc/registry.hpp"

#include <array>

#include "ipc/methods.hpp"
#include "ipc/usage.hpp"

namespace c10k {

std::span<const MethodEntry> handoff_methods() {
  static const std::array registry{
      scm_stream(), scm_seqpacket(), scm_dgram(), queue_python3(), reuseport(), inherited_listener(),
  };
  return registry;
}

const MethodEntry& find_handoff_method(std::string_view name) {
  std::string known;
  for (const MethodEntry& entry : handoff_methods()) {
    if (entry.facts.name == name) return entry;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", entry.facts.name);
  }
  throw UsageError(fmt::format("unknown hand-off method '{}'; known: {}", name, known));
}

ConfiguredMethod configure_handoff_method(std::string_view text) {
  MethodOptions options = MethodOptions::parse(text);
  const MethodEntry& entry = find_handoff_method(options.name());
  auto method = entry.make(options);
  options.finish();
  return {&entry, options.resolved(), std::move(method)};
}

}  // namespace c10k
