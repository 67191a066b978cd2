#include "ipc/registry.hpp"

#include <array>

#include "ipc/methods.hpp"
#include "ipc/usage.hpp"

namespace c10k {

std::span<const MethodEntry> handoff_methods() {
  static const std::array registry{
      // A line each.
      // clang-format off
      scm_stream(),
      scm_seqpacket(),
      scm_dgram(),
      scm_shared(),
      queue_python2(),
      queue_python3(),
      pidfd_ring(),
      pidfd_mq(),
      shared_table(),
      seccomp_addfd(),
      uring_msg(),
      tcp_repair(),
      relay(),
      reuseport(),
      inherited_listener(),
      // clang-format on
  };
  return registry;
}

const MethodEntry& find_handoff_method(std::string_view name) {
  return find_by_name("hand-off method", handoff_methods(), name);
}

OwnedFd HandoffMethod::adopt_listeners(std::vector<OwnedFd> listeners, const ListenOptions&) {
  if (listeners.size() != 1)
    throw std::runtime_error(fmt::format("{} listeners where one is used", listeners.size()));
  return std::move(listeners[0]);
}

ConfiguredMethod configure_handoff_method(std::string_view text) {
  MethodOptions options = MethodOptions::parse(text);
  const MethodEntry& entry = find_handoff_method(options.name());
  auto method = entry.make(options);
  options.finish();
  return {&entry, options.resolved(), std::move(method)};
}

}  // namespace c10k
