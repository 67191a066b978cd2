#include <signal.h>

#include <algorithm>
#include <utility>

#include "acceptor/dispatcher_channel.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// While connections wait for room that no descriptor announces: how soon to look again.
constexpr std::int64_t retry_ns = 1'000'000;
/// While copies wait for their worker: how soon to look, doubled each time nothing has moved.
constexpr std::int64_t first_look_ns = 2'000'000;
constexpr std::int64_t longest_look_ns = 64'000'000;
/// Added to a connection's attempts by a death of the worker that was to have it. Refusals count by one.
constexpr std::uint32_t one_death = 1U << 16;
/// Whoever has outlived so many workers may be what they die of.
constexpr std::uint32_t most_deaths = 8;
/// Whoever has been with a worker for so long before it died is not.
constexpr std::int64_t cleared_after_ns = 1'000'000'000;

std::uint32_t refusals_of(const Received& connection) {
  return connection.tag.attempt % one_death;
}
bool has_outlived_too_many(const Received& connection) {
  return connection.tag.attempt / one_death >= most_deaths;
}

}  // namespace

Dispatcher::Dispatcher(EventLoop& loop, std::size_t workers, const PolicyEntry& policy,
                       const MethodFacts& method, Retain retain, std::size_t most_retained,
                       std::size_t most_per_worker)
    : loop_(loop),
      policy_entry_(policy),
      policy_(policy.make()),
      shared_channel_(method.shared_channel),
      copies_are_whole_(method.why_not_retained() == nullptr),
      retain_(retain),
      most_retained_(most_retained),
      most_per_worker_(most_per_worker),
      channels_(workers),
      loads_(workers) {
  counts_.handed.resize(workers);
  counts_.taken_back.resize(workers);
  counts_.rescued.resize(workers);
  counts_.handed_back.resize(workers);
}

Dispatcher::~Dispatcher() {
  if (timer_ != 0) loop_.cancel(timer_);
}

void Dispatcher::worker_started(WorkerProcess& worker) {
  channels_[worker.slot] = std::make_unique<Channel>(*this, worker);
}

void Dispatcher::worker_ready(WorkerProcess& worker) {
  channels_[worker.slot]->become_ready();
  flush();
}

void Dispatcher::worker_ended(WorkerProcess& worker) {
  Channel* channel = channels_[worker.slot].get();
  if (channel == nullptr) return;
  std::vector<Received> again;
  const std::uint64_t ended = channel->ended();
  // Of what it had received, the copies not closed yet may be fit for somebody else. (One that it had
  // served to its end is not: as long as there was a copy, it ended the connection by a shutdown.)
  channel->collect(again, copies_are_whole_);
  channel->collect_ended(ended);
  close_touched(worker.slot, again);
  std::vector<Received> rescued = rescue(worker.slot);
  channel->settle_counters(rescued.size());
  if (shared_channel_) {
    // What it was sent is anybody's. What it had pulled and not counted is not known yet.
    settling_ = true;
  } else {
    // What it had not received it cannot have touched, if it is honest: somebody else takes it.
    for (const std::uint32_t number : kept_.numbers(worker.slot))
      take_if_whole(number, worker.slot, again);
  }
  take_back(worker.slot, again);
  channels_[worker.slot].reset();
  redeliver(worker.slot, std::move(again), false);
  counts_.redelivered += rescued.size();
  for (Received& connection : rescued) {
    connection.tag.attempt += one_death;
    pending_.push_back(std::move(connection));
  }
  flush();
}

Received Dispatcher::take_from_dead(std::uint32_t number) {
  const bool cleared = loop_.now_ns() - kept_.since_ns(number) >= cleared_after_ns;
  Received copy = kept_.take(number);
  if (cleared) copy.tag.attempt = refusals_of(copy);
  return copy;
}

/// Of the copies that a dead worker leaves, of what it had received and not ended: those that another
/// one can go on with. The others are closed.
std::vector<Received> Dispatcher::rescue(std::size_t slot) {
  std::vector<Received> rescued;
  for (const std::uint32_t number : kept_.numbers(slot, true)) {
    Received copy = take_from_dead(number);
    const StreamProgress progress = stream_progress(copy.fd.get());
    const bool untouched = progress.read == 0 && progress.written == 0;
    const bool whole =
        untouched || (retain_ == Retain::between_requests && progress.read == progress.written);
    if (progress.open_for_writing && whole && !abandoning_ && !has_outlived_too_many(copy))
      rescued.push_back(std::move(copy));
  }
  counts_.rescued[slot] += rescued.size();
  return rescued;
}

void Dispatcher::release_retained() {
  retain_ = Retain::none;
  for (const std::uint32_t number : kept_.numbers(KeptCopies::nowhere, true)) kept_.take(number);
  for (const auto& channel : channels_) {
    if (channel) channel->release();
  }
}

void Dispatcher::take_back(std::size_t slot, std::vector<Received>& connections) {
  ConnectionSink& sink = channels_[slot]->sink();
  const std::size_t lost = std::erase_if(connections, [&](const Received& connection) {
    return !sink.take_back({connection.fd.get(), connection.tag});
  });
  counts_.lost += lost;
  counts_.taken_back[slot] += lost;
}

/// After a death in a channel that all workers pull from. What the dead one had pulled and not counted
/// is what is still kept when all that was sent has been pulled and the living have counted theirs.
/// A worker that has received a connection and has not said so may have read from it.
void Dispatcher::take_if_whole(std::uint32_t number, std::size_t slot,
                               std::vector<Received>& whole) {
  Received copy = take_from_dead(number);
  if (is_whole(copy)) return whole.push_back(std::move(copy));
  ++counts_.lost;
  ++counts_.taken_back[slot];
}

/// Whether another worker can go on with it. The kernel says so, whatever the worker that had it says: all that
/// was read from it has been answered.
bool Dispatcher::is_whole(const Received& copy) const {
  if (!copies_are_whole_) return true;
  const StreamProgress progress = stream_progress(copy.fd.get());
  return progress.read == progress.written;
}

/// Of what a worker has refused. An honest one has not touched it; what another one has read from would leave
/// its client without an answer, and is better closed.
void Dispatcher::close_touched(std::size_t slot, std::vector<Received>& refused) {
  const std::size_t touched =
      std::erase_if(refused, [this](const Received& copy) { return !is_whole(copy); });
  counts_.lost += touched;
  counts_.taken_back[slot] += touched;
}

void Dispatcher::settle() {
  if (settling_) {
    const auto living = std::find_if(channels_.begin(), channels_.end(),
                                     [](const auto& channel) { return channel != nullptr; });
    if (living == channels_.end() || !(*living)->sink().drained()) return;
    settling_ = false;
    suspects_.clear();
    for (const std::uint32_t number : kept_.numbers())
      suspects_.emplace_back(number, kept_.id_of(number));
    for (const auto& channel : channels_) {
      if (channel) channel->note_step();
    }
  }
  if (suspects_.empty()) return;
  for (const auto& channel : channels_) {
    if (channel && !channel->has_counted()) return;
  }
  collect_workers();
  std::vector<Received> again;
  for (const auto& [number, id] : std::exchange(suspects_, {})) {
    // One that is retained has been counted by a living worker.
    if (kept_.channel_of(number) != KeptCopies::nowhere && kept_.id_of(number) == id &&
        !kept_.is_retained(number))
      take_if_whole(number, 0, again);
  }
  redeliver(0, std::move(again), false);
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
    if (!refused && has_outlived_too_many(connection)) {
      ++counts_.lost;
      connection.fd.reset();
      continue;
    }
    connection.tag.attempt += refused ? 1 : one_death;
    if (refused && refusals_of(connection) > most_attempts && all_full()) {
      ++counts_.shed;
      connection.fd.reset();
      continue;
    }
    ++counts_.redelivered;
    pending_.push_back(std::move(connection));
  }
}

bool Dispatcher::all_full() const {
  return std::none_of(channels_.begin(), channels_.end(), [](const auto& channel) {
    return channel && channel->ready() && !channel->full();
  });
}

void Dispatcher::flush() {
  if (handing_on_) {
    successor_->send(pending_);
    return schedule();
  }
  while (!pending_.empty() && !settling_) {
    // A full worker has fewer connections than the others: a policy that goes by load would choose it
    // again and again. When all are full they are asked nevertheless, and the attempts are counted.
    const bool ask_full = all_full();
    const std::int64_t looked_ns = policy_entry_.uses_load ? monotonic_ns() : 0;
    for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
      const auto& channel = channels_[slot];
      loads_[slot] = {channel != nullptr && channel->eligible() && (ask_full || !channel->full()),
                      channel != nullptr ? channel->open() : 0};
    }
    std::size_t assigned = 0;
    while (!pending_.empty()) {
      const std::uint64_t source =
          policy_entry_.uses_source ? source_of(pending_.front().fd.get()) : 0;
      const int chosen = policy_->choose(loads_, source);
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
      if (channels_[slot]) counts_.handed[slot] += channels_[slot]->send();
    }
    if (policy_entry_.uses_load) note_staleness(looked_ns);
  }
  schedule();
}

/// What the policy believed against what the counters say now that the batch is out.
void Dispatcher::note_staleness(std::int64_t looked_ns) {
  counts_.load_age.add(monotonic_ns() - looked_ns);
  for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
    if (!channels_[slot]) continue;
    const std::uint64_t now = channels_[slot]->open();
    const std::uint64_t believed = loads_[slot].open;
    counts_.load_error_max =
        std::max(counts_.load_error_max, now > believed ? now - believed : believed - now);
  }
}

std::size_t Dispatcher::collect_workers() {
  std::size_t moved = 0;
  for (std::size_t slot = 0; slot < channels_.size(); ++slot) {
    if (!channels_[slot]) continue;
    std::vector<Received> refused;
    const std::uint64_t ended = channels_[slot]->ended();
    moved += channels_[slot]->collect(refused, retain_ != Retain::none);
    moved += channels_[slot]->collect_ended(ended);
    if (refused.empty()) continue;
    close_touched(slot, refused);
    take_back(slot, refused);
    redeliver(slot, std::move(refused), true);
  }
  return moved;
}

void Dispatcher::collect() {
  if (collect_workers() != 0) {
    idle_delay_ns_ = 0;
    // Room in a channel that announces none.
    for (const auto& channel : channels_) {
      if (channel && channel->needs_timer()) channel->unblock();
    }
    if (!pending_.empty()) flush();
  }
  settle();
  if (when_empty_ && in_hand_off() == 0) std::exchange(when_empty_, nullptr)();
  if (when_gone_ && in_hand_off() == 0 && retained() == 0) std::exchange(when_gone_, nullptr)();
  schedule();
}

void Dispatcher::schedule() {
  if (timer_ != 0 || (in_hand_off() == 0 && kept_.retained() == 0)) return;
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
    shed_if_starved();
    schedule();  // collect() runs at the end of this turn
  });
}

/// When no channel can take anything for want of a resource and nothing is under way whose arrival
/// would free some, waiting helps nobody: the clients are better off with an end than with silence.
void Dispatcher::shed_if_starved() {
  std::size_t living = 0;
  std::size_t starved = 0;
  std::size_t unable = 0;  // a full worker is not offered anything while another has room
  for (const auto& channel : channels_) {
    if (!channel || !channel->ready()) continue;
    ++living;
    starved += channel->starved() ? 1 : 0;
    unable += channel->starved() || channel->full() ? 1 : 0;
  }
  if (pending_.empty() || starved == 0 || unable < living || kept_.size() != 0) return;
  counts_.shed += pending_.size();
  pending_.clear();
}

std::size_t Dispatcher::in_hand_off() const {
  return pending_.size() + kept_.size() + on_their_way();
}

std::size_t Dispatcher::open() const {
  // What is on its way through a shared channel is no worker's yet.
  std::size_t count = pending_.size() + (shared_channel_ ? kept_.size() : 0);
  for (const auto& channel : channels_) count += channel ? channel->open() : 0;
  return count;
}

std::size_t Dispatcher::open(std::size_t slot) const {
  return (channels_[slot] ? channels_[slot]->open() : 0) + (shared_channel_ ? kept_.size() : 0);
}

void Dispatcher::when_empty(std::function<void()> action) {
  if (in_hand_off() == 0) return action();
  when_empty_ = std::move(action);
}

void Dispatcher::abandon() {
  abandoning_ = true;
  counts_.abandoned += pending_.size();
  pending_.clear();
  if (successor_) successor_->leave();
  if (when_empty_) std::exchange(when_empty_, nullptr)();
}

}  // namespace c10k
