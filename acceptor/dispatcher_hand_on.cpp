// What the dispatcher does when another server has taken over.
#include "acceptor/dispatcher.hpp"

namespace c10k {

void Dispatcher::hand_on(OwnedFd successor, OwnedFd pidfd) {
  handing_on_ = true;
  successor_ =
      std::make_unique<HandOn>(loop_, std::move(successor), std::move(pidfd),
                               HandOn::Hooks{.moved = [this] { flush(); },
                                             .returned =
                                                 [this](std::vector<Received> ours, bool gone) {
                                                   if (gone) handing_on_ = false;
                                                   for (std::size_t i = ours.size(); i > 0; --i)
                                                     pending_.push_front(std::move(ours[i - 1]));
                                                   flush();
                                                 }});
}

void Dispatcher::when_gone(std::function<void()> action) {
  if (in_hand_off() == 0 && retained() == 0) return action();
  when_gone_ = std::move(action);
}

void Dispatcher::mark_retained(WorkerProcess& worker) const {
  for (const std::uint32_t number : kept_.numbers(worker.slot, true)) {
    if (kept_.is_open(number)) worker.counters().retained.set(number);
  }
}

}  // namespace c10k
