// What bounds a hand-off from below: the parts that one is made of, each alone, as methods that the same
// loop measures in the same way. They hand nothing over, so they are in no server's registry.
#pragma once

#include <span>
#include <string_view>

#include "ipc/handoff.hpp"

namespace c10k {

struct Floor {
  MethodEntry entry;
  bool alone = false;  ///< One process does it all: there is no receiver.
};

[[nodiscard]] std::span<const Floor> floors();

}  // namespace c10k
