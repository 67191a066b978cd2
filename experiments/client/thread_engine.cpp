// A thread per connection, with blocking calls. Nothing to register, and the kernel's scheduler is the
// event loop.
#include <pthread.h>
#include <semaphore.h>

#include <deque>
#include <mutex>
#include <vector>

#include "experiments/client/blocking_slot.hpp"
#include "experiments/client/engines.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// Ten thousand of them must fit.
constexpr std::size_t stack_size = 64 * 1024;

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
  explicit PhaseGate(std::size_t slots) : wakeups_(slots) {}

  /// Lets the threads do the phase, and returns when all are through with it.
  void work_phase(const Phase& phase) {
    {
      const std::lock_guard lock(mutex_);
      slots_ = inside_ = phase.slots;
      unstarted_ = 0;
      for (std::size_t i = 0; i < phase.first_at_once; ++i) start_another();
    }
    if (phase.slots != 0) all_left_.wait();
  }
  /// Sends every thread home.
  void finish() {
    const std::lock_guard lock(mutex_);
    finished_ = true;
    for (Wakeup& wakeup : wakeups_) wakeup.post();
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
  /// The slot is through with the phase.
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--inside_ == 0) all_left_.post();
  }

 private:
  void start_another() {
    if (unstarted_ < slots_) wakeups_[unstarted_++].post();
  }

  std::mutex mutex_;
  std::vector<Wakeup> wakeups_;  // by slot
  Wakeup all_left_;
  std::size_t slots_ = 0;      // that have a part in the phase
  std::size_t unstarted_ = 0;  // the first slot that has not yet begun the phase
  std::size_t inside_ = 0;     // slots that are not through with it
  bool finished_ = false;
};

/// Joined when destroyed. std::thread cannot choose its stack: 8 MiB of address space each here.
class SlotThread {
 public:
  SlotThread(Run& run, PhaseGate& gate, const Dialer& dialer, std::size_t index)
      : slot_(run, dialer, index), gate_(gate), index_(index) {
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, stack_size);
    const int error = ::pthread_create(
        &thread_, &attributes,
        [](void* argument) -> void* {
          static_cast<SlotThread*>(argument)->work();
          return nullptr;
        },
        this);
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
  void work() {
    while (gate_.wait(index_)) {
      slot_.work_phase([this] { gate_.first_ended(); });
      gate_.leave();
    }
  }

  BlockingSlot slot_;
  PhaseGate& gate_;
  std::size_t index_;
  pthread_t thread_{};
};

}  // namespace

void run_thread_engine(Run& run) {
  const Dialer dialer(run.options(), Dialer::Mode::blocking);
  PhaseGate gate(run.slots());
  std::deque<SlotThread> threads;
  try {
    for (std::size_t i = 0; i < run.slots(); ++i) threads.emplace_back(run, gate, dialer, i);
  } catch (...) {
    gate.finish();
    throw;
  }
  while (run.next_phase()) gate.work_phase(run.phase());
  gate.finish();
}

}  // namespace c10k
