// inherited-listener: one listener from before the fork; every worker accepts on it (pre-fork).
//
// Mechanism    all workers wait on the same accept queue. wait=exclusive wakes one of them
//              (EPOLLEXCLUSIVE), wait=plain wakes all, and all but one find the queue empty.
//              wait=fcntl-lock and wait=mutex wake all as well, and only the one that gets the lock
//              accepts
// Kernel       any; EPOLLEXCLUSIVE: 4.5, and only with --loop epoll
// Privilege    none
// System calls 1: accept4 in the worker, and those of workers woken for nothing; wait=fcntl-lock: and 2
//              fcntl a wake-up
// Ownership    the worker's from the start
// Death        nothing: the queue belongs to the listener, which the others hold. The kernel
//              releases the lock of a worker that dies within accept
// Man pages    accept(2), epoll_ctl(2), eventfd(2), fcntl(2), pthread_mutexattr_setrobust(3)
//
// At the descriptor limit. Wake-ups are not fair, so one worker is full while others have room. It then
// leaves the listener alone until a connection of its own ends, and sheds only when no worker has room.
// With wait=exclusive it may have been woken in place of one that has room, and for what waits nobody
// else would be: so it passes the wake-up on, through an eventfd that all wait for in the same way.
//
// The locks. Stevens's children block in accept and hold the lock meanwhile; the others sleep in the
// lock. A worker with a loop can do neither: it has connections to serve, and no loop can wait for a
// lock. So it takes the lock for the accepts of one wake-up and tries only. Who does not get it leaves
// the listener alone for a moment (Channel::starved: the worker pauses), as nginx does for
// accept_mutex_delay. That keeps these properties:
// - The listener is level-triggered and stays readable while the holder accepts, yet nobody spins on it.
// - Nobody pauses when nobody holds the lock, so a worker is always awake to the next connection; one
//   that comes while the holder is busy serving waits for the shortest pause at most.
// - An idle worker sleeps in its loop: there is nothing to poll for as nobody holds the lock while
//   waiting. (With the lock held over the wait, nginx's other workers wake by a timer.)
// - A dead holder delays the others for a pause, a stopped one for as long as it is stopped within accept.
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>

#include "ipc/accept_lock.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/methods.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

/// What the workers know of each other's descriptor limits.
class Vacancies {
 public:
  explicit Vacancies(std::size_t workers)
      : has_room_(workers),
        passed_on_(checked([] { return ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }, "eventfd")) {}

  /// A dead worker has none.
  void set(std::size_t worker, bool has_room) { has_room_[worker] = has_room ? 1 : 0; }
  [[nodiscard]] bool any() const {
    const auto all = has_room_.all();
    return std::any_of(all.begin(), all.end(), [](const auto& room) { return room != 0; });
  }

  [[nodiscard]] int passed_on_fd() const { return passed_on_.get(); }
  void pass_on() const {
    checked([&] { return ::eventfd_write(passed_on_.get(), 1); }, "eventfd_write");
  }
  /// False when another worker was faster.
  [[nodiscard]] bool take_over() const {
    eventfd_t count = 0;
    return checked_nonblocking([&] { return ::eventfd_read(passed_on_.get(), &count); },
                               "eventfd_read")
        .has_value();
  }

 private:
  // Written and read in one total order, so that of two workers that become full at once at least one
  // sees that both are.
  SharedArray<std::atomic<std::uint8_t>> has_room_;
  OwnedFd passed_on_;
};

class SharedListenerSource : public ListenerSource {
 public:
  SharedListenerSource(OwnedFd listener, const LinkRequest& request, Sharing sharing,
                       std::shared_ptr<Vacancies> vacancies)
      : ListenerSource(std::move(listener), request, sharing),
        worker_(request.worker),
        vacancies_(std::move(vacancies)) {
    vacancies_->set(worker_, true);
  }
  ~SharedListenerSource() override { vacancies_->set(worker_, false); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result = reader().accept_within_limit(batch);
    set_full(result.state == Channel::at_limit);
    const bool leave = full_ && result.error == EMFILE && vacancies_->any();
    if (full_ && !leave) result = reader().shed_one(result.error);
    // Whoever was woken through the eventfd has no event of the listener's to come, so until the
    // queue is empty the eventfd brings the next.
    if (exclusive_wake_up() && (leave || (relieving_ && result.state != Channel::would_block)))
      vacancies_->pass_on();
    relieving_ = false;
    return result;
  }

  [[nodiscard]] int attention_fd() const override {
    return exclusive_wake_up() ? vacancies_->passed_on_fd() : -1;
  }
  void leave_to_others() override {
    set_full(true);
    if (exclusive_wake_up() && vacancies_->any()) vacancies_->pass_on();
  }
  void attend() override { relieving_ = vacancies_->take_over(); }
  void report_load(std::uint64_t connections) override {
    if (connections < connections_) set_full(false);
    connections_ = connections;
  }

 private:
  void set_full(bool full) {
    if (full != full_) vacancies_->set(worker_, !full);
    full_ = full;
  }

  std::size_t worker_;
  std::shared_ptr<Vacancies> vacancies_;
  std::uint64_t connections_ = 0;
  bool full_ = false;
  bool relieving_ = false;
};

class LockedListenerSource : public SharedListenerSource {
 public:
  LockedListenerSource(OwnedFd listener, const LinkRequest& request,
                       std::shared_ptr<Vacancies> vacancies, std::shared_ptr<AcceptLock> lock)
      : SharedListenerSource(std::move(listener), request, Sharing::all_wake, std::move(vacancies)),
        lock_(std::move(lock)) {}

  ReceiveResult receive(std::span<Received> batch) override {
    if (!lock_->try_lock()) return {.state = Channel::starved};
    // An exception ends the worker, and with it the lock.
    const ReceiveResult result = SharedListenerSource::receive(batch);
    lock_->unlock();
    return result;
  }

 private:
  std::shared_ptr<AcceptLock> lock_;
};

class InheritedListener : public HandoffMethod {
 public:
  explicit InheritedListener(std::string wait) : wait_(std::move(wait)) {}

  [[nodiscard]] Support probe() override {
    try {
      const std::shared_ptr<AcceptLock> lock = make_lock();
      if (lock && lock->try_lock()) lock->unlock();
      return {};
    } catch (const SystemError& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    OwnedFd listener = duplicate(request.listener);
    if (!vacancies_) vacancies_ = std::make_shared<Vacancies>(request.workers);
    if (!lock_) lock_ = make_lock();
    if (lock_) {
      return open_listener_link(std::move(listener),
                                [request, vacancies = vacancies_, lock = lock_](OwnedFd workers) {
                                  return std::make_unique<LockedListenerSource>(
                                      std::move(workers), request, vacancies, lock);
                                },
                                {lock_->fd()});
    }
    if (wait_ == "exclusive" && !request.exclusive_possible) {
      throw UsageError(
          "inherited-listener: wait=exclusive needs --loop epoll; use wait=plain with this loop");
    }
    const Sharing sharing =
        wait_ != "plain" && request.exclusive_possible ? Sharing::one_wakes : Sharing::all_wake;
    return open_listener_link(std::move(listener),
                              [request, sharing, vacancies = vacancies_](OwnedFd workers) {
                                return std::make_unique<SharedListenerSource>(
                                    std::move(workers), request, sharing, vacancies);
                              },
                              {vacancies_->passed_on_fd()});
  }

  void worker_ended(std::size_t worker) override { vacancies_->set(worker, false); }

 private:
  [[nodiscard]] std::shared_ptr<AcceptLock> make_lock() const {
    if (wait_ == "fcntl-lock") return fcntl_accept_lock();
    if (wait_ == "mutex") return mutex_accept_lock();
    return nullptr;
  }

  std::string wait_;
  std::shared_ptr<Vacancies> vacancies_;
  std::shared_ptr<AcceptLock> lock_;
};

}  // namespace

MethodEntry inherited_listener() {
  return {
      {.name = "inherited-listener",
       .summary = "one listener, inherited; every worker accepts on it",
       .options = "wait=auto|exclusive|plain|fcntl-lock|mutex (auto: exclusive where the loop can)",
       .kernel = "any (wait=exclusive: 4.5)",
       .privilege = "none",
       .syscalls = "acceptor 0, worker 1 (accept4) and failed ones of those woken in vain; "
                   "fcntl-lock: 2 fcntl a wake-up",
       .isolation = "any worker can shut the listener down for all",
       .after_death = "nothing: the queue belongs to the listener that the others hold",
       .kernel_dispatches = true,
       .worker_calls = {CallGroup::accept, CallGroup::file_lock},
       .variants = {"wait=plain", "wait=fcntl-lock", "wait=mutex"}},
      [](MethodOptions& options) -> std::unique_ptr<HandoffMethod> {
        return std::make_unique<InheritedListener>(
            options.choice("wait", "auto", {"auto", "exclusive", "plain", "fcntl-lock", "mutex"}));
      }};
}

}  // namespace c10k
