#include "acceptor/dispatcher.hpp"

#include <algorithm>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// While connections wait for room that no descriptor announces: how soon to look again.
constexpr std::int64_t retry_ns = 1'000'000;
/// While copies wait for their worker: how soon to look, doubled each time nothing has moved.
constexpr std::int64_t first_look_ns = 2'000'000;
constexpr std::int64_t longest_look_ns = 64'000'000;

}  // namespace

/// A worker's channel: what has been sent and not been seen to arrive. The copies stand in the
/// order of their sequence numbers, which is the order in which the worker consumes them.
class Dispatcher::Channel : public EventHandler {
 public:
  Channel(Dispatcher& dispatcher, WorkerProcess& worker)
      : dispatcher_(dispatcher), worker_(worker) {}
  ~Channel() override { unwatch(); }

  [[nodiscard]] bool eligible() const {
    return !blocked_ && copies_.size() + batch_.size() < max_outstanding;
  }
  /// Handed to the worker and not ended, as far as its counters say by now.
  [[nodiscard]] std::uint64_t open() const {
    return sent_ + batch_.size() - worker_.counters().refused.get() -
           worker_.counters().finished.get();
  }
  [[nodiscard]] std::size_t in_flight() const { return copies_.size(); }

  void add(Received connection) {
    batch_.push_back({connection.fd.get(), connection.tag});
    copies_of_batch_.push_back(std::move(connection));
  }

  /// Sends the batch. What was not taken goes back to the front of `pending`, in its order.
  std::size_t send(std::deque<Received>& pending) {
    if (batch_.empty()) return 0;
    const SendResult result = worker_.sink->send(batch_);
    for (std::size_t i = 0; i < result.taken; ++i)
      copies_.push_back(std::move(copies_of_batch_[i]));
    for (std::size_t i = batch_.size(); i > result.taken; --i) {
      pending.push_front(std::move(copies_of_batch_[i - 1]));
    }
    sent_ += result.taken;
    batch_.clear();
    copies_of_batch_.clear();
    if (result.state != c10k::Channel::more) block(result.state);
    return result.taken;
  }

  /// Closes the copies of what has arrived; gives back what was refused. Returns how many left.
  std::size_t collect(std::vector<Received>& refused) {
    const ProcessCounters& counters = worker_.counters();
    const std::uint64_t consumed = counters.consumed.get();
    if (consumed == seen_ || consumed > sent_)
      return 0;  // a worker cannot have more than it was sent
    const std::uint64_t refusals = counters.refused.get();
    const std::size_t before = copies_.size();
    while (seen_ < consumed) {
      ++seen_;
      Received& copy = copies_.front();
      if (refused_seen_ < refusals &&
          counters.refused_sequences[refused_seen_ % max_outstanding].get() == seen_) {
        ++refused_seen_;
        refused.push_back(std::move(copy));
      }
      copies_.pop_front();  // closes it
    }
    worker_.counters().released.set(seen_);
    return before - copies_.size();
  }

  /// Everything that has not arrived.
  std::deque<Received> take_copies() { return std::exchange(copies_, {}); }

  void unblock() {
    unwatch();
    blocked_ = false;
  }
  [[nodiscard]] bool needs_timer() const { return blocked_ && !watching_; }

  void on_ready(Readiness) override {
    unblock();
    dispatcher_.flush();
  }

 private:
  void block(c10k::Channel state) {
    // Closed: the pidfd will say so; until then nothing can be sent.
    blocked_ = true;
    if (state != c10k::Channel::would_block || worker_.sink->writable_fd() < 0) return;
    dispatcher_.loop_.watch(worker_.sink->writable_fd(), {.write = true}, *this);
    watching_ = true;
  }
  void unwatch() {
    if (watching_) dispatcher_.loop_.forget(worker_.sink->writable_fd(), Removal::still_open);
    watching_ = false;
  }

  Dispatcher& dispatcher_;
  WorkerProcess& worker_;
  std::deque<Received> copies_;
  std::vector<Handover> batch_;
  std::vector<Received> copies_of_batch_;
  std::uint64_t sent_ = 0;
  std::uint64_t seen_ = 0;
  std::uint64_t refused_seen_ = 0;
  bool blocked_ = false;
  bool watching_ = false;
};

Dispatcher::Dispatcher(EventLoop& loop, std::size_t workers, const PolicyEntry& policy)
    : loop_(loop), policy_(policy.make()), channels_(workers), loads_(workers) {
  counts_.handed.resize(workers);
  counts_.taken_back.resize(workers);
}

Dispatcher::~Dispatcher() {
  if (timer_ != 0) loop_.cancel(timer_);
}

void Dispatcher::worker_ready(WorkerProcess& worker) {
  channels_[worker.slot] = std::make_unique<Channel>(*this, worker);
  flush();
}

void Dispatcher::worker_ended(WorkerProcess& worker) {
  const std::unique_ptr<Channel> channel = std::move(channels_[worker.slot]);
  if (!channel) return;
  std::vector<Received> again;
  channel->collect(again);
  // What it had not received it cannot have touched: somebody else takes it.
  for (Received& copy : channel->take_copies()) again.push_back(std::move(copy));
  redeliver(worker.slot, std::move(again), false);
  flush();
}

void Dispatcher::redeliver(std::size_t slot, std::vector<Received> taken_back, bool refused) {
  counts_.taken_back[slot] += taken_back.size();
  if (abandoning_) {
    counts_.abandoned += taken_back.size();
    return;
  }
  // When every worker has refused it twice (and rested after each time), nobody has a descriptor for
  // it: its client is better off with an end than with silence.
  const std::size_t most_attempts = 2 * channels_.size();
  for (Received& connection : taken_back) {
    if (++connection.tag.attempt > most_attempts && refused) {
      ++counts_.shed;
      connection.fd.reset();
      continue;
    }
    ++counts_.redelivered;
    pending_.push_back(std::move(connection));
  }
}

void Dispatcher::flush() {
  while (!pending_.empty()) {
    for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
      const auto& channel = channels_[slot];
      loads_[slot] = {channel != nullptr && channel->eligible(),
                      channel != nullptr ? channel->open() : 0};
    }
    std::size_t assigned = 0;
    while (!pending_.empty()) {
      const int chosen = policy_->choose(loads_);
      if (chosen < 0) break;
      const auto slot = static_cast<std::size_t>(chosen);
      channels_[slot]->add(std::move(pending_.front()));
      pending_.pop_front();
      ++assigned;
      ++loads_[slot].open;
      loads_[slot].eligible = channels_[slot]->eligible();
    }
    if (assigned == 0) break;
    // Those that a full channel gives back are offered to the others in the next round.
    for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
      if (channels_[slot]) counts_.handed[slot] += channels_[slot]->send(pending_);
    }
  }
  schedule();
}

void Dispatcher::collect() {
  std::size_t moved = 0;
  for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
    if (!channels_[slot]) continue;
    std::vector<Received> refused;
    moved += channels_[slot]->collect(refused);
    redeliver(slot, std::move(refused), true);
  }
  if (moved != 0) {
    idle_delay_ns_ = 0;
    // Room in a channel that announces none.
    for (const auto& channel : channels_) {
      if (channel && channel->needs_timer()) channel->unblock();
    }
    if (!pending_.empty()) flush();
  }
  if (when_empty_ && in_hand_off() == 0) std::exchange(when_empty_, nullptr)();
  schedule();
}

void Dispatcher::schedule() {
  if (timer_ != 0 || in_hand_off() == 0) return;
  std::int64_t delay = retry_ns;
  if (pending_.empty()) {
    idle_delay_ns_ = std::clamp(idle_delay_ns_ * 2, first_look_ns, longest_look_ns);
    delay = idle_delay_ns_;
  }
  timer_ = loop_.after(delay, [this] {
    timer_ = 0;
    for (const auto& channel : channels_) {
      if (channel && channel->needs_timer()) channel->unblock();
    }
    if (!pending_.empty()) flush();
    schedule();  // collect() runs at the end of this turn
  });
}

std::size_t Dispatcher::in_hand_off() const {
  std::size_t count = pending_.size();
  for (const auto& channel : channels_) count += channel ? channel->in_flight() : 0;
  return count;
}

std::size_t Dispatcher::open() const {
  std::size_t count = pending_.size();
  for (const auto& channel : channels_) count += channel ? channel->open() : 0;
  return count;
}

void Dispatcher::when_empty(std::function<void()> action) {
  if (in_hand_off() == 0) return action();
  when_empty_ = std::move(action);
}

void Dispatcher::abandon() {
  abandoning_ = true;
  counts_.abandoned += pending_.size();
  pending_.clear();
  if (when_empty_) std::exchange(when_empty_, nullptr)();
}

}  // namespace c10k
