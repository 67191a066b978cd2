#include "experiments/handoff_bench/receiver.hpp"

#include <sys/epoll.h>
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
    watch(setup_.control, true);
    watch(source_.fd(), true);
    say(Order::ready);
    while (true) {
      state_.sleeps.store(++sleeps_, std::memory_order_release);
      // Level-triggered, as in a worker.
      std::array<epoll_event, 2> events{};
      const int ready =
          checked([&] { return ::epoll_wait(epoll_.get(), events.data(), events.size(), -1); },
                  "epoll_wait");
      for (int i = 0; i < ready; ++i) {
        if (events[i].data.fd == setup_.control) {
          if (!obey()) return 0;
        } else if (!held_) {
          drain();
        }
      }
    }
  }

 private:
  void watch(int fd, bool on) const {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    checked(
        [&] { return ::epoll_ctl(epoll_.get(), on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, &event); },
        "epoll_ctl {}", fd);
  }

  void say(Order order) const {
    checked([&] { return ::send(setup_.control, &order, 1, MSG_NOSIGNAL); }, "send to the sender");
  }

  /// False at the end.
  bool obey() {
    Order order{};
    const auto size =
        checked([&] { return ::recv(setup_.control, &order, 1, 0); }, "recv from the sender");
    if (size == 0 || order == Order::end) return false;
    // Held, it leaves its source alone: what is sent piles up in the channel.
    held_ = order == Order::hold;
    watch(source_.fd(), !held_);
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
  OwnedFd epoll_{checked([] { return ::epoll_create1(EPOLL_CLOEXEC); }, "epoll_create1")};
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
