// One method under measurement: a sender (this process), a receiver (a child) and the channel between.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "experiments/handoff_bench/connections.hpp"
#include "experiments/handoff_bench/receiver.hpp"
#include "ipc/process.hpp"
#include "ipc/registry.hpp"

namespace c10k {

/// What a rig is made for.
struct RigSetup {
  ConfiguredMethod method;
  std::size_t batch = 1;  ///< The size of the span given to send().
  bool floor = false;     ///< Nothing arrives that could be checked.
  bool alone = false;     ///< There is no receiver: what is sent is done.
  SharedBenchState state = std::make_shared<SharedArray<BenchState>>(1);
};

/// CPU time and context switches so far.
struct Usage {
  std::int64_t cpu_ns = 0;
  std::int64_t switches = 0;

  Usage operator-(const Usage& before) const {
    return {cpu_ns - before.cpu_ns, switches - before.switches};
  }
  Usage& operator+=(const Usage& more) {
    cpu_ns += more.cpu_ns;
    switches += more.switches;
    return *this;
  }
};

/// How full the channel was when nobody received.
struct Filled {
  std::uint64_t sent = 0;
  Channel state = Channel::more;
  int error = 0;
};

/// Hands one established TCP connection over and over; the contract lends it, so it stays good. (A
/// method that consumes it gets a new one each time.) Every wait is bounded: without progress for some
/// seconds, or when the receiver ends, it throws.
class Rig {
 public:
  explicit Rig(RigSetup setup);
  ~Rig();
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  [[nodiscard]] bool has_receiver() const { return !setup_.alone; }
  [[nodiscard]] BenchState& state() const { return (*setup_.state)[0]; }

  /// Whether each hand-over needs a connection of its own, for the method takes it away.
  [[nodiscard]] bool consumes() const { return setup_.method.entry->consumes_connection; }
  /// How many of `count` can be prepared at once: all, when there is nothing to prepare.
  [[nodiscard]] std::uint64_t most_prepared(std::uint64_t count) const;
  /// Ahead of a run that is timed: makes the connections that it consumes.
  void prepare(std::uint64_t count);

  /// Hands over `count`, at most what can be prepared, a batch at a time; returns when all have been taken and closed.
  void run(std::uint64_t count);
  /// One at a time to a receiver that sleeps: each from before send() to usable there.
  [[nodiscard]] std::vector<std::int64_t> latencies_ns(std::size_t count);
  /// Sends up to `most` while nobody receives; then all is received. With `count_calls` each side
  /// raises its flag for the tracer while it does the part that counts.
  Filled fill(std::uint64_t most, bool count_calls = false);

  [[nodiscard]] Usage sender_usage() const;
  [[nodiscard]] Usage receiver_usage() const;

  /// Ends the receiver, which must end well.
  void finish();

 private:
  void tell(Order order) const;
  void hear_ready();
  SendResult offer(std::uint64_t up_to);
  void wait_for_room(Channel state);
  void wait_received(std::uint64_t count);
  /// A moment, as nothing is known that would tell when the channel has room.
  void pause();
  void attend_until_quiet();
  [[noreturn]] void give_up() const;
  /// Sleeps until `fd` is ready, attending to the sink meanwhile.
  void wait_attending(int fd, short events);

  RigSetup setup_;
  ConnectionSupply connections_;  // before the sink, which borrows them
  OwnedFd progress_;
  OwnedFd control_;
  ChildProcess child_;  // before the sink, which borrows its pidfd
  std::unique_ptr<ConnectionSink> sink_;
  int attention_ = -1;
  std::vector<Handover> batch_;
  std::uint64_t sent_ = 0;
  std::uint64_t seen_ = 0;                      ///< Of `received`, when it was last looked at.
  std::uint64_t full_at_ = BenchState::nobody;  ///< What `sent_` was when the channel was full.
  std::int64_t full_since_ns_ = 0;
};

}  // namespace c10k
