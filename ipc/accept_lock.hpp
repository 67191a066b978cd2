// A lock around accept, for workers that share one listener (Stevens, UNPv1 ch. 30).
#pragma once

#include <memory>

namespace c10k {

/// One for all workers, made before the fork. Held by one process at a time; a process's death
/// releases it.
class AcceptLock {
 public:
  virtual ~AcceptLock() = default;
  /// False when somebody else holds it. Never waits: a worker has connections to serve.
  [[nodiscard]] virtual bool try_lock() = 0;
  virtual void unlock() = 0;
  /// The descriptor that a worker needs for it; -1: none.
  [[nodiscard]] virtual int fd() const { return -1; }
};

/// A record lock on a memfd: a system call to lock, one to unlock. Throws SystemError.
[[nodiscard]] std::shared_ptr<AcceptLock> fcntl_accept_lock();

/// A robust mutex in shared memory: no system call while nobody else wants it. Throws SystemError.
[[nodiscard]] std::shared_ptr<AcceptLock> mutex_accept_lock();

}  // namespace c10k
