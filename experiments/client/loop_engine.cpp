// One thread and one event loop for all connections: select, poll and epoll differ only in the
// poller.
//
// System calls of a crr attempt: socket, setsockopt and bind (with several client addresses),
// connect, send, epoll_ctl, recv, close, and a share of an epoll_pwait2. On loopback the handshake is
// over when connect returns EINPROGRESS: the segments of both sides are worked off before the call
// returns. So the request is sent at once, and only where that fails does the slot wait for
// writability.
#include <sys/socket.h>

#include <array>
#include <utility>

#include "experiments/client/dialer.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/slot_engine.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class LoopEngine;

class LoopSlot : public EngineSlot, public EventHandler {
 public:
  enum class State : std::uint8_t { closed, connecting, exchanging, idle };

  void on_ready(Readiness ready) override;

  LoopEngine* engine = nullptr;
  State state = State::closed;
  bool watched = false;
  bool watches_write = false;
  OwnedFd fd;
};

class LoopEngine : public SlotEngine<LoopSlot> {
 public:
  LoopEngine(Run& run, EventLoop& loop)
      : SlotEngine(run, loop),
        loop_(loop),
        dialer_(run.options(), Dialer::Mode::non_blocking),
        dials_(run.process()) {
    for (LoopSlot& slot : slots_) slot.engine = this;
  }
  ~LoopEngine() override {
    for (LoopSlot& slot : slots_) {
      if (slot.fd) close(slot);
    }
  }

  void on_ready(LoopSlot& slot, Readiness ready);

 private:
  [[nodiscard]] bool has_connection(const LoopSlot& slot) const override {
    return slot.state != LoopSlot::State::closed;
  }
  void attempt(LoopSlot& slot) override;
  void timed_out(LoopSlot& slot) override { end(slot, {Exchange::State::ended, Outcome::timeout}); }

  void send(LoopSlot& slot);
  void receive(LoopSlot& slot, bool to_end);
  void check_idle(LoopSlot& slot);
  void end(LoopSlot& slot, const Exchange::Step& step);

  void watch(LoopSlot& slot, bool write);
  void close(LoopSlot& slot);

  EventLoop& loop_;
  Dialer dialer_;
  std::size_t dials_;
  std::array<char, 65'536> scratch_;
};

void LoopSlot::on_ready(Readiness ready) {
  engine->on_ready(*this, ready);
}

void LoopEngine::attempt(LoopSlot& slot) {
  if (slot.lost) return end(slot, *std::exchange(slot.lost, std::nullopt));
  if (!has_connection(slot)) {
    auto [fd, error] = dialer_.dial(dials_++);
    if (error != 0 && error != EINPROGRESS) {
      return end(slot, {Exchange::State::ended, outcome_of_errno(error), error});
    }
    slot.fd = std::move(fd);
    slot.state = LoopSlot::State::connecting;
    slot.connected_ns = monotonic_ns();
    slot.echoes = 0;
  } else {
    slot.state = LoopSlot::State::exchanging;
  }
  slot.exchange.begin(run_.payload(), slot.started_ns, run_.options().server_closes);
  timeouts_.push(slot, slot.started_ns);
  send(slot);
}

void LoopEngine::send(LoopSlot& slot) {
  const Exchange::Step step = slot.exchange.send(slot.fd.get());
  if (step.state == Exchange::State::ended) {
    // The handshake failed, or it has succeeded and the connection broke since.
    return end(slot, step);
  }
  if (slot.state == LoopSlot::State::connecting) {
    if (slot.exchange.untouched()) return watch(slot, true);
    slot.state = LoopSlot::State::exchanging;
    run_.connection_opened();
    if (slot.watched) {
      slot.connected_ns = monotonic_ns();
      timeouts_.push(slot, slot.connected_ns);
    }
  }
  watch(slot, !slot.exchange.all_sent());
}

void LoopEngine::on_ready(LoopSlot& slot, Readiness ready) {
  switch (slot.state) {
    case LoopSlot::State::closed:
      break;
    case LoopSlot::State::idle:
      check_idle(slot);
      break;
    case LoopSlot::State::connecting:
      send(slot);
      break;
    case LoopSlot::State::exchanging:
      if (ready.write && !slot.exchange.all_sent()) send(slot);
      if (ready.read && slot.state == LoopSlot::State::exchanging) receive(slot, ready.read_to_end);
      break;
  }
  queue_.start_ready();
}

void LoopEngine::receive(LoopSlot& slot, bool to_end) {
  while (true) {
    const Exchange::Step step = slot.exchange.receive(slot.fd.get(), 0, scratch_);
    if (step.state == Exchange::State::ended) return end(slot, step);
    if (step.state == Exchange::State::blocked) return;
    if (step.state == Exchange::State::drained && !to_end) return;
  }
}

// Nobody asked for anything, so whatever comes ends the connection. It must be closed here, as a
// poller that tells the level would tell it for ever.
void LoopEngine::check_idle(LoopSlot& slot) {
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

void LoopEngine::end(LoopSlot& slot, const Exchange::Step& step) {
  // Of a connect that is still under way, or has failed, there is no time to tell.
  if (slot.state == LoopSlot::State::connecting) slot.connected_ns = 0;
  const Next next = count_end(slot, step);
  if (slot.fd && !keeps_connection(slot, step)) {
    close(slot);
  } else if (slot.fd) {
    slot.state = LoopSlot::State::idle;
  }
  queue_.ended(slot.index, next, slot.ended_ns);
}

void LoopEngine::watch(LoopSlot& slot, bool write) {
  if (!slot.watched) {
    loop_.watch(slot.fd.get(), {.read = true, .write = write}, slot);
  } else if (slot.watches_write != write) {
    loop_.change(slot.fd.get(), {.read = true, .write = write});
  }
  slot.watched = true;
  slot.watches_write = write;
}

void LoopEngine::close(LoopSlot& slot) {
  if (std::exchange(slot.watched, false)) loop_.forget(slot.fd.get(), Removal::closing);
  if (slot.state != LoopSlot::State::connecting) run_.connection_closed();
  slot.fd.reset();
  slot.state = LoopSlot::State::closed;
}

}  // namespace

void run_loop_engine(Run& run) {
  EventLoop loop(find_poller(run.options().engine));
  LoopEngine(run, loop).work();
}

}  // namespace c10k
