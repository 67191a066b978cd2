// One connection at a time with blocking calls: connect, send, recv, close. What a thread of the engine
// `threads` does, and a process of the engine `processes`.
#pragma once

#include <cstddef>
#include <functional>

#include "experiments/client/dialer.hpp"
#include "experiments/client/payload.hpp"
#include "experiments/client/run.hpp"
#include "ipc/owned_fd.hpp"

namespace c10k {

/// The timeouts are those of the sockets (SO_SNDTIMEO for connect, SO_RCVTIMEO for the first recv of
/// an echo). Only a request or an echo that comes in pieces needs poll(2) to wait for the rest of
/// the time. One thread.
class BlockingSlot {
 public:
  /// `index` is the slot's number in its process. Borrows the others.
  BlockingSlot(Run& run, const Dialer& dialer, std::size_t index);
  ~BlockingSlot();
  BlockingSlot(BlockingSlot&&) noexcept = default;

  /// Makes all attempts of the slot in the phase, and calls `first_ended` after the first.
  void work_phase(const std::function<void()>& first_ended);

 private:
  Next attempt();
  Exchange::Step connect(std::int64_t& connected_ns);
  Exchange::Step exchange(std::int64_t started_ns);
  [[nodiscard]] bool wait_ready(int fd, std::int64_t deadline_ns) const;
  void close();

  Run& run_;
  const Dialer& dialer_;
  std::size_t index_;
  std::size_t dials_;  // slots begin at different client addresses
  OwnedFd fd_;
  std::uint64_t echoes_ = 0;  // on this connection
  std::int64_t free_since_ns_ = 0;
  Exchange exchange_;
};

}  // namespace c10k
