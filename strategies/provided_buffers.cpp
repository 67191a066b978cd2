#include "strategies/provided_buffers.hpp"

#include <sys/mman.h>

namespace c10k {

ProvidedBuffers::ProvidedBuffers(Uring& ring, std::uint16_t group, unsigned count, unsigned size)
    : ring_(ring), group_(group), count_(count), size_(size) {
  constexpr std::size_t page = 4096;
  const std::size_t head = (count * sizeof(io_uring_buf) + page - 1) / page * page;
  bytes_ = head + std::size_t{count} * size;
  void* mapping =
      ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw_system_error(errno, "mmap of {} bytes", bytes_);
  entries_ = static_cast<io_uring_buf_ring*>(mapping);
  memory_ = static_cast<char*>(mapping) + head;
  io_uring_buf_reg registration{};
  registration.ring_addr = reinterpret_cast<std::uint64_t>(entries_);
  registration.ring_entries = count;
  registration.bgid = group;
  if (const int result = ::io_uring_register_buf_ring(&ring.raw(), &registration, 0); result < 0) {
    ::munmap(entries_, bytes_);
    check_uring(result, "io_uring_register a ring of buffers");
  }
  ::io_uring_buf_ring_init(entries_);
  for (unsigned buffer = 0; buffer < count; ++buffer) {
    // The kernel takes them in turn, so that each of the first `count` receives would pay for a page fault.
    *data(buffer) = 0;
    give_back(buffer);
  }
}

ProvidedBuffers::~ProvidedBuffers() {
  // Whatever still waits for data would find no buffer from now on.
  ::io_uring_unregister_buf_ring(&ring_.raw(), group_);
  ::munmap(entries_, bytes_);
}

void ProvidedBuffers::give_back(unsigned buffer) {
  ::io_uring_buf_ring_add(entries_, data(buffer), size_, static_cast<unsigned short>(buffer),
                          ::io_uring_buf_ring_mask(count_), 0);
  ::io_uring_buf_ring_advance(entries_, 1);
}

}  // namespace c10k
