// One worker as the dispatcher sees it. Only for dispatcher.cpp.
#pragma once

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "acceptor/dispatcher.hpp"

namespace c10k {

/// A worker's channel: what has been sent through it and not been seen to arrive.
class Dispatcher::Channel : public EventHandler {
 public:
  Channel(Dispatcher& dispatcher, WorkerProcess& worker)
      : dispatcher_(dispatcher), worker_(worker), attention_(*this) {}
  ~Channel() override { unwatch(); }

  void become_ready() {
    ready_ = true;
    guarded([this] { attention_.begin(); });
  }
  [[nodiscard]] bool ready() const { return ready_; }

  [[nodiscard]] bool eligible() const {
    // What one worker counts must not overtake itself in its record of what it has consumed.
    const std::size_t on_their_way =
        dispatcher_.shared_channel_ ? dispatcher_.kept_.size() : in_flight_ + batch_.size();
    return ready_ && !blocked_ && on_their_way < max_outstanding && !at_cap();
  }
  /// It has as many as one worker may have. Who pulls from a shared channel knows that for itself.
  [[nodiscard]] bool at_cap() const {
    const std::size_t most = dispatcher_.most_per_worker_;
    return most != 0 && !dispatcher_.shared_channel_ && open() >= most;
  }
  /// It has refused something for want of a descriptor, and none of its connections has ended since.
  [[nodiscard]] bool full() const {
    return full_ && worker_.counters().finished.get() == finished_when_full_;
  }
  /// Handed to the worker and not ended, as far as its counters say by now.
  [[nodiscard]] std::uint64_t open() const {
    const std::uint64_t begun = in_flight_ + batch_.size() + seen_;
    const std::uint64_t ended = worker_.counters().refused.get() +
                                worker_.counters().finished.get() +
                                worker_.counters().handed_back.get();
    return begun > ended ? begun - ended : 0;
  }

  void add(Received connection) {
    const Received& kept =
        dispatcher_.kept_.keep(std::move(connection), worker_.slot, dispatcher_.loop_.now_ns());
    batch_.push_back({kept.fd.get(), kept.tag});
  }

  /// Sends the batch. What was not taken goes back to the front of what waits, in its order.
  std::size_t send() {
    if (batch_.empty()) return 0;
    SendResult result{.state = c10k::Channel::closed};
    guarded([&] { result = worker_.sink->send(batch_); });
    for (std::size_t i = batch_.size(); i > result.taken; --i)
      dispatcher_.pending_.push_front(dispatcher_.kept_.take(batch_[i - 1].tag.copy));
    if (!dispatcher_.shared_channel_) in_flight_ += result.taken;
    batch_.clear();
    if (result.error != 0) ++dispatcher_.counts_.errors[result.error];
    if (result.state != c10k::Channel::more) block(result.state);
    starved_ = result.state == c10k::Channel::starved;
    return result.taken;
  }

  /// Closes the copies of what the worker has received, or retains them; gives back what it refused.
  /// Returns how many left.
  std::size_t collect(std::vector<Received>& refused, bool retain) {
    ProcessCounters& counters = worker_.counters();
    const std::uint64_t consumed = counters.consumed.get();
    if (consumed == seen_ || broken_) return 0;
    const std::size_t most = dispatcher_.shared_channel_ ? max_outstanding : in_flight_;
    if (consumed - seen_ > most) {
      drop("it counts connections that were not sent to it");
      return 0;
    }
    std::size_t left = 0;
    while (seen_ < consumed) {
      ++seen_;
      const std::uint64_t record = counters.consumed_copies[seen_ % max_outstanding].get();
      const std::uint64_t number = record & ~refused_flag;
      const std::size_t channel = dispatcher_.kept_.channel_of(number);
      // A worker has its say only about what was sent to it.
      const bool theirs = channel != KeptCopies::nowhere &&
                          (channel == worker_.slot || dispatcher_.shared_channel_) &&
                          !dispatcher_.kept_.is_retained(number);
      if (!theirs && dispatcher_.shared_channel_) continue;
      if (!theirs) {
        drop("it names a connection that was not sent to it");
        break;
      }
      if (!dispatcher_.shared_channel_) --in_flight_;
      if ((record & refused_flag) != 0) {
        refused.push_back(take(number));
        full_ = true;
        finished_when_full_ = counters.finished.get();
      } else {
        ++received_;
        if (!retain) {
          take(number);
        } else if (dispatcher_.kept_.retained_open() < dispatcher_.most_retained_) {
          dispatcher_.kept_.retain(number, worker_.slot);
        } else {
          release(number);
          dispatcher_.kept_.retain_number(number, worker_.slot);
          ++dispatcher_.counts_.not_retained;
        }
      }
      ++left;
    }
    if (!retain) counters.released.set(seen_);
    return left;
  }
  /// Of a worker that has ended: it may have died between counting what it received or gave up and saying
  /// which. The books go by what it said, as its connections do, and as far as it can have been so.
  void settle_counters(std::size_t rescued) {
    ProcessCounters& counters = worker_.counters();
    counters.received.set(received_);
    counters.handed_back.set(handed_back_);
    // A worker with a sink neither accepts nor adopts, and what it has served to its end it had received.
    for (Counter* none : {&counters.accepted, &counters.adopted, &counters.shed}) none->set(0);
    const std::uint64_t elsewhere = handed_back_ + rescued;
    const std::uint64_t most = received_ > elsewhere ? received_ - elsewhere : 0;
    counters.finished.set(std::min(counters.finished.get(), most));
    counters.finished_redelivered.set(
        std::min(counters.finished_redelivered.get(), counters.finished.get()));
  }

  /// How many have ended in the worker. Ask before collect(): what has ended by then has been received by
  /// then, and is found among the retained.
  [[nodiscard]] std::uint64_t ended() const { return worker_.counters().ended.get(); }
  /// Closes the copies of what has ended in the worker, and puts what it has given up alive among what
  /// waits. Returns how many.
  std::size_t collect_ended(std::uint64_t ended) {
    ProcessCounters& counters = worker_.counters();
    if (ended == ended_seen_ || broken_) return 0;
    if (ended - ended_seen_ > max_outstanding) {
      drop("it counts ends that it cannot have had");
      return 0;
    }
    std::size_t closed = 0;
    while (ended_seen_ < ended) {
      ++ended_seen_;
      const std::uint64_t record = counters.ended_copies[ended_seen_ % max_outstanding].get();
      const std::uint64_t number = record & ~handed_back_flag;
      if (!dispatcher_.kept_.is_retained(number) ||
          dispatcher_.kept_.channel_of(number) != worker_.slot)
        continue;  // it has been given up (release_retained), or is none of the worker's
      Received copy = take(number);
      ++closed;
      if ((record & handed_back_flag) == 0 || !copy.fd) continue;
      ++dispatcher_.counts_.handed_back[worker_.slot];
      ++handed_back_;
      if (dispatcher_.is_whole(copy)) {
        dispatcher_.pending_.push_back(std::move(copy));
      } else {  // it does not stand between requests, as an honest worker's would
        ++dispatcher_.counts_.lost;
      }
    }
    counters.ended_seen.set(ended_seen_);
    return closed;
  }
  void release() { worker_.counters().released.set(seen_); }

  void unblock() {
    if (broken_) return;
    unwatch();
    blocked_ = false;
  }
  [[nodiscard]] bool needs_timer() const { return blocked_ && !watching_ && !broken_; }
  [[nodiscard]] bool starved() const { return starved_; }
  [[nodiscard]] ConnectionSink& sink() { return *worker_.sink; }

  /// Whether what this worker had pulled by the time of note_step() has been counted.
  void note_step() { step_ = worker_.counters().receive_steps.get(); }
  [[nodiscard]] bool has_counted() const {
    return step_ % 2 == 0 || worker_.counters().receive_steps.get() != step_;
  }

  void on_ready(Readiness) override {
    unblock();
    dispatcher_.flush();
  }

 private:
  /// Lets the sink answer its worker.
  class Attention : public EventHandler {
   public:
    explicit Attention(Channel& channel) : channel_(channel) {}
    ~Attention() override { stop(); }
    void begin() {
      fd_ = channel_.worker_.sink->attention_fd();
      if (fd_ >= 0) channel_.dispatcher_.loop_.watch(fd_, {.read = true, .level = true}, *this);
    }
    void on_ready(Readiness) override {
      channel_.guarded([this] { channel_.worker_.sink->attend(); });
    }
    void stop() {
      if (fd_ >= 0) channel_.dispatcher_.loop_.forget(fd_, Removal::still_open);
      fd_ = -1;
    }

   private:
    Channel& channel_;
    int fd_ = -1;
  };

  template <typename Action>
  void guarded(Action&& action) {
    if (broken_) return;
    try {
      action();
    } catch (const BrokenProtocol& error) {
      drop(error.what());
    }
  }

  /// Ends a worker that breaks the protocol. Its pidfd says when it has ended; until then it is asked
  /// nothing, and has no say.
  void drop(const char* reason) {
    if (std::exchange(broken_, true)) return;
    fmt::print(stderr, "c10k-server: worker {} (process {}) breaks the protocol, {}: killed\n",
               worker_.slot, worker_.child.pid(), reason);
    worker_.child.signal(SIGKILL);
    unwatch();
    blocked_ = true;
    attention_.stop();
  }

  /// A copy that the worker says it has no use for any more.
  Received take(std::uint64_t number) {
    release(number);
    return dispatcher_.kept_.take(number);
  }
  void release(std::uint64_t number) {
    const Received& copy = dispatcher_.kept_.connection(number);
    if (copy.fd) worker_.sink->released({copy.fd.get(), copy.tag});
  }

  void block(c10k::Channel state) {
    // Closed: the pidfd will say so; until then nothing can be sent.
    blocked_ = true;
    if (broken_) return;
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
  Attention attention_;
  std::vector<Handover> batch_;
  std::size_t in_flight_ = 0;  // of a channel of its own
  std::uint64_t seen_ = 0;
  std::uint64_t received_ = 0;  // those of them that were not refused
  std::uint64_t ended_seen_ = 0;
  std::uint64_t handed_back_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t finished_when_full_ = 0;
  bool ready_ = false;
  bool full_ = false;
  bool blocked_ = false;
  bool broken_ = false;  // the worker has broken the protocol
  bool starved_ = false;
  bool watching_ = false;
};

}  // namespace c10k
