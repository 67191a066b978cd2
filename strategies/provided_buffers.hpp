// Buffers that the kernel takes from when there is something to receive: memory is needed for the bytes
// that are there, and not for the connections that could bring some.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ipc/uring.hpp"

namespace c10k {

/// A ring of buffers (io_uring_register_buf_ring(3)). Needs Linux 5.19.
class ProvidedBuffers {
 public:
  /// `count` (a power of two) buffers of `size` bytes. Borrows the ring, which must not run any more
  /// when this ends.
  ProvidedBuffers(Uring& ring, std::uint16_t group, unsigned count, unsigned size);
  ~ProvidedBuffers();
  ProvidedBuffers(const ProvidedBuffers&) = delete;
  ProvidedBuffers& operator=(const ProvidedBuffers&) = delete;

  /// Makes an entry receive into one of the buffers; ENOBUFS when there is none.
  void choose(io_uring_sqe* sqe) const {
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = group_;
  }
  /// Which buffer a completion with IORING_CQE_F_BUFFER has brought: the caller's until give_back().
  [[nodiscard]] static unsigned chosen(unsigned flags) { return flags >> IORING_CQE_BUFFER_SHIFT; }
  [[nodiscard]] char* data(unsigned buffer) const { return memory_ + std::size_t{buffer} * size_; }
  [[nodiscard]] unsigned count() const { return count_; }
  void give_back(unsigned buffer);

 private:
  Uring& ring_;
  std::uint16_t group_;
  unsigned count_;
  unsigned size_;
  std::size_t bytes_;
  io_uring_buf_ring* entries_ = nullptr;  // one mapping: the entries, then the buffers
  char* memory_ = nullptr;
};

}  // namespace c10k
