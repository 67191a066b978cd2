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
// Man pages    accept(2), epoll_ctl(2), fcntl(2), pthread_mutexattr_setrobust(3)
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
#include "ipc/accept_lock.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/methods.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

class LockedListenerSource : public ListenerSource {
 public:
  LockedListenerSource(OwnedFd listener, const LinkRequest& request,
                       std::shared_ptr<AcceptLock> lock)
      : ListenerSource(std::move(listener), request, Sharing::all_wake), lock_(std::move(lock)) {}

  ReceiveResult receive(std::span<Received> batch) override {
    if (!lock_->try_lock()) return {.state = Channel::starved};
    // An exception ends the worker, and with it the lock.
    const ReceiveResult result = ListenerSource::receive(batch);
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
    if (!lock_) lock_ = make_lock();
    if (lock_) {
      return open_listener_link(std::move(listener),
                                [request, lock = lock_](OwnedFd workers) {
                                  return std::make_unique<LockedListenerSource>(std::move(workers),
                                                                                request, lock);
                                },
                                {lock_->fd()});
    }
    if (wait_ == "exclusive" && !request.exclusive_possible) {
      throw UsageError(
          "inherited-listener: wait=exclusive needs --loop epoll; use wait=plain with this loop");
    }
    const Sharing sharing =
        wait_ != "plain" && request.exclusive_possible ? Sharing::one_wakes : Sharing::all_wake;
    return open_listener_link(std::move(listener), [request, sharing](OwnedFd workers) {
      return std::make_unique<ListenerSource>(std::move(workers), request, sharing);
    });
  }

 private:
  [[nodiscard]] std::shared_ptr<AcceptLock> make_lock() const {
    if (wait_ == "fcntl-lock") return fcntl_accept_lock();
    if (wait_ == "mutex") return mutex_accept_lock();
    return nullptr;
  }

  std::string wait_;
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
       .variants = {"wait=plain", "wait=fcntl-lock", "wait=mutex"}},
      [](MethodOptions& options) -> std::unique_ptr<HandoffMethod> {
        return std::make_unique<InheritedListener>(
            options.choice("wait", "auto", {"auto", "exclusive", "plain", "fcntl-lock", "mutex"}));
      }};
}

}  // namespace c10k
