#include "ipc/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <vector>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// What mapped_region asks of a thing that it maps (Boost.Interprocess, MemoryMappable).
class MappableFd {
 public:
  explicit MappableFd(int fd) : fd_(fd) {}
  [[nodiscard]] boost::interprocess::mapping_handle_t get_mapping_handle() const {
    return boost::interprocess::ipcdetail::mapping_handle_from_file_handle(fd_);
  }

 private:
  int fd_;
};

/// Of SharedWith::one_child, and not withheld yet. Each belongs to its SharedMemory, and may have gone.
std::vector<std::weak_ptr<boost::interprocess::mapped_region>> for_the_next_child;

boost::interprocess::mapped_region map_memfd(std::size_t size) {
  const OwnedFd fd(checked([] { return ::memfd_create("c10k", MFD_CLOEXEC | MFD_ALLOW_SEALING); },
                           "memfd_create"));
  checked([&] { return ::ftruncate(fd.get(), static_cast<off_t>(size)); },
          "ftruncate memfd to {} bytes", size);
  checked([&] { return ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); },
          "fcntl F_ADD_SEALS");
  return {MappableFd(fd.get()), boost::interprocess::read_write, 0, size};
}

}  // namespace

SharedMemory::SharedMemory(std::size_t size, SharedWith whom)
    : region_(std::make_shared<boost::interprocess::mapped_region>(map_memfd(size))) {
  if (whom == SharedWith::one_child) for_the_next_child.push_back(region_);
}

void withhold_from_later_children() {
  for (const auto& entry : for_the_next_child) {
    // Who has a worker's memory also keeps it mapped; what is gone was made for a worker that could not be
    // forked.
    if (const auto region = entry.lock()) {
      checked([&] { return ::madvise(region->get_address(), region->get_size(), MADV_DONTFORK); },
              "madvise MADV_DONTFORK");
    }
  }
  for_the_next_child.clear();
}

}  // namespace c10k
