#include "experiments/handoff_bench/receiver.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <stdexcept>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class Receiver {
 public:
  Receiver(ConnectionSource& source, const ReceiverSetup& setup)
      : source_(source), setup_(setup), state_((*setup.state)[0]) {}

  int run() {
    say(Order::ready);
    while (true) {
      state_.sleeps.store(++sleeps_, std::memory_order_release);
      // Held, it leaves its source alone: what is sent piles up in the channel.
      std::array<pollfd, 2> entries{
          {{setup_.control, POLLIN, 0}, {held_ ? -1 : source_.fd(), POLLIN, 0}}};
      checked([&] { return ::poll(entries.data(), entries.size(), -1); }, "poll");
      if (entries[0].revents != 0 && !obey()) return 0;
      if (entries[1].revents != 0) drain();
    }
  }

 private:
  void say(Order order) const {
    checked([&] { return ::send(setup_.control, &order, 1, MSG_NOSIGNAL); }, "send to the sender");
  }

  /// False at the end.
  bool obey() {
    Order order{};
    const auto size =
        checked([&] { return ::recv(setup_.control, &order, 1, 0); }, "recv from the sender");
    if (size == 0 || order == Order::end) return false;
    held_ = order == Order::hold;
    if (held_) {
      say(Order::ready);
    } else if (state_.count_calls_up_to.load() > received_) {
      state_.receiver_counts.store(true);
    }
    return true;
  }

  void drain() {
    ReceiveResult result;
    do {
      result = source_.receive(slots_);
      if (result.refused != 0 || result.state == Channel::starved)
        throw_system_error(result.error, "receive");
      if (result.state == Channel::closed) throw std::runtime_error("the source says closed");
      if (result.received != 0) take(result.received);
    } while (result.state == Channel::more);
  }

  void take(std::size_t count) {
    if (const std::int64_t sent_ns = state_.sent_ns.load(std::memory_order_relaxed); sent_ns != 0)
      state_.latencies_ns[received_ % BenchState::most_latencies].store(monotonic_ns() - sent_ns,
                                                                        std::memory_order_relaxed);
    for (std::size_t i = 0; i < count; ++i) {
      Received& connection = slots_[i];
      if (setup_.checked && (!connection.fd || connection.tag.id != received_ + i))
        throw std::runtime_error(fmt::format("connection {} arrived as {}, descriptor {}",
                                             received_ + i, connection.tag.id,
                                             connection.fd.get()));
      connection.fd.reset();
    }
    received_ += count;
    if (received_ == state_.count_calls_up_to.load(std::memory_order_relaxed))
      state_.receiver_counts.store(false);
    // The count, then the look at who waits for it; the sender does it the other way round, so one of
    // them sees the other (both seq_cst).
    state_.received.store(received_);
    if (received_ >= state_.wake_at.load() &&
        state_.wake_at.exchange(BenchState::nobody) != BenchState::nobody)
      (void)::eventfd_write(setup_.progress, 1);
  }

  ConnectionSource& source_;
  const ReceiverSetup& setup_;
  BenchState& state_;
  std::array<Received, receive_room> slots_;
  std::uint64_t received_ = 0;
  std::uint64_t sleeps_ = 0;
  bool held_ = false;
};

}  // namespace

int run_receiver(ConnectionSource& source, const ReceiverSetup& setup) {
  return Receiver(source, setup).run();
}

}  // namespace c10k
