// A ring in shared memory through which descriptors' numbers travel, and their tags. One writer and
// one reader and no lock, so that neither's death can leave the other waiting.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "ipc/bell.hpp"
#include "ipc/handoff.hpp"
#include "ipc/shared_memory.hpp"

namespace c10k {

struct NumberedConnection {
  std::int32_t number = -1;  ///< In the table of whoever wrote it.
  ConnectionTag tag;
};

/// Made before the fork; copies share the ring. The writer calls the first group, the reader the second.
class NumberRing {
 public:
  static constexpr std::size_t slots = 1024;  // a power of two

  NumberRing() : ring_(std::make_shared<SharedArray<Ring>>(1, SharedWith::one_child)) {}

  // ---- the writer ----

  /// How many would fit by now.
  [[nodiscard]] std::size_t room() const {
    // A reader that writes nonsense into its counter harms only its own ring.
    const std::uint64_t in_use = ring().written.load(std::memory_order_relaxed) -
                                 ring().read.load(std::memory_order_acquire);
    return slots - std::min<std::uint64_t>(in_use, slots);
  }
  /// Fills the `at`th free slot, which the reader does not see before publish().
  void put(std::size_t at, int number, const ConnectionTag& tag) const {
    ring().entries[(ring().written.load(std::memory_order_relaxed) + at) % slots] = {number, tag};
  }
  void publish(std::size_t count) const {
    ring().written.store(ring().written.load(std::memory_order_relaxed) + count,
                         std::memory_order_seq_cst);
  }
  /// No more will come. Ring the bell afterwards.
  void close() const { ring().closed.store(1, std::memory_order_seq_cst); }

  // ---- the reader ----

  /// How many wait; never more than there are slots, whatever the writer has written.
  [[nodiscard]] std::size_t waiting() const {
    return std::min<std::uint64_t>(ring().written.load(std::memory_order_seq_cst) -
                                       ring().read.load(std::memory_order_relaxed),
                                   slots);
  }
  [[nodiscard]] const NumberedConnection& peek(std::size_t at) const {
    return ring().entries[(ring().read.load(std::memory_order_relaxed) + at) % slots];
  }
  void advance(std::size_t count) const {
    ring().read.store(ring().read.load(std::memory_order_relaxed) + count,
                      std::memory_order_release);
  }
  [[nodiscard]] bool closed() const { return ring().closed.load(std::memory_order_seq_cst) != 0; }

 private:
  /// The positions count for ever; a slot is the position modulo the size.
  struct Ring {
    alignas(64) std::atomic<std::uint64_t> written{0};
    std::atomic<std::uint8_t> closed{0};  // not a bool, which may hold nothing but 0 and 1
    alignas(64) std::atomic<std::uint64_t> read{0};
    alignas(64) std::array<NumberedConnection, slots> entries;
  };
  [[nodiscard]] Ring& ring() const { return (*ring_)[0]; }

  std::shared_ptr<SharedArray<Ring>> ring_;
};

/// What receive() of a ring's source returns once it has taken all there was: sleeps, or sees the end.
[[nodiscard]] inline Channel sleep_on(const NumberRing& ring, const Bell& bell) {
  if (ring.waiting() != 0) return Channel::more;
  if (ring.closed()) return Channel::closed;
  const auto idle = [&] { return ring.waiting() == 0 && !ring.closed(); };
  return bell.sleep(idle) ? Channel::would_block : Channel::more;
}

}  // namespace c10k
