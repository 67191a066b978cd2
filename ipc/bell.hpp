// A bell for a channel in shared memory: wakes a process that sleeps on it, and only then.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "ipc/owned_fd.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

/// One process rings, one sleeps; both have it from before the fork. It costs a system call on each
/// side for a worker that slept, and none for one that is awake.
///
/// While the sleeper is awake there is one count in the eventfd, so that it stays readable; going to
/// sleep takes that count out. Who finds `sleeping` set clears it and puts one in. A sleeper that has
/// not begun yet sleeps: the first message rings for it.
class Bell {
 public:
  Bell()
      : sleeping_(std::make_shared<SharedArray<Sleeping>>(1, SharedWith::one_child)),
        event_(checked([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE); },
                       "eventfd")) {}

  /// For the one that sleeps to wait on, level-triggered.
  [[nodiscard]] int fd() const { return event_.get(); }

  /// After a message has been published (seq_cst).
  void ring() const {
    std::atomic<std::uint8_t>& sleeping = (*sleeping_)[0].flag;
    if (sleeping.load(std::memory_order_seq_cst) != 0 && sleeping.exchange(0) != 0)
      (void)::eventfd_write(event_.get(), 1);
  }
  /// For what the sleeper must notice though no message comes.
  void ring_anyway() const { (void)::eventfd_write(event_.get(), 1); }

  /// The sleeper has found the channel empty. False when `empty()`, asked again, says otherwise: it
  /// must look again at once, for what came in between rang no bell.
  template <typename Empty>
  [[nodiscard]] bool sleep(Empty&& empty) const {
    std::atomic<std::uint8_t>& sleeping = (*sleeping_)[0].flag;
    sleeping.store(1, std::memory_order_seq_cst);
    if (!empty() && sleeping.exchange(0) != 0) return false;
    // Empty; or the ringer has found the announcement, and its count is one too many.
    eventfd_t count;
    (void)::eventfd_read(event_.get(), &count);
    return true;
  }

  /// The same bell with a descriptor of its own, for a process that has no table of its own.
  [[nodiscard]] Bell twin() const { return {sleeping_, duplicate(event_.get())}; }
  /// Gives the descriptor up.
  [[nodiscard]] int release() { return event_.release(); }

 private:
  struct Sleeping {
    /// Not a bool: the other side may write any byte, and a bool with another value than 0 and 1 is
    /// undefined to read.
    alignas(64) std::atomic<std::uint8_t> flag{1};
  };
  Bell(std::shared_ptr<SharedArray<Sleeping>> sleeping, OwnedFd event)
      : sleeping_(std::move(sleeping)), event_(std::move(event)) {}

  std::shared_ptr<SharedArray<Sleeping>> sleeping_;
  OwnedFd event_;
};

}  // namespace c10k
