// Clients that do not behave, for the fault tests: each a coroutine that reads like what it does.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "experiments/client/coroutine_slot.hpp"
#include "experiments/client/results.hpp"

namespace c10k {

struct Misbehaviour {
  std::string_view name;
  std::string_view summary;
  /// The ends of an attempt that are what it is after.
  OutcomeSet intended;
  /// One attempt, on a slot without a connection. Returns a step that has ended.
  Task<Exchange::Step> (*attempt)(CoroutineSlot& slot);
};

/// Every misbehaviour there is, in the order in which they are listed.
[[nodiscard]] std::span<const Misbehaviour> misbehaviours();

/// Null where there is none of that name: the client behaves.
[[nodiscard]] const Misbehaviour* find_misbehaviour(std::string_view name);

inline constexpr std::int64_t misbehaviour_pause_ns = 10'000'000;

}  // namespace c10k
