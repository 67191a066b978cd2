// inherited-listener: one listener from before the fork; every worker accepts on it (pre-fork).
//
// Mechanism    all workers wait on the same accept queue. wait=exclusive wakes one of them
//              (EPOLLEXCLUSIVE), wait=plain wakes all, and all but one find the queue empty
// Kernel       any; EPOLLEXCLUSIVE: 4.5, and only with --loop epoll
// Privilege    none
// System calls 1: accept4 in the worker, and those of workers woken for nothing
// Ownership    the worker's from the start
// Death        nothing: the queue belongs to the listener, which the others hold
// Man pages    accept(2), epoll_ctl(2)
#include "ipc/listener_source.hpp"
#include "ipc/methods.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

class InheritedListener : public HandoffMethod {
 public:
  explicit InheritedListener(std::string wait) : wait_(std::move(wait)) {}

  [[nodiscard]] Support probe() override { return {}; }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    if (wait_ == "exclusive" && !request.exclusive_possible) {
      throw UsageError(
          "inherited-listener: wait=exclusive needs --loop epoll; use wait=plain with this loop");
    }
    const bool exclusive = wait_ != "plain" && request.exclusive_possible;
    return open_listener_link(duplicate(request.listener), request, exclusive);
  }

 private:
  std::string wait_;
};

}  // namespace

MethodEntry inherited_listener() {
  return {{.name = "inherited-listener",
           .summary = "one listener, inherited; every worker accepts on it",
           .options = "wait=auto|exclusive|plain (auto: exclusive where the loop can)",
           .kernel = "any (wait=exclusive: 4.5)",
           .privilege = "none",
           .syscalls = "acceptor 0, worker 1 (accept4) and failed ones of those woken in vain",
           .isolation = "any worker can shut the listener down for all",
           .after_death = "nothing: the queue belongs to the listener that the others hold",
           .kernel_dispatches = true},
          [](MethodOptions& options) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<InheritedListener>(
                options.choice("wait", "auto", {"auto", "exclusive", "plain"}));
          }};
}

}  // namespace c10k
