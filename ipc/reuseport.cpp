// reuseport: a listener per worker on one address; the kernel picks one for each connection.
//
// Mechanism    SO_REUSEPORT: the kernel chooses a listener when the SYN comes. steer=hash: by a hash of
//              the connection; steer=cpu: by the CPU that the SYN came in on (classic BPF);
//              steer=least-loaded: an eBPF program picks the worker with the fewest connections
// Kernel       3.9; steer=cpu: 4.5; steer=least-loaded: 5.5 (an array that can be mapped); migrate=on: 5.14
// Privilege    none; all listeners must belong to one user. steer=least-loaded and migrate=on: CAP_BPF
//              and CAP_NET_ADMIN, when the server starts and when it replaces a worker
// System calls 1: accept4 in the worker
// Ownership    the worker's from the start; the acceptor never sees it
// Death        migrate=off: this process holds each listener too, so the queue of a dead worker stays
//              and its successor in the same slot takes it over. migrate=on: only the worker holds its
//              listener, and as it closes the kernel moves what is queued to the other workers'. When
//              all are dead it goes to a listener of this process, which the first successor gets.
//              That needs no sysctl (net.ipv4.tcp_migrate_req): a program attached as
//              BPF_SK_REUSEPORT_SELECT_OR_MIGRATE asks for it
// Upgrade      migrate=off: the successor adopts the listeners, slot by slot, and their queues live on.
//              migrate=on: it opens listeners of its own in the group and attaches its program when its
//              workers are ready. From then on the kernel gives new connections to them alone; the old
//              workers accept what had come, and what is in its handshake yet moves as they close
// Man pages    socket(7), bpf(2)
//
// The load. A worker's own count misses what the kernel has steered to it and it has not accepted yet,
// so between two updates a burst would all go to one worker. Therefore the program counts what it
// steers (`steered`), and the worker says how much of that it has seen: load = open + steered - seen. Not
// everything that is steered is ever accepted: a SYN may be dropped, a handshake not completed (and
// with SYN cookies the program decides anew when the handshake's last ACK comes, so it counts twice). So
// when the worker has emptied its queue, all that was steered before it began counts as seen, and an
// error lives until the next accept only. (What is in its handshake at that moment is forgotten until
// it is accepted.) The worker writes open - seen as one number: a store, no system call.
//
// A worker that has ended, drains or has not begun is *absent*: chosen only when all are. With
// migrate=off its kept listener would otherwise look idle and collect every new connection.
#include <algorithm>
#include <map>

#include "ipc/listener_source.hpp"
#include "ipc/methods.hpp"
#include "ipc/reuseport_steering.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class LoadReportingSource : public ListenerSource {
 public:
  LoadReportingSource(OwnedFd listener, const LinkRequest& request,
                      std::shared_ptr<WorkerLoads> loads)
      : ListenerSource(std::move(listener), request, Sharing::none),
        loads_(std::move(loads)),
        load_((*loads_)[request.worker]),
        steered_(load_.steered.load(std::memory_order_acquire)) {
    // What the predecessor left in the queue is still to come.
    seen_ = steered_ - std::min<std::uint64_t>(steered_, accept_queue(fd()).length);
    report_load(0);
  }
  ~LoadReportingSource() override { load_.set_absent(); }

  ReceiveResult receive(std::span<Received> batch) override {
    steered_ = load_.steered.load(std::memory_order_acquire);
    const ReceiveResult result = ListenerSource::receive(batch);
    seen_ = result.state == Channel::would_block
                ? steered_
                : std::min(steered_, seen_ + result.received + result.shed);
    return result;
  }
  /// Its receive() also counts.
  [[nodiscard]] AcceptQueueReader* sole_reader() override { return nullptr; }
  void report_load(std::uint64_t connections) override {
    load_.own.store(connections - seen_, std::memory_order_release);
  }

 private:
  std::shared_ptr<WorkerLoads> loads_;
  WorkerLoad& load_;
  std::uint64_t steered_;
  std::uint64_t seen_ = 0;
};

/// A worker's own listener, which nobody else holds.
template <typename Source>
class OwningQueue : public Source {
 public:
  using Source::Source;
  [[nodiscard]] bool owns_queue() const override { return true; }
};

class Reuseport : public HandoffMethod {
 public:
  Reuseport(Steer steer, bool migrate) : steer_(steer), migrate_(migrate) {}

  [[nodiscard]] Support probe() override {
    try {
      const ListenOptions options{.backlog = 1, .reuse_port = true};
      const OwnedFd first = listen_tcp(SocketAddress::loopback_source(1), options);
      const OwnedFd second = listen_tcp(SocketAddress::local(first.get()), options);
      ReuseportSteering steering(steer_, migrate_, 2);
      steering.add(0, first.get());
      steering.add(1, second.get());
      return {};
    } catch (const SystemError& error) {
      return {false,
              fmt::format("{}{}", error.what(),
                          needs_ebpf() ? "; steer=least-loaded and migrate=on need CAP_BPF "
                                         "and CAP_NET_ADMIN, and Linux 5.14: run as root, or "
                                         "without them"
                                       : "; it needs Linux 4.5")};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    if (!steering_) steering_.emplace(steer_, migrate_, request.workers, std::move(adopted_map_));
    workers_ = request.workers;
    OwnedFd listener = migrate_ ? new_listener(request) : kept_listener(request);
    return open_listener_link(
        std::move(listener),
        [request, owned = migrate_,
         loads = steering_->loads()](OwnedFd workers) -> std::unique_ptr<ConnectionSource> {
          if (loads && owned)
            return std::make_unique<OwningQueue<LoadReportingSource>>(std::move(workers), request,
                                                                      loads);
          if (loads)
            return std::make_unique<LoadReportingSource>(std::move(workers), request, loads);
          if (owned)
            return std::make_unique<OwningQueue<ListenerSource>>(std::move(workers), request,
                                                                 Sharing::none);
          return std::make_unique<ListenerSource>(std::move(workers), request, Sharing::none);
        });
  }

  void close_listeners() override {
    kept_.clear();
    last_resort_.reset();
  }

  /// With migrate=on each server has listeners and a program of its own. Otherwise they are the same
  /// listeners, so each must have a worker, and the kernel must steer to them in the same way.
  [[nodiscard]] std::string listening(std::size_t workers) const override {
    if (migrate_) return "reuseport:migrate=on";
    return fmt::format("reuseport:steer={} with {} workers",
                       steer_ == Steer::hash  ? "hash"
                       : steer_ == Steer::cpu ? "cpu"
                                              : "least-loaded",
                       workers);
  }

  [[nodiscard]] std::vector<int> listeners(int /*server*/) const override {
    if (migrate_) return {last_resort_.get()};
    std::vector<int> all;
    if (kept_.size() != workers_) {
      throw std::runtime_error(
          "a worker has been given up, so that the successor would have a listener too few; "
          "restart "
          "the server instead");
    }
    for (const auto& [worker, listener] : kept_) all.push_back(listener.get());
    if (steering_->listeners() >= 0) all.push_back(steering_->listeners());
    return all;
  }

  [[nodiscard]] OwnedFd adopt_listeners(std::vector<OwnedFd> listeners,
                                        const ListenOptions& options) override {
    adopted_ = true;
    const SocketAddress address = SocketAddress::local(listeners[0].get());
    // One more in the group, which nobody is steered to.
    if (migrate_) return listen_tcp(address, options);
    if (needs_ebpf()) {
      adopted_map_ = std::move(listeners.back());
      listeners.pop_back();
      if (!ReuseportSteering::are_listeners(adopted_map_.get()))
        throw std::runtime_error("reuseport: the last descriptor is no map of listeners");
    }
    for (std::size_t worker = 0; worker < listeners.size(); ++worker) {
      const int listener = listeners[worker].get();
      if (!is_tcp_listener(listener) || !SocketAddress::local(listener).fits(address))
        throw std::runtime_error(
            fmt::format("reuseport: descriptor {} is no listener at {}", worker, address.text()));
      kept_.emplace(worker, std::move(listeners[worker]));
    }
    return duplicate(kept_.at(0).get());
  }

  void claim_listeners(const ListenOptions& options) override {
    if (kept_.empty() && !last_resort_) return;  // closed
    adopted_ = false;
    for (const auto& entry : kept_) {
      // Of a listener that has listened before it sets the backlog, and nothing else.
      checked([&] { return ::listen(entry.second.get(), options.backlog); }, "listen");
    }
    const int any = migrate_ ? last_resort_.get() : kept_.begin()->second.get();
    if (needs_ebpf()) steering_->attach(any);
  }

  void worker_ended(std::size_t worker) override {
    if (const auto loads = steering_->loads()) (*loads)[worker].set_absent();
  }

  /// What waits in its queue is reset, which its clients can see, and new connections go to the others.
  void worker_abandoned(std::size_t worker) override {
    const auto found = kept_.find(worker);
    if (found == kept_.end()) return;
    // The server has the first worker's listener too: closing this descriptor alone would not do.
    ::shutdown(found->second.get(), SHUT_RD);
    kept_.erase(found);
  }

 private:
  [[nodiscard]] bool needs_ebpf() const { return steer_ == Steer::least_loaded || migrate_; }

  OwnedFd kept_listener(const LinkRequest& request) {
    auto found = kept_.find(request.worker);
    if (found == kept_.end()) {
      // Worker 0 uses the server's own listener: one more in the group would be one that nobody
      // serves.
      OwnedFd listener = request.worker == 0 ? duplicate(request.listener)
                                             : listen_tcp(SocketAddress::local(request.listener),
                                                          request.listen_options);
      steering_->add(request.worker, listener.get());
      found = kept_.emplace(request.worker, std::move(listener)).first;
    }
    return duplicate(found->second.get());
  }

  /// For the worker alone: while this process holds a listener, no death of a worker moves its queue.
  /// Only a death closes a listener then: the last resort is given to the successor, with what it has
  /// got while there was no worker. Closed, its queue would move too, but a connection that comes at
  /// that instant is reset by the kernel.
  OwnedFd new_listener(const LinkRequest& request) {
    const bool first = !last_resort_;
    OwnedFd listener =
        first ? listen_tcp(SocketAddress::local(request.listener), request.listen_options)
              : std::move(last_resort_);
    // It brings the program, and no other listener may join the group before that. (In a successor the
    // group has its predecessor's until claim_listeners().)
    if (first && !adopted_) steering_->add(request.worker, listener.get());
    last_resort_ = listen_tcp(SocketAddress::local(listener.get()), request.listen_options);
    steering_->set_last_resort(last_resort_.get());
    // A listener has one place at a time.
    if (adopted_) {
      steering_->place(request.worker, listener.get());
    } else if (!first) {
      steering_->add(request.worker, listener.get());
    }
    if (first) {
      // Lent, so it cannot be closed here; this ends the listening.
      checked([&] { return ::shutdown(request.listener, SHUT_RD); }, "shutdown of a listener");
    }
    return listener;
  }

  Steer steer_;
  bool migrate_;
  std::optional<ReuseportSteering> steering_;
  std::size_t workers_ = 0;
  std::map<std::size_t, OwnedFd> kept_;  // migrate=off: by worker
  OwnedFd last_resort_;                  // migrate=on
  bool adopted_ = false;                 // another server's program steers the group yet
  OwnedFd adopted_map_;                  // until `steering_` has it
};

std::unique_ptr<HandoffMethod> make_reuseport(MethodOptions& options) {
  const std::string steer = options.choice("steer", "hash", {"hash", "cpu", "least-loaded"});
  return std::make_unique<Reuseport>(steer == "hash"  ? Steer::hash
                                     : steer == "cpu" ? Steer::cpu
                                                      : Steer::least_loaded,
                                     options.flag("migrate", false));
}

}  // namespace

MethodEntry reuseport() {
  return {{.name = "reuseport",
           .summary = "a listener per worker (SO_REUSEPORT); the kernel chooses",
           .options = "steer=hash|cpu|least-loaded (hash), migrate=on|off (off)",
           .kernel = "3.9 (steer=cpu: 4.5, steer=least-loaded: 5.5, migrate=on: 5.14)",
           .privilege = "none (steer=least-loaded, migrate=on: CAP_BPF and CAP_NET_ADMIN)",
           .syscalls = "acceptor 0, worker 1 (accept4)",
           .isolation = "full: a worker can shut down only its own listener",
           .after_death = "its queue: the successor takes it over (the supervisor keeps the "
                          "listener), or with migrate=on it moves to the other workers",
           .kernel_dispatches = true,
           .listener_per_worker = true,
           .worker_calls = {CallGroup::accept},
           .variants = {"steer=cpu", "steer=least-loaded", "migrate=on", "steer=cpu,migrate=on",
                        "steer=least-loaded,migrate=on"}},
          make_reuseport};
}

}  // namespace c10k
