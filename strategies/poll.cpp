// poll(2): an array of what to wait for, copied in at every call; its answers stand in the same array.
#include <poll.h>

#include <vector>

#include "ipc/syscall.hpp"
#include "strategies/poller.hpp"

namespace c10k {
namespace {

class PollPoller : public Poller {
 public:
  std::span<const Event> wait(std::int64_t timeout_ns) override {
    events_.clear();
    // ppoll is poll with the timeout in nanoseconds.
    int ready = ::ppoll(entries_.data(), entries_.size(), WaitTime(timeout_ns).get(), nullptr);
    if (ready < 0 && errno != EINTR)
      throw_system_error(errno, "poll of {} descriptors", entries_.size());
    for (std::size_t i = 0; ready > 0 && i < entries_.size(); ++i) {
      const pollfd& entry = entries_[i];
      if (entry.revents == 0) continue;
      --ready;
      const bool broken = (entry.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
      events_.push_back({entry.fd,
                         {.read = broken || (entry.revents & POLLIN) != 0,
                          .write = broken || (entry.revents & POLLOUT) != 0}});
    }
    return events_;
  }

  void update(int fd, Interest interest) override {
    const auto number = static_cast<std::size_t>(fd);
    if (number >= places_.size()) places_.resize(number + 1, absent);
    if (places_[number] == absent) {
      places_[number] = entries_.size();
      entries_.push_back({fd, 0, 0});
    }
    entries_[places_[number]].events =
        static_cast<short>((interest.read ? POLLIN : 0) | (interest.write ? POLLOUT : 0));
  }

  void remove(int fd, Removal) override {
    // The last one moves into the gap, so that the array stays dense.
    std::size_t& place = places_[static_cast<std::size_t>(fd)];
    places_[static_cast<std::size_t>(entries_.back().fd)] = place;
    entries_[place] = entries_.back();
    entries_.pop_back();
    place = absent;
  }

 private:
  static constexpr std::size_t absent = ~std::size_t{0};

  std::vector<pollfd> entries_;
  std::vector<std::size_t> places_;  // descriptor -> index in entries_
  std::vector<Event> events_;
};

}  // namespace

PollerEntry poll_poller() {
  return {.name = "poll",
          .summary = "poll(2): one array, copied in at every call",
          .calls = CallGroup::wait_poll,
          .make = []() -> std::unique_ptr<Poller> { return std::make_unique<PollPoller>(); }};
}

}  // namespace c10k
