#include "acceptor/first_byte_gate.hpp"

#include <sys/socket.h>

#include "ipc/syscall.hpp"

namespace c10k {

class FirstByteGate::Waiting : public EventHandler, public DueMember {
 public:
  explicit Waiting(FirstByteGate& gate) : gate_(gate) {}
  void on_ready(Readiness) override { gate_.hooks_.pass(gate_.take(*this)); }

  Received connection;

 private:
  FirstByteGate& gate_;
};

FirstByteGate::FirstByteGate(EventLoop& loop, std::int64_t timeout_ns, Hooks hooks)
    : loop_(loop), hooks_(std::move(hooks)) {
  if (timeout_ns == 0) return;
  due_ = std::make_unique<DueList<Waiting>>(
      loop_, timeout_ns, [this](Waiting& place) { hooks_.timed_out(take(place)); });
}

FirstByteGate::~FirstByteGate() {
  for (Waiting& place : places_) {
    if (place.connection.fd) loop_.forget(place.connection.fd.get(), Removal::closing);
  }
}

void FirstByteGate::hold(Received connection) {
  // A client mostly sends at once. A look that finds its bytes saves adding to the poller and removing.
  if (guess_.worth_trying()) {
    char byte;
    const ssize_t there =
        retry_eintr([&] { return ::recv(connection.fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT); });
    const bool ready = there >= 0 || errno != EAGAIN;
    guess_.record(ready);
    if (ready) return hooks_.pass(std::move(connection));
  }
  if (free_.empty()) free_.push_back(&places_.emplace_back(*this));
  Waiting& place = *free_.back();
  free_.pop_back();
  place.connection = std::move(connection);
  ++waiting_;
  loop_.watch(place.connection.fd.get(), {.read = true}, place);
  if (due_) due_->push(place, loop_.now_ns());
}

void FirstByteGate::open() {
  for (Waiting& place : places_) {
    if (place.connection.fd) hooks_.pass(take(place));
  }
}

/// Out of the poller before it is handed over: once a worker has it, closing the copy here would not
/// end its events, and EPOLL_CTL_DEL would find no such number (epoll(7), Q6).
Received FirstByteGate::take(Waiting& place) {
  loop_.forget(place.connection.fd.get(), Removal::still_open);
  place.unlink();
  --waiting_;
  free_.push_back(&place);
  return std::move(place.connection);
}

}  // namespace c10k
