// Client sockets: opened, bound to one of the client's addresses, and connected.
#pragma once

#include <sys/time.h>

#include <cstddef>
#include <vector>

#include "experiments/client/options.hpp"
#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"

namespace c10k {

class Dialer {
 public:
  enum class Mode {
    non_blocking,
    blocking,     ///< The timeout of the options bounds connect and each recv.
    completions,  ///< Blocking, as io_uring does not wait on a socket that says it never blocks.
  };
  Dialer(const Options& options, Mode mode);

  /// What dial() or open() made of it. Errors are values: thousands of them are a result.
  struct Dialed {
    OwnedFd fd;     ///< Also after EINPROGRESS, which is no failure on a non-blocking socket.
    int error = 0;  ///< The errno of the call that failed.
  };
  /// Opens a socket and connects it. `turn` chooses the client's address: count it up.
  [[nodiscard]] Dialed dial(std::size_t turn) const;
  [[nodiscard]] const SocketAddress& target() const { return target_; }

  /// The two halves of it, for who wants to set options between them.
  [[nodiscard]] Dialed open(std::size_t turn) const;
  /// Returns the errno, 0 for none.
  [[nodiscard]] int connect(int fd) const;

 private:
  [[nodiscard]] bool prepare(int fd, std::size_t turn) const;

  SocketAddress target_;
  Mode mode_;
  std::vector<SocketAddress> sources_;  // empty: the kernel chooses
  bool no_delay_;
  timeval timeout_;
};

}  // namespace c10k
