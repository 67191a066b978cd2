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
  AttemptCoroutine attempt;
};

/// Every misbehaviour there is, in the order in which they are listed.
[[nodiscard]] std::span<const Misbehaviour> misbehaviours();

/// For --misbehave; empty means that the client behaves.
[[nodiscard]] AttemptCoroutine attempt_of(std::string_view misbehave);
[[nodiscard]] OutcomeSet intended_outcomes(std::string_view misbehave);

inline constexpr std::int64_t misbehaviour_pause_ns = 10'000'000;

}  // namespace c10k
