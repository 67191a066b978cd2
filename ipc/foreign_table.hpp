// Descriptors taken out of another process's table (pidfd_getfd(2)).
#pragma once

#include <sys/types.h>

#include <span>

#include "ipc/handoff.hpp"
#include "ipc/number_ring.hpp"

namespace c10k {

class ForeignTable {
 public:
  explicit ForeignTable(pid_t owner);

  /// Takes the next connection of a batch: what it got goes behind those of `result`. False when the
  /// batch must end with this one: it was refused for want of a descriptor here, or the owner has
  /// ended (closed; the connection is not counted). Throws SystemError when the rights or the number
  /// are wrong.
  bool take(const NumberedConnection& next, std::span<Received> batch, ReceiveResult& result) const;

  /// A child tries it on this process, as a worker would.
  [[nodiscard]] static Support probe();

 private:
  pid_t owner_;
  OwnedFd pidfd_;
};

}  // namespace c10k
