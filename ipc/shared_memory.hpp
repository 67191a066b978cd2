// Anonymous shared memory: no name, so nothing stays behind in /dev/shm whoever dies.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// Whom memory is shared with, beside the process that makes it.
enum class SharedWith : std::uint8_t {
  children,   ///< All that are forked while it is there.
  one_child,  ///< Those that are forked before the next withhold_from_later_children().
};

/// Tells that the child has been forked for which the memory of SharedWith::one_child was made that there is
/// by now: no later child finds it in its address space. So a hostile worker cannot write into what a
/// sibling and the acceptor believe to be theirs. Throws SystemError.
void withhold_from_later_children();

/// A sealed memfd mapped read-write. Children forked later see the same memory; the descriptor is
/// closed at once, so it cannot leak into them, and the seals keep anyone from truncating it under
/// a reader.
class SharedMemory {
 public:
  /// Maps `size` zeroed bytes. Throws SystemError or boost::interprocess::interprocess_exception.
  explicit SharedMemory(std::size_t size, SharedWith whom = SharedWith::children);
  [[nodiscard]] void* data() const { return region_->get_address(); }

 private:
  std::shared_ptr<boost::interprocess::mapped_region> region_;
};

/// `count` value-initialised objects of T in shared memory. T must not hold pointers to heap
/// memory: each process has its own heap. No destructor runs: other processes may still read.
template <typename T>
class SharedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit SharedArray(std::size_t count, SharedWith whom = SharedWith::children)
      : memory_(count * sizeof(T), whom), count_(count) {
    for (std::size_t i = 0; i < count; ++i) new (static_cast<T*>(memory_.data()) + i) T();
  }
  [[nodiscard]] T& operator[](std::size_t i) const {
    return *std::launder(static_cast<T*>(memory_.data()) + i);
  }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::span<T> all() const { return {&(*this)[0], count_}; }

 private:
  SharedMemory memory_;
  std::size_t count_;
};

}  // namespace c10k
