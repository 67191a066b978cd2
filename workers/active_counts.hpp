// How many connections each worker of a pool has open, and the limit on their sum.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "workers/counters.hpp"

namespace c10k {

/// How many connections each worker of a pool has open: one writer a slot.
using ActiveCounts = std::span<Counter>;

/// At most `most` connections of all workers together, while each accepts for itself. There is no lock, which a
/// worker that dies could keep: a worker announces in its own slot what it is about to accept, and looks at the
/// others' slots then. Of two who announce at the same time the later one sees both, and gives back what is too
/// much; both may, and get less than there is.
class SharedLimit {
 public:
  /// `slot` is this worker's.
  SharedLimit(ActiveCounts active, std::size_t slot, std::size_t most)
      : active_(active), slot_(slot), most_(most) {}

  /// How many of `wanted` more this worker, which has `open`, may accept. They count as open from now on.
  [[nodiscard]] std::size_t claim(std::size_t open, std::size_t wanted) {
    return settle(open, announce(open, wanted));
  }

  /// The two steps of claim().
  [[nodiscard]] std::size_t announce(std::size_t open, std::size_t wanted) {
    const std::size_t before = sum();
    const std::size_t announced = before < most_ ? std::min(wanted, most_ - before) : 0;
    if (announced != 0) active_[slot_].set_in_order(open + announced);
    return announced;
  }
  [[nodiscard]] std::size_t settle(std::size_t open, std::size_t announced) {
    const std::size_t now = announced != 0 ? sum() : 0;
    if (now <= most_) return announced;
    const std::size_t kept = announced - std::min(announced, now - most_);
    active_[slot_].set(open + kept);
    return kept;
  }

 private:
  [[nodiscard]] std::size_t sum() const {
    std::size_t all = 0;
    for (const Counter& one : active_) all += one.get_in_order();
    return all;
  }

  ActiveCounts active_;
  std::size_t slot_;
  std::size_t most_;
};

}  // namespace c10k
