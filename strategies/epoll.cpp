// epoll(7), edge-triggered: the kernel keeps the set and reports each change once.
//
// A registration belongs to the open file, not to the number: as long as any process holds the file,
// closing our number does not end its events. So each registration carries a generation, and an event
// of an earlier one is dropped.
#include <sys/epoll.h>

#include <array>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/syscall.hpp"
#include "strategies/poller.hpp"

namespace c10k {
namespace {

class EpollPoller : public Poller {
 public:
  std::span<const Event> wait(std::int64_t timeout_ns) override {
    events_.clear();
    // epoll_pwait2 is epoll_wait with the timeout in nanoseconds (Linux 5.11).
    const int ready =
        ::epoll_pwait2(epoll_.get(), kernel_events_.data(), static_cast<int>(kernel_events_.size()),
                       WaitTime(timeout_ns).get(), nullptr);
    if (ready < 0 && errno != EINTR) throw_system_error(errno, "epoll_pwait2 {}", epoll_.get());
    for (int i = 0; i < ready; ++i) {
      const epoll_event& event = kernel_events_[static_cast<std::size_t>(i)];
      const auto fd = static_cast<std::size_t>(event.data.u64 & 0xffffffff);
      if (entries_[fd].generation != event.data.u64 >> 32) continue;
      const bool broken = (event.events & (EPOLLERR | EPOLLHUP)) != 0;
      events_.push_back({static_cast<int>(fd),
                         {.read = broken || (event.events & EPOLLIN) != 0,
                          .write = broken || (event.events & EPOLLOUT) != 0,
                          .read_to_end = broken || (event.events & (EPOLLRDHUP | EPOLLPRI)) != 0}});
    }
    return events_;
  }

  void update(int fd, Interest interest) override {
    const auto number = static_cast<std::size_t>(fd);
    if (number >= entries_.size()) entries_.resize(number + 1);
    Entry& entry = entries_[number];
    // A registration with EPOLLEXCLUSIVE cannot be changed (EINVAL), nor can it wait for nothing.
    if (entry.registered && interest.exclusive) unregister(fd);
    if (interest.exclusive && !interest.read) return;
    epoll_event event{};
    // EPOLLRDHUP and EPOLLPRI may not be combined with EPOLLEXCLUSIVE.
    if (interest.read)
      event.events |= interest.exclusive ? EPOLLIN : EPOLLIN | EPOLLRDHUP | EPOLLPRI;
    if (interest.write) event.events |= EPOLLOUT;
    if (!interest.level) event.events |= EPOLLET;
    if (interest.exclusive) event.events |= EPOLLEXCLUSIVE;
    event.data.u64 = std::uint64_t{entry.generation} << 32 | number;
    const int operation = entry.registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    checked([&] { return ::epoll_ctl(epoll_.get(), operation, fd, &event); }, "epoll_ctl {} {}",
            operation, fd);
    entry.registered = true;
  }

  void remove(int fd, Removal why) override {
    Entry& entry = entries_[static_cast<std::size_t>(fd)];
    if (why == Removal::still_open && entry.registered) unregister(fd);
    entry.registered = false;
    ++entry.generation;
  }

 private:
  struct Entry {
    std::uint32_t generation = 0;
    bool registered = false;
  };

  void unregister(int fd) {
    checked([&] { return ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); },
            "epoll_ctl DEL {}", fd);
    entries_[static_cast<std::size_t>(fd)].registered = false;
  }

  OwnedFd epoll_{checked([] { return ::epoll_create1(EPOLL_CLOEXEC); }, "epoll_create1")};
  std::vector<Entry> entries_;  // by descriptor
  std::array<epoll_event, 512> kernel_events_;
  std::vector<Event> events_;
};

}  // namespace

PollerEntry epoll_poller() {
  return {.name = "epoll",
          .summary = "epoll(7), edge-triggered and drained",
          .edge_triggered = true,
          .exclusive = true,
          .update_is_syscall = true,
          .calls = CallGroup::wait_epoll,
          .make = []() -> std::unique_ptr<Poller> { return std::make_unique<EpollPoller>(); }};
}

}  // namespace c10k
