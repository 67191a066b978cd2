// Counts system calls from outside, in a run of its own: a traced process is many times slower.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "experiments/handoff_bench/rig.hpp"

namespace c10k {

/// System calls by name.
using Calls = std::map<std::string, std::uint64_t>;

struct CallCounts {
  std::uint64_t descriptors = 0;
  Calls sender;  ///< All its threads.
  Calls receiver;
};

/// What `descriptors` (or as many as the channel holds, if fewer) cost when they are all sent before
/// the receiver looks: a worker that is awake. One that sleeps before each pays its wake-up on top.
/// Needs ptrace rights over own children. Throws when they are missing.
[[nodiscard]] CallCounts count_calls(RigSetup setup, std::uint64_t descriptors);

}  // namespace c10k
