#include "experiments/client/coroutine_slot.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <span>
#include <utility>

#include "experiments/client/misbehave.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

using State = Exchange::State;
using Step = Exchange::Step;

template <typename Value>
void set_option(int fd, int level, int name, const Value& value) {
  checked([&] { return ::setsockopt(fd, level, name, &value, sizeof value); },
          "setsockopt {} {} {}", fd, level, name);
}

Step failed(int error) {
  return {State::ended, outcome_of_errno(error), error};
}

}  // namespace

void Pause::await_suspend(std::coroutine_handle<> coroutine) {
  coroutine_ = coroutine;
  pauses_.push(*this, monotonic_ns());
}

CoroutineShared::CoroutineShared(Run& its_run, SlotUser& user)
    : run(its_run),
      loop(epoll_poller()),
      dialer(run.options(), Dialer::Mode::non_blocking),
      queue(run, loop, user),
      timeouts(loop, run.options().timeout_ns, [](CoroutineSlot& slot) { slot.time_out(); }),
      pauses(loop, misbehaviour_pause_ns,
             [this](Pause& pause) {
               pause.resume();
               queue.start_ready();
             }),
      dials(run.process()) {}

const Options& CoroutineSlot::options() const {
  return shared_.run.options();
}

Step CoroutineSlot::open(bool narrow) {
  auto [fd, error] = shared_.dialer.open(shared_.dials++);
  if (error != 0) return failed(error);
  fd_ = std::move(fd);
  standing_ = false;
  seen_ = {};
  echoes_ = 0;
  if (narrow) {
    // The segment size of an Ethernet, which on loopback would be 64 KiB: the peer's send buffer is
    // made for a number of segments, and so holds some 50 KiB and not 2.6 MB. The kernel keeps
    // twice what is asked for, and the window must be known when the SYN goes out.
    constexpr int segment = 1460;
    constexpr int receive_buffer = 16'384;
    set_option(fd_.get(), IPPROTO_TCP, TCP_MAXSEG, segment);
    set_option(fd_.get(), SOL_SOCKET, SO_RCVBUF, receive_buffer);
  }
  return {State::more};
}

Step CoroutineSlot::connect() {
  const int error = shared_.dialer.connect(fd_.get());
  if (error != 0 && error != EINPROGRESS) return failed(error);
  connected_ns_ = monotonic_ns();
  return {State::more};
}

void CoroutineSlot::begin_exchange(bool until_eof) {
  exchange_.begin(shared_.run.payload(), started_ns_, until_eof);
}

Step CoroutineSlot::send(std::size_t most) {
  const Step step = exchange_.send(fd_.get(), most);
  if (step.state == State::blocked) seen_.write = false;
  // Where the first send fails, the handshake has failed, or the connection has broken since.
  if (!standing_ && !exchange_.untouched()) opened();
  return step;
}

Step CoroutineSlot::receive(std::size_t most) {
  if (!seen_.read) return {State::blocked};
  const auto room = std::span(shared_.scratch).first(std::min(most, shared_.scratch.size()));
  const Step step = exchange_.receive(fd_.get(), 0, room);
  if (step.state == State::blocked) seen_.read = seen_.read_to_end = false;
  // It came back short, or with the end of the echo, behind which nothing is due.
  if (step.state != State::more && !seen_.read_to_end) seen_.read = false;
  return step;
}

Step CoroutineSlot::receive_nothing() {
  char byte = 0;
  const ssize_t size = retry_eintr([&] { return ::recv(fd_.get(), &byte, 1, 0); });
  if (size > 0) return {State::ended, Outcome::mismatched};
  if (size == 0) return {State::ended, Outcome::eof};
  if (errno != EAGAIN) return failed(errno);
  seen_.read = seen_.read_to_end = false;
  return {State::blocked};
}

Step CoroutineSlot::connected() {
  int error = 0;
  socklen_t size = sizeof error;
  checked([&] { return ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size); },
          "getsockopt {} SO_ERROR", fd_.get());
  if (error != 0) return failed(error);
  opened();
  return {State::more};
}

// Where the peer has reset the connection it fails, and the next recv tells why.
void CoroutineSlot::send_end() const {
  (void)::shutdown(fd_.get(), SHUT_WR);
}

Step CoroutineSlot::reset() const {
  set_option(fd_.get(), SOL_SOCKET, SO_LINGER, linger{.l_onoff = 1, .l_linger = 0});
  return {State::ended, Outcome::reset};
}

Pause CoroutineSlot::pause() {
  return Pause(shared_.pauses);
}

Step CoroutineSlot::in_time() const {
  if (timed_out_) return {State::ended, Outcome::timeout};
  return {State::more};
}

void CoroutineSlot::Ready::await_suspend(std::coroutine_handle<> coroutine) {
  slot.watch(write);
  slot.waits_to_write_ = write;
  slot.ready_ = coroutine;
}

void CoroutineSlot::begin_attempt(std::int64_t intended_ns, std::int64_t now_ns) {
  intended_ns_ = intended_ns;
  started_ns_ = now_ns;
  connected_ns_ = 0;
  timed_out_ = false;
  shared_.timeouts.push(*this, now_ns);
  std::exchange(turn_, {}).resume();
}

void CoroutineSlot::end_attempt(const Step& step) {
  unlink();
  const std::int64_t now = monotonic_ns();
  const bool echoed = step.outcome == Outcome::echoed;
  const Next next = shared_.run.ended(index_, {.outcome = step.outcome,
                                               .error = step.error,
                                               .intended_ns = intended_ns_,
                                               .started_ns = started_ns_,
                                               // Of a connect that failed there is no time to tell.
                                               .connected_ns = standing_ ? connected_ns_ : 0,
                                               .echoed_ns = echoed ? exchange_.echoed_ns() : 0,
                                               .ended_ns = now});
  if (!echoed || ++echoes_ == shared_.run.phase().requests_per_connection) close();
  shared_.queue.ended(index_, next, now);
}

void CoroutineSlot::time_out() {
  timed_out_ = true;
  // It may be in a pause, and sees after it that its time is over.
  if (!ready_) return;
  std::exchange(ready_, {}).resume();
  shared_.queue.start_ready();
}

void CoroutineSlot::on_ready(Readiness ready) {
  seen_.read |= ready.read;
  seen_.write |= ready.write;
  seen_.read_to_end |= ready.read_to_end;
  if (ready_ && is_ready(waits_to_write_)) {
    std::exchange(ready_, {}).resume();
    shared_.queue.start_ready();
  } else if (turn_ && seen_.read) {
    if (const Step step = receive_nothing(); step.state == State::ended) {
      lost_ = step;
      close();
    }
  }
}

void CoroutineSlot::watch(bool write) {
  // Whoever has waited for room once is told of it from then on: there is no event for that alone as
  // long as no send fails for want of it.
  if (!watched_) {
    shared_.loop.watch(fd_.get(), {.read = true, .write = write}, *this);
  } else if (write && !watches_write_) {
    shared_.loop.change(fd_.get(), {.read = true, .write = true});
  }
  watches_write_ = write || (watched_ && watches_write_);
  watched_ = true;
}

void CoroutineSlot::opened() {
  standing_ = true;
  shared_.run.connection_opened();
  if (!watched_) return;  // it has not waited for the handshake
  connected_ns_ = monotonic_ns();
  shared_.timeouts.push(*this, connected_ns_);
}

void CoroutineSlot::close() {
  if (std::exchange(watched_, false)) shared_.loop.forget(fd_.get(), Removal::closing);
  if (std::exchange(standing_, false)) shared_.run.connection_closed();
  fd_.reset();
}

}  // namespace c10k
