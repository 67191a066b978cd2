// The owner of an io_uring with its mappings.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <span>

#include "ipc/owned_fd.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

/// liburing returns the negative errno.
inline int check_uring(int result, const char* call) {
  if (result < 0) throw_system_error(-result, "{}", call);
  return result;
}

/// A ring with its mappings.
class Uring {
 public:
  Uring(unsigned entries, unsigned completions, unsigned files) {
    io_uring_params params{};
    // One refused entry does not hold up those behind it.
    params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL;
    params.cq_entries = completions;
    check_uring(::io_uring_queue_init_params(entries, &ring_, &params), "io_uring_setup");
    params_ = params;
    try {
      check_uring(::io_uring_register_files_sparse(&ring_, files),
                  "io_uring_register a table of files");
    } catch (...) {
      ::io_uring_queue_exit(&ring_);
      throw;
    }
  }
  /// Maps a ring that another process has made.
  Uring(OwnedFd ring, io_uring_params params) : params_(params) {
    check_uring(::io_uring_queue_mmap(ring.get(), &params_, &ring_), "mmap of an io_uring");
    (void)ring.release();  // the exit closes it
  }
  ~Uring() { ::io_uring_queue_exit(&ring_); }
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  [[nodiscard]] int fd() const { return ring_.ring_fd; }
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
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      if (cqe->user_data == quiet) check_uring(cqe->res, "io_uring FILES_UPDATE");
      each(cqe->user_data, cqe->res);
      ++count;
    }
    ::io_uring_cq_advance(&ring_, count);
  }

 private:
  /// In user_data: an entry of this class's own.
  static constexpr std::uint64_t quiet = ~std::uint64_t{0};

  io_uring ring_{};
  io_uring_params params_{};
};

}  // namespace c10k
