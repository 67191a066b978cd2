// The owner of an io_uring with its mappings.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

/// liburing returns the negative errno.
inline int check_uring(int result, const char* call) {
  if (result < 0) throw_system_error(-result, "{}", call);
  return result;
}

/// What would make an io_uring possible that failed with `error`; `kernel` names the one it needs.
inline std::string uring_remedy(int error, std::string_view kernel) {
  switch (error) {
    case EPERM:
    case EACCES:
      return "set kernel.io_uring_disabled to 0, and allow io_uring in the seccomp profile";
    case ENOMEM:
      return "raise RLIMIT_MEMLOCK (rings count against it before 5.12)";
    case EMFILE:
    case ENFILE:
      return "raise RLIMIT_NOFILE";
    default:
      return fmt::format("it needs Linux {} with CONFIG_IO_URING", kernel);
  }
}

/// A ring with its mappings.
class Uring {
 public:
  /// `flags` (IORING_SETUP_...) come beside those that every ring here has.
  Uring(unsigned entries, unsigned completions, std::uint32_t flags) {
    // One refused entry does not hold up those behind it.
    params_.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | flags;
    params_.cq_entries = completions;
    check_uring(::io_uring_queue_init_params(entries, &ring_, &params_), "io_uring_setup");
    // A ring holds the files of what is under way: where a table is shared, it must be known whose it is.
    if (descriptor_ledger.self != 0) descriptor_ledger.mark(fd(), descriptor_ledger.self);
  }
  /// With a table of `files`, all empty.
  Uring(unsigned entries, unsigned completions, std::uint32_t flags, unsigned files)
      : Uring(entries, completions, flags) {
    check_uring(::io_uring_register_files_sparse(&ring_, files),
                "io_uring_register a table of files");
  }
  /// Maps a ring that another process has made.
  Uring(OwnedFd ring, io_uring_params params) : params_(params) {
    check_uring(::io_uring_queue_mmap(ring.get(), &params_, &ring_), "mmap of an io_uring");
    (void)ring.release();  // the exit closes it
  }
  ~Uring() {
    const int number = fd();
    ::io_uring_queue_exit(&ring_);
    if (descriptor_ledger.self != 0) descriptor_ledger.unmark(number);
  }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  [[nodiscard]] int fd() const { return ring_.ring_fd; }
  /// Of a ring made with IORING_SETUP_R_DISABLED: enables it for these operations, these flags of entries
  /// (IOSQE_...) and these registrations, and no others for as long as it lives. A filter of system calls
  /// does not see what a ring is told to do.
  void restrict_to(std::span<const int> operations, unsigned flags,
                   std::span<const int> registrations) {
    std::vector<io_uring_restriction> list;
    for (const int operation : operations) {
      auto& entry = list.emplace_back();
      entry = {};
      entry.opcode = IORING_RESTRICTION_SQE_OP;
      entry.sqe_op = static_cast<__u8>(operation);
    }
    for (const int registration : registrations) {
      auto& entry = list.emplace_back();
      entry = {};
      entry.opcode = IORING_RESTRICTION_REGISTER_OP;
      entry.register_op = static_cast<__u8>(registration);
    }
    auto& allowed = list.emplace_back();
    allowed = {};
    allowed.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    allowed.sqe_flags = static_cast<__u8>(flags);
    // By the general call: Debian 12's liburing.so does not export the functions for these two.
    check_uring(::io_uring_register(static_cast<unsigned>(fd()), IORING_REGISTER_RESTRICTIONS,
                                    list.data(), static_cast<unsigned>(list.size())),
                "io_uring_register restrictions");
    check_uring(
        ::io_uring_register(static_cast<unsigned>(fd()), IORING_REGISTER_ENABLE_RINGS, nullptr, 0),
        "io_uring_register to enable the ring");
  }
  /// For what this class has no word for.
  [[nodiscard]] io_uring& raw() { return ring_; }
  [[nodiscard]] const io_uring_params& params() const { return params_; }
  /// A mapping holds the ring as a descriptor does: no child may inherit it.
  void keep_from_children() {
    check_uring(::io_uring_ring_dontfork(&ring_), "madvise of an io_uring");
  }

  /// There is always a free one: whoever fills them submits as many as there are, at the latest.
  [[nodiscard]] io_uring_sqe* entry() { return ::io_uring_get_sqe(&ring_); }
  /// Sets `fds.size()` slots of the table from `first` on (-1: empties it). Says nothing if it works.
  void set_files(std::span<const int> fds, unsigned first) {
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_files_update(sqe, const_cast<int*>(fds.data()),
                                 static_cast<unsigned>(fds.size()), static_cast<int>(first));
    ::io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
    sqe->user_data = quiet;
  }
  /// Runs all entries, and waits until there are `completions`.
  void submit(unsigned completions) {
    int result;
    do {  // it stops where memory is short, and fails when it cannot run even one
      result = ::io_uring_submit_and_wait(&ring_, completions);
    } while (result == -EINTR || (result >= 0 && ::io_uring_sq_ready(&ring_) != 0));
    check_uring(result, "io_uring_enter");
  }
  /// Calls `each(user_data, result)` for what has completed.
  template <typename Each>
  void reap(Each&& each) {
    unsigned head;
    unsigned count = 0;
    int failed = 0;
    io_uring_cqe* cqe;
    // All of them first, whatever one says: others may bring descriptors.
    io_uring_for_each_cqe(&ring_, head, cqe) {
      if (cqe->user_data == quiet)
        failed = cqe->res;
      else
        each(cqe->user_data, cqe->res);
      ++count;
    }
    ::io_uring_cq_advance(&ring_, count);
    check_uring(failed, "io_uring FILES_UPDATE");
  }

 private:
  /// In user_data: an entry of this class's own.
  static constexpr std::uint64_t quiet = ~std::uint64_t{0};

  io_uring ring_{};
  io_uring_params params_{};
};

}  // namespace c10k
