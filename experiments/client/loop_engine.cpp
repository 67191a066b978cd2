// One thread and one event loop for all connections: select, poll and epoll differ only in the
// poller.
//
// System calls of a crr attempt: socket, setsockopt and bind (with several client addresses),
// connect, send, epoll_ctl, recv, close, and a share of an epoll_pwait2. On loopback the handshake is
// over when connect returns EINPROGRESS: the segments of both sides are worked off before the call
// returns. So the request is sent at once, and only where that fails does the slot wait for
// writability.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "experiments/client/dialer.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/run.hpp"
#include "ipc/syscall.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {
namespace {

class LoopEngine;

/// One concurrent connection, used again for each attempt.
class Slot : public EventHandler, public DueMember {
 public:
  enum class State : std::uint8_t { closed, connecting, exchanging, idle };

  void on_ready(Readiness ready) override;

  LoopEngine* engine = nullptr;
  std::size_t index = 0;
  State state = State::closed;
  bool watched = false;
  bool watches_write = false;
  bool first = false;  // its first attempt of the phase
  OwnedFd fd;
  Exchange exchange;
  std::optional<Exchange::Step> lost;  // how an idle connection ended; the next attempt tells
  std::int64_t intended_ns = 0;
  std::int64_t started_ns = 0;
  std::int64_t connected_ns = 0;  // 0 where the attempt has opened no connection
  std::int64_t free_since_ns = 0;
  std::uint64_t echoes = 0;  // on this connection
};

/// Sees that the other processes of the run are through with the phase, too.
class PhaseWatch : public EventHandler {
 public:
  explicit PhaseWatch(LoopEngine& engine) : engine_(engine) {}
  void on_ready(Readiness ready) override;

 private:
  LoopEngine& engine_;
};

class LoopEngine {
 public:
  explicit LoopEngine(Run& run);
  void work();
  void on_ready(Slot& slot, Readiness ready);
  void next_phase();

 private:
  /// Says so when nothing of the phase is left to do.
  void turn_ended();
  void expect_phase();

  void start_another();
  void start_ready();
  /// When the next attempt is to start. Nothing while that time has not come (a timer is set), or
  /// when no more are to be made (then `ready_` is empty).
  [[nodiscard]] std::optional<std::int64_t> due_start(std::int64_t now_ns);
  void rest_ready();
  void attempt(Slot& slot, std::int64_t intended_ns, std::int64_t now_ns);
  void rest(Slot& slot);
  void send(Slot& slot);
  void receive(Slot& slot, bool to_end);
  void check_idle(Slot& slot);
  void end(Slot& slot, const Exchange::Step& step);

  void watch(Slot& slot, bool write);
  void close(Slot& slot);

  Run& run_;
  EventLoop loop_;
  Dialer dialer_;
  PhaseWatch phase_watch_{*this};
  DueList<Slot> timeouts_;
  DueList<Slot> pauses_;
  std::vector<Slot> slots_;
  std::deque<Slot*> ready_;            // to start; a queue, so that failing attempts do not recurse
  std::optional<std::int64_t> start_;  // taken, and not due yet
  bool waiting_ = false;               // for it, or to see whether the run has been stopped
  bool in_phase_ = false;
  std::size_t unstarted_ = 0;  // the first slot that has not yet begun the phase
  std::size_t working_ = 0;    // slots that have begun it and have not come to rest
  std::size_t dials_ = 0;
  std::array<char, 65'536> scratch_;
};

void Slot::on_ready(Readiness ready) {
  engine->on_ready(*this, ready);
}

void PhaseWatch::on_ready(Readiness) {
  engine_.next_phase();
}

LoopEngine::LoopEngine(Run& run)
    : run_(run),
      loop_(find_poller(run.options().engine)),
      dialer_(run.options(), Dialer::Mode::non_blocking),
      timeouts_(loop_, run.options().timeout_ns,
                [this](Slot& slot) {
                  end(slot, {Exchange::State::ended, Outcome::timeout});
                  start_ready();
                }),
      pauses_(loop_, refusal_pause_ns,
              [this](Slot& slot) {
                ready_.push_back(&slot);
                start_ready();
              }),
      slots_(run.slots()),
      dials_(run.process()) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].engine = this;
    slots_[i].index = i;
  }
}

void LoopEngine::work() {
  loop_.at_end_of_turn([this] { turn_ended(); });
  expect_phase();
  loop_.run();
  for (Slot& slot : slots_) {
    if (slot.fd) close(slot);
  }
}

void LoopEngine::expect_phase() {
  run_.phase_ended();
  loop_.watch(run_.phase_fd(), {.read = true, .level = true}, phase_watch_);
}

void LoopEngine::next_phase() {
  loop_.forget(run_.phase_fd(), Removal::still_open);
  if (!run_.next_phase()) return loop_.stop();
  in_phase_ = true;
  unstarted_ = 0;
  for (std::size_t i = 0; i < run_.phase().first_at_once; ++i) start_another();
  start_ready();
}

void LoopEngine::turn_ended() {
  if (!in_phase_ || working_ != 0 || unstarted_ != run_.phase().slots) return;
  in_phase_ = false;
  expect_phase();
}

void LoopEngine::start_another() {
  if (unstarted_ == run_.phase().slots) return;
  Slot& slot = slots_[unstarted_++];
  slot.first = true;
  slot.free_since_ns = loop_.now_ns();
  ++working_;
  ready_.push_back(&slot);
}

void LoopEngine::start_ready() {
  while (!ready_.empty()) {
    // In turn, so that an open rate spreads over all connections.
    Slot& slot = *ready_.front();
    if (slot.state == Slot::State::closed && !slot.lost && !run_.phase().connects) {
      ready_.pop_front();
      rest(slot);
      continue;
    }
    const std::int64_t now = monotonic_ns();
    const auto start = due_start(now);
    if (!start) return;
    ready_.pop_front();
    attempt(slot, *start, now);
  }
}

std::optional<std::int64_t> LoopEngine::due_start(std::int64_t now_ns) {
  if (!start_) {
    start_ = run_.take_start(now_ns);
    if (!start_) {
      rest_ready();
      return std::nullopt;
    }
  }
  if (*start_ <= now_ns) return std::exchange(start_, std::nullopt);
  if (run_.stopped()) {
    start_.reset();
    rest_ready();
  } else if (!waiting_) {
    waiting_ = true;
    loop_.after(std::min(*start_ - now_ns, Run::stop_check_ns), [this] {
      waiting_ = false;
      start_ready();
    });
  }
  return std::nullopt;
}

void LoopEngine::rest_ready() {
  while (!ready_.empty()) {
    Slot& slot = *ready_.front();
    ready_.pop_front();
    rest(slot);
  }
}

void LoopEngine::attempt(Slot& slot, std::int64_t intended_ns, std::int64_t now) {
  const bool connected = slot.state != Slot::State::closed;
  run_.began(intended_ns, now, slot.free_since_ns);
  slot.intended_ns = intended_ns;
  slot.started_ns = now;
  slot.connected_ns = 0;
  if (slot.lost) return end(slot, *std::exchange(slot.lost, std::nullopt));
  if (!connected) {
    auto [fd, error] = dialer_.dial(dials_++);
    if (error != 0 && error != EINPROGRESS) {
      return end(slot, {Exchange::State::ended, outcome_of_errno(error), error});
    }
    slot.fd = std::move(fd);
    slot.state = Slot::State::connecting;
    slot.connected_ns = monotonic_ns();
    slot.echoes = 0;
  } else {
    slot.state = Slot::State::exchanging;
  }
  slot.exchange.begin(run_.payload(), now, run_.options().server_closes);
  timeouts_.push(slot, now);
  send(slot);
}

void LoopEngine::rest(Slot& slot) {
  --working_;
  if (std::exchange(slot.first, false)) start_another();
}

void LoopEngine::send(Slot& slot) {
  const Exchange::Step step = slot.exchange.send(slot.fd.get());
  if (step.state == Exchange::State::ended) {
    // The handshake failed, or it has succeeded and the connection broke since.
    if (slot.state == Slot::State::connecting) slot.connected_ns = 0;
    return end(slot, step);
  }
  if (slot.state == Slot::State::connecting) {
    if (slot.exchange.untouched()) return watch(slot, true);
    slot.state = Slot::State::exchanging;
    run_.connection_opened();
    if (slot.watched) {
      slot.connected_ns = monotonic_ns();
      timeouts_.push(slot, slot.connected_ns);
    }
  }
  watch(slot, !slot.exchange.all_sent());
}

void LoopEngine::on_ready(Slot& slot, Readiness ready) {
  switch (slot.state) {
    case Slot::State::closed:
      break;
    case Slot::State::idle:
      check_idle(slot);
      break;
    case Slot::State::connecting:
      send(slot);
      break;
    case Slot::State::exchanging:
      if (ready.write && !slot.exchange.all_sent()) send(slot);
      if (ready.read && slot.state == Slot::State::exchanging) receive(slot, ready.read_to_end);
      break;
  }
  start_ready();
}

void LoopEngine::receive(Slot& slot, bool to_end) {
  while (true) {
    const Exchange::Step step = slot.exchange.receive(slot.fd.get(), 0, scratch_);
    if (step.state == Exchange::State::ended) return end(slot, step);
    if (step.state == Exchange::State::blocked) return;
    if (step.state == Exchange::State::drained && !to_end) return;
  }
}

// Nobody asked for anything, so whatever comes ends the connection. It must be closed here, as a
// poller that tells the level would tell it for ever.
void LoopEngine::check_idle(Slot& slot) {
  const ssize_t size =
      retry_eintr([&] { return ::recv(slot.fd.get(), scratch_.data(), scratch_.size(), 0); });
  if (size < 0 && errno == EAGAIN) return;
  const int error = size < 0 ? errno : 0;
  const Outcome outcome = size < 0    ? outcome_of_errno(error)
                          : size == 0 ? Outcome::eof
                                      : Outcome::mismatched;
  slot.lost = {Exchange::State::ended, outcome, error};
  close(slot);
}

void LoopEngine::end(Slot& slot, const Exchange::Step& step) {
  slot.unlink();
  const bool echoed = step.outcome == Outcome::echoed;
  // A clock reading less for each echo, where nothing has been waited for since.
  const std::int64_t now =
      echoed && !run_.options().server_closes ? slot.exchange.echoed_ns() : monotonic_ns();
  slot.free_since_ns = now;
  // Of a connect that is still under way, or has failed, there is no time to tell.
  const bool opened = slot.connected_ns != 0 && slot.state != Slot::State::connecting;
  const Next next = run_.ended(slot.index, {.outcome = step.outcome,
                                            .error = step.error,
                                            .intended_ns = slot.intended_ns,
                                            .started_ns = slot.started_ns,
                                            .connected_ns = opened ? slot.connected_ns : 0,
                                            .echoed_ns = echoed ? slot.exchange.echoed_ns() : 0,
                                            .ended_ns = now});
  if (slot.fd) {
    if (echoed && ++slot.echoes != run_.phase().requests_per_connection) {
      slot.state = Slot::State::idle;
    } else {
      close(slot);
    }
  }
  switch (next) {
    case Next::again:
      ready_.push_back(&slot);
      break;
    case Next::pause:
      pauses_.push(slot, now);
      break;
    case Next::rest:
      --working_;
      break;
  }
  if (std::exchange(slot.first, false)) start_another();
}

void LoopEngine::watch(Slot& slot, bool write) {
  if (!slot.watched) {
    loop_.watch(slot.fd.get(), {.read = true, .write = write}, slot);
  } else if (slot.watches_write != write) {
    loop_.change(slot.fd.get(), {.read = true, .write = write});
  }
  slot.watched = true;
  slot.watches_write = write;
}

void LoopEngine::close(Slot& slot) {
  if (std::exchange(slot.watched, false)) loop_.forget(slot.fd.get(), Removal::closing);
  if (slot.state != Slot::State::connecting) run_.connection_closed();
  slot.fd.reset();
  slot.state = Slot::State::closed;
}

}  // namespace

void run_loop_engine(Run& run) {
  LoopEngine(run).work();
}

}  // namespace c10k
