// A listener as a source of connections: what every process does that accepts for itself.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ipc/handoff.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

/// The listener itself is of no use any more, to whichever process has it: a successor would fail as well.
class ListenerError : public SystemError {
 public:
  using SystemError::SystemError;
};

/// accept4 with its errors sorted. Holds one descriptor in reserve so that a process at its limit
/// can still take a connection and close it visibly, rather than spin on EMFILE or leave it
/// hanging.
class AcceptQueueReader {
 public:
  /// Borrows `listener` (non-blocking). Ids count up from `first_id`. Takes all that waits, as far
  /// as the batch has room, or one a call.
  AcceptQueueReader(int listener, bool drain, std::uint64_t first_id);

  /// The connections accepted, non-blocking and close-on-exec; the state is would_block once the
  /// queue is empty, starved when the kernel lacks memory. Returns at the first error worth
  /// counting. Throws ListenerError for EBADF, EINVAL and the like.
  ReceiveResult accept(std::span<Received> batch);
  /// The same, but without a descriptor to accept with it sheds nothing: the state is at_limit.
  ReceiveResult accept_within_limit(std::span<Received> batch);
  /// Accepts one connection with the reserve's number and closes it. `error` is what accept said.
  ReceiveResult shed_one(int error);

  [[nodiscard]] int listener() const { return listener_; }
  [[nodiscard]] bool drains() const { return drain_; }
  /// For a connection that somebody else has accepted there.
  [[nodiscard]] ConnectionTag next_tag() {
    return {.id = next_id_++, .accepted_ns = monotonic_ns()};
  }

 private:
  int listener_;
  bool drain_;
  std::uint64_t next_id_;
  std::int64_t looked_at_ns_ = 0;
  OwnedFd reserve_;
};

/// Who accepts from a listener, and who wakes up for it.
enum class Sharing : std::uint8_t {
  none,       ///< One process alone.
  all_wake,   ///< Several processes, which all wake up.
  one_wakes,  ///< Several processes, of which one wakes up.
};

/// The same as a worker's source.
class ListenerSource : public ConnectionSource {
 public:
  ListenerSource(OwnedFd listener, bool drain, std::uint64_t first_id, Sharing sharing)
      : listener_(std::move(listener)),
        reader_(listener_.get(), drain, first_id),
        sharing_(sharing) {}
  /// For a worker of a pool.
  ListenerSource(OwnedFd listener, const LinkRequest& request, Sharing sharing);

  [[nodiscard]] int fd() const override { return listener_.get(); }
  ReceiveResult receive(std::span<Received> batch) override { return reader_.accept(batch); }
  [[nodiscard]] bool exclusive_wake_up() const override { return sharing_ == Sharing::one_wakes; }
  [[nodiscard]] bool brings_descriptors() const override { return false; }
  [[nodiscard]] AcceptQueueReader* sole_reader() override {
    return sharing_ == Sharing::none && reader_.drains() ? &reader_ : nullptr;
  }

 protected:
  [[nodiscard]] AcceptQueueReader& reader() { return reader_; }

 private:
  OwnedFd listener_;
  AcceptQueueReader reader_;
  Sharing sharing_;
};

/// Called in the worker, with its listener.
using MakeSource = std::function<std::unique_ptr<ConnectionSource>(OwnedFd listener)>;

/// The link of a method whose workers accept for themselves: no sink. The worker also keeps the
/// descriptors in `shared`, which are the method's.
[[nodiscard]] std::unique_ptr<Link> open_listener_link(OwnedFd listener, MakeSource make_source,
                                                       std::vector<int> shared = {});

/// Ids of the connections that a worker accepts for itself: the slot above 48 bits of count.
[[nodiscard]] constexpr std::uint64_t first_id_of_worker(std::size_t worker) {
  return (std::uint64_t{worker} + 1) << 48;
}

}  // namespace c10k
