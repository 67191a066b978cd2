// Hands accepted connections to workers and keeps a copy of each until its worker has it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "acceptor/dispatch_policy.hpp"
#include "acceptor/hand_on.hpp"
#include "acceptor/kept_copies.hpp"
#include "acceptor/supervisor.hpp"
#include "ipc/handoff.hpp"
#include "ipc/latency_histogram.hpp"
#include "strategies/event_loop.hpp"
#include "workers/counters.hpp"

namespace c10k {

/// Books of the hand-off, from the acceptor's side.
struct DispatchCounts {
  std::vector<std::uint64_t> handed;      ///< by slot
  std::vector<std::uint64_t> taken_back;  ///< by slot: refused, or not received at a death
  std::vector<std::uint64_t> rescued;     ///< by slot: received, and alive after its worker's death
  std::vector<std::uint64_t> handed_back;  ///< by slot: received, and given up alive
  std::uint64_t redelivered = 0;   ///< handed over again: refused, not yet received, or rescued
  std::uint64_t not_retained = 0;  ///< under --retain: no descriptor was left to keep a copy
  std::uint64_t shed = 0;          ///< closed after too many refusals, or for want of a resource
  std::uint64_t abandoned = 0;     ///< closed at the end of a drain, in no worker
  std::uint64_t lost = 0;          ///< a worker died with them, or gave them back, touched

  std::map<int, std::uint64_t> errors;  ///< of sending, by errno

  // For a policy that goes by load: how old the figures were when what they decided had been sent, and
  // by how many connections a worker's figure was wrong by then, at most.
  LatencyHistogram load_age;
  std::uint64_t load_error_max = 0;
};

/// How long the acceptor keeps a copy of a connection that a worker has (--retain), and which of them
/// another worker takes over when that one dies.
enum class Retain : std::uint8_t {
  none,       ///< Until it sees that the worker has it: what nothing was read from or written to.
  untouched,  ///< To its end: the same.
  between_requests,  ///< To its end: also that of which all that was read has been echoed.
};

class Dispatcher {
 public:
  /// Keeps `most_retained` copies of what lives in workers; a connection beyond that has none, as without
  /// --retain. Where the acceptor chooses the worker, none is handed more than `most_per_worker` that have
  /// not ended (0: any number).
  Dispatcher(EventLoop& loop, std::size_t workers, const PolicyEntry& policy,
             const MethodFacts& method, Retain retain, std::size_t most_retained,
             std::size_t most_per_worker = 0);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  /// Takes a connection over, to be handed out at the next flush().
  void add(Received connection) { pending_.push_back(std::move(connection)); }
  /// Hands over what waits, as far as the channels have room. What finds none stays, in order, and
  /// goes when a channel has room again.
  void flush();
  /// Closes the copies of what workers have received; call it each turn.
  void collect();

  /// True while connections wait because every channel is full: accepting more would only move the
  /// queue from the kernel, which bounds it, to here.
  [[nodiscard]] bool congested() const { return !pending_.empty(); }
  /// Connections that no channel has taken yet.
  [[nodiscard]] std::size_t waiting() const { return pending_.size(); }
  /// Connections that are in no worker yet, as far as collect() has seen.
  [[nodiscard]] std::size_t in_hand_off() const;
  /// Copies kept of connections that live in a worker.
  [[nodiscard]] std::size_t retained() const { return kept_.retained_open(); }
  /// Gives up the copies of what lives in workers, and keeps none from now on.
  void release_retained();
  /// Connections handed over or waiting, and not ended.
  [[nodiscard]] std::size_t open() const;
  /// Those of one worker; with a shared channel also what nobody has pulled.
  [[nodiscard]] std::size_t open(std::size_t slot) const;
  /// Calls `action` once when nothing is in the hand-off any more.
  void when_empty(std::function<void()> action);
  /// Gives up: closes what waits, and what a channel holds when its worker ends without it.
  void abandon();

  /// Another server has taken over: what waits, and what workers hand back, goes to it over this socket,
  /// and no longer to workers, until that server ends (of which its pidfd tells, if there is one).
  void hand_on(OwnedFd successor, OwnedFd pidfd);
  /// Sent to it, and not known to be adopted.
  [[nodiscard]] std::size_t on_their_way() const {
    return successor_ ? successor_->on_their_way() : 0;
  }
  /// How many it has adopted.
  [[nodiscard]] std::uint64_t handed_on() const { return successor_ ? successor_->adopted() : 0; }
  /// Tells a worker of which connections there is a copy, before it gives up any.
  void mark_retained(WorkerProcess& worker) const;
  /// Calls `action` once when nothing is in the hand-off, and no connection of a worker is left that the
  /// others could take over.
  void when_gone(std::function<void()> action);

  /// With a shared channel it may receive from now on; nothing is sent for it before it is ready.
  void worker_started(WorkerProcess& worker);
  void worker_ready(WorkerProcess& worker);
  void worker_ended(WorkerProcess& worker);

  [[nodiscard]] const DispatchCounts& counts() const { return counts_; }

 private:
  class Channel;  // a worker's sink with what is in flight through it

  Received take_from_dead(std::uint32_t number);
  std::vector<Received> rescue(std::size_t slot);
  void take_if_whole(std::uint32_t number, std::size_t slot, std::vector<Received>& whole);
  [[nodiscard]] bool is_whole(const Received& copy) const;
  void close_touched(std::size_t slot, std::vector<Received>& refused);

  void redeliver(std::size_t slot, std::vector<Received> taken_back, bool refused);
  void take_back(std::size_t slot, std::vector<Received>& connections);
  [[nodiscard]] bool all_full() const;
  void settle();
  std::size_t collect_workers();
  void shed_if_starved();
  void note_staleness(std::int64_t looked_ns);
  void schedule();

  EventLoop& loop_;
  const PolicyEntry& policy_entry_;
  std::unique_ptr<DispatchPolicy> policy_;
  bool shared_channel_;    // all workers pull from one channel, whichever sink is used
  bool copies_are_whole_;  // a copy is the connection, also when a worker has received it
  Retain retain_;
  std::size_t most_retained_;
  std::size_t most_per_worker_;
  std::deque<Received> pending_;
  KeptCopies kept_;
  std::vector<std::unique_ptr<Channel>> channels_;  // by slot; null while the worker is dead
  std::vector<WorkerLoad> loads_;                   // by slot; kept to spare allocations
  DispatchCounts counts_;
  std::function<void()> when_empty_;
  std::function<void()> when_gone_;
  std::unique_ptr<HandOn> successor_;
  bool handing_on_ = false;  // the successor lives
  bool abandoning_ = false;
  bool settling_ = false;  // a worker of a shared channel has died: nothing is sent for now
  std::vector<std::pair<std::uint32_t, std::uint64_t>> suspects_;  // copies it may have pulled, ids
  std::uint64_t timer_ = 0;
  std::int64_t idle_delay_ns_ = 0;
};

}  // namespace c10k
