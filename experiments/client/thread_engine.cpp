// A thread per connection, with blocking calls: connect, send, recv, close. Nothing to register,
// and the kernel's scheduler is the event loop.
//
// The timeouts are those of the sockets (SO_SNDTIMEO for connect, SO_RCVTIMEO for the first recv of
// an echo). Only a request or an echo that comes in pieces needs poll(2) to wait for the rest of
// the time.
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <ctime>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "experiments/client/dialer.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/progress.hpp"
#include "experiments/client/run.hpp"
#include "ipc/syscall.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {
namespace {

/// Ten thousand of them must fit; the receive buffer is the largest thing on it.
constexpr std::size_t stack_size = 64 * 1024;
constexpr std::size_t receive_size = 16 * 1024;

/// Wakes one thread (sem_overview(7)). Not std::binary_semaphore: libstdc++ keeps the waiters of
/// many semaphores in few pools, and a post may wake thousands of threads for nothing.
class Wakeup {
 public:
  Wakeup() { ::sem_init(&semaphore_, 0, 0); }
  ~Wakeup() { ::sem_destroy(&semaphore_); }
  Wakeup(const Wakeup&) = delete;
  Wakeup& operator=(const Wakeup&) = delete;

  void post() { ::sem_post(&semaphore_); }
  void wait() {
    (void)retry_eintr([&] { return ::sem_wait(&semaphore_); });
  }

 private:
  sem_t semaphore_;
};

/// Leads the threads through the phases. A thread is woken once for each phase that it has a part
/// in, and no more than the phase allows make their first attempt at once.
class PhaseGate {
 public:
  explicit PhaseGate(Run& run) : run_(run), wakeups_(run.options().connections) {}

  /// Begins the first phase.
  void open() {
    const std::lock_guard lock(mutex_);
    begin_next();
  }
  /// Sends every thread home.
  void abandon() {
    const std::lock_guard lock(mutex_);
    finish();
  }

  /// Waits until the slot's next phase begins. False when it never will.
  [[nodiscard]] bool wait(std::size_t slot) {
    wakeups_[slot].wait();
    const std::lock_guard lock(mutex_);
    return !finished_;
  }
  /// The slot's first attempt of the phase has ended: another slot may begin.
  void first_ended() {
    const std::lock_guard lock(mutex_);
    start_another();
  }
  /// The slot is through with the phase. The last one begins the next.
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--inside_ == 0) begin_next();
  }

  /// Readable when all phases are over.
  [[nodiscard]] int finished_fd() const { return finished_fd_.get(); }

 private:
  void begin_next() {
    if (!run_.next_phase()) return finish();
    inside_ = run_.phase().slots;
    unstarted_ = 0;
    for (std::size_t i = 0; i < run_.phase().first_at_once; ++i) start_another();
  }
  void start_another() {
    if (unstarted_ < run_.phase().slots) wakeups_[unstarted_++].post();
  }
  void finish() {
    finished_ = true;
    for (Wakeup& wakeup : wakeups_) wakeup.post();
    ::eventfd_write(finished_fd_.get(), 1);  // cannot fail: the counter is at most 1
  }

  Run& run_;
  std::mutex mutex_;
  std::vector<Wakeup> wakeups_;  // by slot
  std::size_t unstarted_ = 0;    // the first slot that has not yet begun the phase
  std::size_t inside_ = 0;       // slots that are not through with it
  bool finished_ = false;
  OwnedFd finished_fd_{checked([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }, "eventfd")};
};

/// One concurrent connection, and all that its thread does.
class Slot {
 public:
  Slot(Run& run, PhaseGate& gate, const Dialer& dialer, std::size_t index)
      : run_(run), gate_(gate), dialer_(dialer), index_(index), dials_(index) {}

  void work() {
    while (gate_.wait(index_)) {
      work_phase(run_.phase());
      gate_.leave();
    }
    close();
  }

 private:
  void work_phase(const Phase& phase) {
    Next next = attempt(phase);
    gate_.first_ended();
    while (next != Next::rest) {
      if (next == Next::pause) {
        const timespec pause{0, refusal_pause_ns};
        ::nanosleep(&pause, nullptr);
      }
      next = attempt(phase);
    }
  }

  Next attempt(const Phase& phase) {
    const std::int64_t started = monotonic_ns();
    if ((!fd_ && !phase.connects) || !run_.may_start(started)) return Next::rest;
    std::int64_t connect_ns = -1;
    Exchange::Step step{Exchange::State::more};
    if (!fd_) step = connect(started, connect_ns);
    if (step.state != Exchange::State::ended) step = exchange(started);
    const bool echoed = step.outcome == Outcome::echoed;
    const Next next = run_.ended(index_,
                                 {.outcome = step.outcome,
                                  .error = step.error,
                                  .latency_ns = echoed ? exchange_.echoed_ns() - started : 0,
                                  .connect_ns = connect_ns},
                                 monotonic_ns());
    if (!echoed || phase.closes) close();
    return next;
  }

  Exchange::Step connect(std::int64_t started, std::int64_t& connect_ns) {
    auto [fd, error] = dialer_.dial(dials_++);
    if (error != 0) {
      // A blocking connect returns EINPROGRESS when the time of SO_SNDTIMEO is over.
      if (error == EINPROGRESS) return {Exchange::State::ended, Outcome::timeout};
      return {Exchange::State::ended, outcome_of_errno(error), error};
    }
    fd_ = std::move(fd);
    connect_ns = monotonic_ns() - started;
    run_.connection_opened();
    return {Exchange::State::more};
  }

  Exchange::Step exchange(std::int64_t started) {
    const int fd = fd_.get();
    std::array<char, receive_size> scratch;
    exchange_.begin(run_.payload(), started, run_.options().server_closes);
    const std::int64_t deadline = monotonic_ns() + run_.options().timeout_ns;
    while (true) {
      if (!exchange_.all_sent()) {
        const Exchange::Step step = exchange_.send(fd);
        if (step.state == Exchange::State::ended) return step;
      }
      const bool in_pieces = !exchange_.all_sent() || exchange_.receiving();
      if (in_pieces && !wait_ready(fd, deadline)) break;
      const Exchange::Step step = exchange_.receive(fd, in_pieces ? MSG_DONTWAIT : 0, scratch);
      if (step.state == Exchange::State::ended) return step;
      // Nothing came in the time of SO_RCVTIMEO.
      if (!in_pieces && !exchange_.receiving()) break;
    }
    return {Exchange::State::ended, Outcome::timeout};
  }

  /// False when the deadline has passed.
  bool wait_ready(int fd, std::int64_t deadline) const {
    const std::int64_t left = deadline - monotonic_ns();
    if (left <= 0) return false;
    pollfd entry{fd, static_cast<short>(exchange_.all_sent() ? POLLIN : POLLIN | POLLOUT), 0};
    const timespec timeout{left / 1'000'000'000, left % 1'000'000'000};
    return retry_eintr([&] { return ::ppoll(&entry, 1, &timeout, nullptr); }) > 0;
  }

  void close() {
    if (!fd_) return;
    run_.connection_closed();
    fd_.reset();
  }

  Run& run_;
  PhaseGate& gate_;
  const Dialer& dialer_;
  std::size_t index_;
  std::size_t dials_;  // slots begin at different client addresses
  OwnedFd fd_;
  Exchange exchange_;
};

/// Joined when destroyed. std::thread cannot choose its stack: 8 MiB of address space each here.
class SlotThread {
 public:
  explicit SlotThread(Slot& slot) {
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, stack_size);
    const int error = ::pthread_create(
        &thread_, &attributes,
        [](void* argument) -> void* {
          static_cast<Slot*>(argument)->work();
          return nullptr;
        },
        &slot);
    ::pthread_attr_destroy(&attributes);
    if (error != 0) {
      throw_system_error(error,
                         "pthread_create (limits: ulimit -u, kernel.threads-max, kernel.pid_max)");
    }
  }
  ~SlotThread() { ::pthread_join(thread_, nullptr); }
  SlotThread(const SlotThread&) = delete;
  SlotThread& operator=(const SlotThread&) = delete;

 private:
  pthread_t thread_{};
};

class StopLoop : public EventHandler {
 public:
  explicit StopLoop(EventLoop& loop) : loop_(loop) {}
  void on_ready(Readiness) override { loop_.stop(); }

 private:
  EventLoop& loop_;
};

}  // namespace

void run_thread_engine(Run& run) {
  EventLoop loop(epoll_poller());
  // Before any thread is made: each inherits the blocked signals.
  const SignalWatch signals(loop, {SIGINT, SIGTERM}, [&](int) { run.stop(End::interrupted); });
  const Dialer dialer(run.options(), Dialer::Mode::blocking);
  PhaseGate gate(run);
  std::vector<Slot> slots;
  slots.reserve(run.options().connections);
  std::deque<SlotThread> threads;
  try {
    for (std::size_t i = 0; i < run.options().connections; ++i) {
      slots.emplace_back(run, gate, dialer, i);
      threads.emplace_back(slots.back());
    }
  } catch (...) {
    gate.abandon();
    throw;
  }
  StopLoop finished(loop);
  loop.watch(gate.finished_fd(), {.read = true, .level = true}, finished);
  gate.open();
  {
    const Progress progress(loop, run);
    loop.run();
  }
  loop.forget(gate.finished_fd(), Removal::closing);
}

}  // namespace c10k
