#include "workers/worker.hpp"

#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "ipc/listener_source.hpp"
#include "ipc/process.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// How long to leave a source alone when something has run out.
constexpr std::int64_t pause_ns = 10'000'000;
/// A handshake that had begun at a listener is over after so long, unless a packet of it was lost (RFC 6298:
/// the first retransmission comes after 1 s). One that is not moves to another listener as this one closes;
/// but one that ends at the very instant of the close would be reset by the kernel.
constexpr std::int64_t handshake_ns = 1'000'000'000;

}  // namespace

Worker::Worker(const LoopEntry& loop, std::unique_ptr<ConnectionSource> source, bool accepts,
               const WorkerOptions& options, ProcessCounters& counters, ActiveCounts active,
               std::size_t slot)
    : options_(options),
      counters_(counters),
      active_(active),
      slot_(slot),
      accepts_(accepts),
      waits_to_accept_(accepts && options.wait_to_accept),
      serving_(loop.make(loop, options.echo, counters)),
      source_(std::move(source)),
      intake_(serving_->intake(
          *source_,
          !accepts || (options.max_connections == 0 && options.max_connections_per_worker == 0),
          [this] { take_batch(); })) {
  active_[slot_].set(0);
  service().on_closed([this] { count_closed(); });
  this->loop().at_end_of_turn([this] { counters_.turns.add(); });
  if (waits_to_accept_) intake_->pause();
}

Worker::~Worker() {
  if (source_) intake_->stop();
  service().on_closed(nullptr);
}

void Worker::run() {
  ::getrusage(RUSAGE_SELF, &counters_.at_ready);
  loop().run();
}

/// How many more this worker may have by --max-connections-per-worker.
std::size_t Worker::room_under_cap() {
  const std::size_t most = options_.max_connections_per_worker;
  const std::size_t open = service().active();
  // Who is sent to alone is not sent more, and may have to receive for those that it has.
  if (most == 0 || !(accepts_ || source_->shared())) return batch_.size();
  return open < most ? std::min(batch_.size(), most - open) : 0;
}

/// Until a connection ends here.
void Worker::leave_to_others() {
  if (!taking_ || std::exchange(at_limit_, true)) return;
  intake_->pause();
  source_->leave_to_others();
}

std::size_t Worker::room_under_limit_of_all() {
  const std::size_t most = options_.max_connections;
  if (!accepts_ || most == 0) return batch_.size();
  claimed_ = SharedLimit(active_, slot_, most).claim(service().active(), batch_.size());
  return claimed_;
}

void Worker::take_batch() {
  const std::size_t room_of_own = room_under_cap();
  if (room_of_own == 0) return leave_to_others();
  const std::size_t room_now =
      accepts_ ? std::min(room_of_own, room_under_limit_of_all()) : batch_.size();
  // At --max-connections the rest stays in the kernel's queue, as HAProxy's maxconn does it.
  if (room_now == 0) return pause();
  counters_.receive_steps.add();
  ReceiveResult result = intake_->receive({batch_.data(), room_now});
  // When the last completions of an intake that was stopped bring none, the source has gone.
  if (result.received != 0 && source_->brings_descriptors())
    check_arrived({batch_.data(), result.received});
  // A message of a shared channel may bring more than there is room for. The acceptor has its copies.
  while (!accepts_ && result.received > room_of_own) {
    batch_[--result.received].fd.reset();
    ++result.refused;
  }
  if (result.error != 0) counters_.errors.add(result.error);
  claimed_ = std::min(claimed_, result.received);

  std::uint64_t sequence = 0;
  if (accepts_) {
    counters_.accepted.add(result.received + result.shed);
    counters_.shed.add(result.shed);
    if (result.queue_length > counters_.queue_peak.get())
      counters_.queue_peak.set(result.queue_length);
  } else {
    // First which they are, then the count that makes the acceptor look: its copies of those
    // received are closed from now on, and not one byte has been read before.
    const std::uint64_t first = counters_.consumed.get() + 1;
    for (std::size_t i = 0; i < result.received + result.refused; ++i) {
      const bool refused = i >= result.received;
      counters_.consumed_copies[(first + i) % max_outstanding].set(batch_[i].tag.copy |
                                                                   (refused ? refused_flag : 0));
    }
    counters_.refused.add(result.refused);
    const std::int64_t now = result.received != 0 ? monotonic_ns() : 0;
    for (std::size_t i = 0; i < result.received; ++i) {
      counters_.hand_off.add(now - batch_[i].tag.accepted_ns);
    }
    counters_.received.add(result.received);
    counters_.consumed.add(result.received + result.refused);
    sequence = first;
  }
  for (std::size_t i = 0; i < result.received; ++i) {
    claimed_ -= std::min<std::size_t>(claimed_, 1);  // from here on the service counts it
    service().serve(std::move(batch_[i]), sequence == 0 ? 0 : sequence + i);
  }
  counters_.receive_steps.add();
  report_active();
  if (room_under_cap() == 0) {
    leave_to_others();
  } else if (result.refused != 0 || result.state == Channel::starved) {
    pause();
  }
  if (result.state == Channel::at_limit && taking_) {
    at_limit_ = true;
    intake_->pause();
  }
  if (result.state == Channel::closed) drain();
  end_if_drained();
}

/// Before they are counted as received, so that the acceptor still has its copies of the others.
void Worker::check_arrived(std::span<const Received> arrived) {
  for (const Received& one : arrived) {
    if (is_tcp_socket(one.fd.get())) continue;
    throw std::runtime_error(
        fmt::format("what arrived as connection {} is no TCP socket: the acceptor breaks the "
                    "protocol of their channel",
                    one.tag.id));
  }
}

void Worker::pause() {
  if (!taking_) return;
  intake_->pause();
  loop().after(pause_ns, [this] {
    if (taking_ && !at_limit_) intake_->resume();
  });
}

void Worker::report_active() {
  active_[slot_].set(service().active() + claimed_);
  if (source_) source_->report_load(service().active());
}

void Worker::count_closed() {
  report_active();
  if (std::exchange(at_limit_, false) && taking_) intake_->resume();
  end_if_drained();
}

void Worker::drain() {
  if (draining_) return;
  // What has completed its handshake would be reset when the listener closes: take it now. (What is
  // in a hand-off channel has been waited for by the acceptor, or taken as it died. As long as this
  // worker is to wait, a queue that is not its own is another server's.)
  if (accepts_ && taking_ && (!waits_to_accept_ || source_->owns_queue())) {
    const std::uint64_t last = counters_.accepted.get() + accept_queue(source_->fd()).length;
    std::uint64_t before = 0;
    do {
      before = counters_.accepted.get();
      take_batch();
    } while (counters_.accepted.get() != before && before < last);
  }
  take_no_more();
}

void Worker::take_no_more() {
  draining_ = true;
  loop().after(options_.drain_timeout_ns, [this] { end_drain(); });
  end_if_drained();
}

void Worker::acceptor_ended() {
  if (source_) source_->acceptor_ended();
  // What waits in the channel has no other owner any more.
  while (!accepts_ && taking_) {
    const std::uint64_t before = counters_.consumed.get();
    take_batch();
    if (counters_.consumed.get() == before) break;
  }
  drain();
}

void Worker::end_if_drained() {
  if (!draining_ || (source_ && source_->in_use())) return;
  if (std::exchange(taking_, false)) intake_->stop();
  if (!intake_->ended()) return;  // it has taken some that we have not seen: they come first
  source_.reset();
  if (on_left_) std::exchange(on_left_, nullptr)();
  if (service().active() == 0) loop().stop();
}

void Worker::retire(std::function<void()> left) {
  if (!accepts_) return service().leave();
  if (draining_ || on_left_) return;
  on_left_ = std::move(left);
  if (source_->owns_queue()) {
    // Nothing new is steered to it; what is on its way comes.
    return (void)loop().after(std::min(handshake_ns, options_.drain_timeout_ns),
                              [this] { drain(); });
  }
  take_no_more();
}

void Worker::look_again() {
  waits_to_accept_ = false;
  if (!taking_ || draining_ || at_limit_) return;
  intake_->pause();
  intake_->resume();
}

void Worker::end_drain() {
  // What waits in the accept queue, and was taken now, would only be closed.
  if (!draining_) take_no_more();
  counters_.closed_draining.add(service().active());
  service().close_all();
  loop().stop();
}

namespace {

/// What the acceptor says. It pokes a worker of which it has not heard: that makes its loop turn.
class ControlWatch : public EventHandler {
 public:
  ControlWatch(Worker& worker, int control) : worker_(worker), control_(control) {
    worker_.loop().watch(control_, {.read = true, .level = true}, *this);
  }
  void on_ready(Readiness) override { hear(); }
  /// All that has been said. A signal, or the acceptor's end, overtakes it.
  void hear() {
    char byte = 0;
    while (open_) {
      const ssize_t got = retry_eintr([&] { return ::recv(control_, &byte, 1, MSG_DONTWAIT); });
      if (got < 0 && errno == EAGAIN) return;
      // The other end has closed with a word of ours unread; its own words are still to be heard.
      if (got < 0 && errno == ECONNRESET) continue;
      if (got != 1) {  // its end is the acceptor's, which the pidfd tells
        open_ = false;
        worker_.loop().forget(control_, Removal::still_open);
      } else if (byte == control::look_again) {
        worker_.look_again();
      } else if (byte == control::retire) {
        worker_.retire([this] { say(control::left); });
      }
    }
  }
  /// An acceptor that has gone is told nothing.
  void say(char byte) const { (void)::send(control_, &byte, 1, MSG_NOSIGNAL); }

 private:
  Worker& worker_;
  int control_;
  bool open_ = true;
};

/// Sees the acceptor end. (By its pidfd: a socket's other end says nothing as long as any process holds
/// it, and where all share one table, all do.)
class AcceptorWatch : public EventHandler {
 public:
  AcceptorWatch(Worker& worker, ControlWatch& words, pid_t acceptor)
      : worker_(worker), words_(words), pidfd_(open_pidfd(acceptor)) {
    if (pidfd_ && ::getppid() == acceptor) {
      worker_.loop().watch(pidfd_.get(), {.read = true, .level = true}, *this);
    } else {
      ended();  // already
    }
  }
  void on_ready(Readiness) override {
    worker_.loop().forget(pidfd_.get(), Removal::still_open);
    ended();
  }

 private:
  void ended() {
    words_.hear();
    worker_.acceptor_ended();
  }

  Worker& worker_;
  ControlWatch& words_;
  OwnedFd pidfd_;
};

/// Ends the process as a signal would: what it has is lost or, where the acceptor has a copy, served by
/// others. A destructor would end those connections for everybody and count them as served.
[[noreturn]] void die(std::size_t slot, int code, std::string_view why) {
  fmt::print(stderr, "worker {} (process {}): {}\n", slot, ::getpid(), why);
  std::fflush(stderr);
  ::_exit(code);
}

}  // namespace

int run_worker_process(const LoopEntry& loop, std::unique_ptr<ConnectionSource> source,
                       bool accepts, const WorkerOptions& options, ProcessCounters& counters,
                       ActiveCounts active, std::size_t slot, OwnedFd channel, pid_t acceptor) {
  Worker worker(loop, std::move(source), accepts, options, counters, active, slot);
  ControlWatch words(worker, channel.get());
  // SIGINT stays blocked, as inherited: a terminal sends it to the whole group, and the acceptor
  // says when to drain.
  const SignalWatch signals(worker.loop(), {SIGTERM, SIGQUIT}, [&](int number) {
    words.hear();
    return number == SIGQUIT ? worker.end_drain() : worker.drain();
  });
  const AcceptorWatch watch(worker, words, acceptor);
  // Everything is open by now, and not one byte of a client has been read.
  if (!options.allowed_calls.empty()) forbid_other_calls(options.allowed_calls);
  words.say(control::ready);
  try {
    worker.run();
  } catch (const ListenerError& error) {
    die(slot, exit_do_not_restart,
        fmt::format("{}; no successor could accept there either", error.what()));
  } catch (const std::exception& error) {
    die(slot, 1, error.what());
  }
  return 0;
}

}  // namespace c10k
