// reuseport: a listener per worker on one address; the kernel picks by a hash of the connection.
//
// Mechanism    SO_REUSEPORT: the kernel chooses a listener as the handshake ends
// Kernel       3.9
// Privilege    none; all listeners must belong to one user
// System calls 1: accept4 in the worker
// Ownership    the worker's from the start; the acceptor never sees it
// Death        the supervisor holds each listener too, so the queue of a dead worker stays and its
//              successor in the same slot takes it over. Were the worker the only owner, the kernel
//              would reset what is queued (unless net.ipv4.tcp_migrate_req=1)
// Man pages    socket(7)
#include <map>

#include "ipc/listener_source.hpp"
#include "ipc/methods.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class Reuseport : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override {
    try {
      const OwnedFd first =
          listen_tcp(SocketAddress::loopback_source(1), {.backlog = 1, .reuse_port = true});
      const OwnedFd second =
          listen_tcp(SocketAddress::local(first.get()), {.backlog = 1, .reuse_port = true});
      return {};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    auto found = listeners_.find(request.worker);
    if (found == listeners_.end()) {
      // Worker 0 uses the server's own listener: one more in the group would be one that nobody
      // serves.
      OwnedFd listener = request.worker == 0 ? duplicate(request.listener)
                                             : listen_tcp(SocketAddress::local(request.listener),
                                                          request.listen_options);
      found = listeners_.emplace(request.worker, std::move(listener)).first;
    }
    return open_listener_link(duplicate(found->second.get()), [request](OwnedFd workers) {
      return std::make_unique<ListenerSource>(std::move(workers), request, false);
    });
  }

  void close_listeners() override { listeners_.clear(); }

 private:
  std::map<std::size_t, OwnedFd> listeners_;
};

}  // namespace

MethodEntry reuseport() {
  return {{.name = "reuseport",
           .summary = "a listener per worker (SO_REUSEPORT); the kernel hashes",
           .options = "",
           .kernel = "3.9",
           .privilege = "none",
           .syscalls = "acceptor 0, worker 1 (accept4)",
           .isolation = "full: a worker can shut down only its own listener",
           .after_death = "its queue waits for the successor (the supervisor keeps the listener)",
           .kernel_dispatches = true,
           .listener_per_worker = true},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<Reuseport>();
          }};
}

}  // namespace c10k
