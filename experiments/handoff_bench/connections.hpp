// Established TCP connections over loopback, to be handed over.
#pragma once

#include <cstdint>
#include <vector>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// Both ends of each. They are made ahead, so that making them is in no figure.
class ConnectionSupply {
 public:
  /// Four thousand descriptors, a fifth of what a process may usually have.
  static constexpr std::uint64_t most = 2048;

  /// At least one, and no more than the descriptor limit leaves room for.
  [[nodiscard]] static std::uint64_t at_most(std::uint64_t wanted);

  /// Makes sure that `count` are left (or `most`); else gives up those that there are for new ones.
  void refill(std::uint64_t count);
  [[nodiscard]] std::uint64_t left() const { return accepted_.size() - used_; }
  /// The accepted end of the one after `ahead` others. It lives until the next refill().
  [[nodiscard]] int peek(std::size_t ahead = 0) const { return accepted_[used_ + ahead].get(); }
  void use(std::size_t count) { used_ += count; }

 private:
  std::vector<OwnedFd> clients_;
  std::vector<OwnedFd> accepted_;
  std::size_t used_ = 0;
};

}  // namespace c10k
