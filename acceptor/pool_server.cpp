// --strategy pool: this process accepts (or lets the kernel do it) and workers serve.
#include <signal.h>

#include <array>
#include <utility>

#include "acceptor/dispatcher.hpp"
#include "acceptor/first_byte_gate.hpp"
#include "acceptor/server_run.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// How long to leave the listener alone when something has run out.
constexpr std::int64_t pause_ns = 10'000'000;

Retain retain_of(const ServerOptions& options) {
  if (!options.retain) return Retain::none;
  // After one echo the client waits for the end: a connection that has had it stands nowhere.
  return options.worker.echo.close_after_echo ? Retain::untouched : Retain::between_requests;
}

/// How long a silent client is kept before its connection is handed over. No byte moves meanwhile, so the
/// shorter one comes first.
std::int64_t gate_timeout_ns(const EchoOptions& echo) {
  const std::int64_t idle = echo.idle_timeout_ns;
  const std::int64_t first = echo.first_byte_timeout_ns;
  return idle == 0 || (first != 0 && first <= idle) ? first : idle;
}

/// The rest of the descriptors is for what is on its way: a server that has retained them all could hand
/// over nothing more.
std::size_t most_retained_of(const ServerOptions& options) {
  return options.most_in_hand_off - options.most_in_hand_off / 4;
}

class PoolServer : public EventHandler {
 public:
  explicit PoolServer(ServerOptions& options)
      : options_(options),
        facts_(*options.method.entry),
        loop_(epoll_poller()),
        frame_(options),
        reader_(frame_.listener(), options.accept_drain, 1),
        supervisor_(loop_, options, frame_.listener(),
                    {.started =
                         [this](WorkerProcess& worker) {
                           if (worker.sink) dispatcher_.worker_started(worker);
                         },
                     .ready = [this](WorkerProcess& worker) { worker_ready(worker); },
                     .ended = [this](WorkerProcess& worker) { worker_ended(worker); },
                     .may_have_work =
                         [this](const WorkerProcess& worker) {
                           return facts_.kernel_dispatches || dispatcher_.open(worker.slot) != 0;
                         },
                     .all_ended = [this] { loop_.stop(); }}),
        dispatcher_(loop_, options.workers, *options.policy, facts_, retain_of(options),
                    most_retained_of(options), options.worker.max_connections_per_worker),
        gate_(loop_, gate_timeout_ns(options.worker.echo),
              {.pass = [this](Received connection) { pass(std::move(connection)); },
               .timed_out = [this](Received) { count_timed_out(); }}),
        signals_(loop_, {SIGTERM, SIGINT, SIGUSR1, SIGHUP},
                 [this](int number) { on_signal(number); }) {}

  int run() {
    // Before a timer or thread of this process exists, so that the children inherit as little as
    // can be.
    supervisor_.start();
    loop_.at_end_of_turn([this] {
      // Not as the last worker says so: a signal to end that has come before is heard in this turn, and a
      // server that takes another one over must not do so then.
      if (!announced_ && !told_to_end_ && supervisor_.all_ready()) announce();
      if (std::exchange(passed_, false)) dispatcher_.flush();
      dispatcher_.collect();
    });
    frame_.run([this] { loop_.run(); }, [this] { supervisor_.spare_workers(); });
    if (!supervisor_.failure().empty()) throw std::runtime_error(supervisor_.failure());
    return 0;
  }

  /// The listener is readable.
  void on_ready(Readiness) override { accept_batch(); }

 private:
  [[nodiscard]] ProcessCounters& counters() { return *counters_; }

  void worker_ready(WorkerProcess& worker) {
    if (worker.sink) dispatcher_.worker_ready(worker);
  }

  void announce() {
    announced_ = true;
    ::getrusage(RUSAGE_SELF, &counters().at_ready);
    ServerFrame::Hooks hooks{.report = [this] { return report(); },
                             .retire = [this](bool adopts) { retire(adopts); },
                             .look_again = [this] { look_again(); }};
    if (!facts_.kernel_dispatches) hooks.adopt = [this](OwnedFd fd) { adopt(std::move(fd)); };
    frame_.announce(loop_, std::move(hooks));
    if (facts_.kernel_dispatches) return;
    loop_.watch(frame_.listener(), {.read = true, .level = true}, *this);
    accepting_ = true;
  }

  /// The server that was taken over has stopped looking at the listeners. (This process's own wait for its
  /// listener is not exclusive, and misses nothing.)
  void look_again() {
    if (facts_.kernel_dispatches) supervisor_.look_again();
  }

  /// A live connection of the server that was taken over.
  void adopt(OwnedFd fd) {
    counters().adopted.add();
    dispatcher_.add({std::move(fd), reader_.next_tag()});
    passed_ = true;
  }

  void worker_ended(WorkerProcess& worker) {
    // Its link is gone with it: what it had not received goes to others.
    dispatcher_.worker_ended(worker);
  }

  void pass(Received connection) {
    dispatcher_.add(std::move(connection));
    passed_ = true;
  }

  /// It ends here, having been served nothing: as a worker counts a silent client.
  void count_timed_out() {
    const EchoOptions& echo = options_.worker.echo;
    counters().finished.add();
    const bool by_idle = gate_timeout_ns(echo) == echo.idle_timeout_ns;
    (by_idle ? counters().closed_idle : counters().closed_silent).add();
  }

  std::size_t room() const {
    if (dispatcher_.congested()) return 0;
    const auto left = [](std::size_t most, std::size_t now) { return most > now ? most - now : 0; };
    const std::size_t fit = left(options_.most_in_hand_off,
                                 dispatcher_.in_hand_off() + dispatcher_.retained() + gate_.size());
    const std::size_t open = dispatcher_.open() + gate_.size();
    const auto allowed = [&](std::size_t most) { return most == 0 ? fit : left(most, open); };
    return std::min({batch_.size(), fit, allowed(options_.worker.max_connections),
                     allowed(options_.worker.max_connections_per_worker * options_.workers)});
  }

  void accept_batch() {
    // What cannot be handed over stays in the kernel's queue, which is bounded and visible.
    const std::size_t room_now = room();
    if (room_now == 0) {
      if (draining_ && counters().accepted.get() >= last_accept_) return stop_accepting();
      return pause();
    }
    const ReceiveResult result = reader_.accept({batch_.data(), room_now});
    if (result.error != 0) counters().errors.add(result.error);
    if (result.queue_length > counters().queue_peak.get())
      counters().queue_peak.set(result.queue_length);
    counters().accepted.add(result.received + result.shed);
    counters().shed.add(result.shed);
    for (std::size_t i = 0; i < result.received; ++i) {
      if (options_.hand_off_at_first_byte && !draining_) {
        gate_.hold(std::move(batch_[i]));
      } else {
        dispatcher_.add(std::move(batch_[i]));
      }
    }
    dispatcher_.flush();
    if (result.state == Channel::starved) pause();
    if (draining_ &&
        (result.state == Channel::would_block || counters().accepted.get() >= last_accept_)) {
      stop_accepting();
    }
  }

  void pause() {
    if (!accepting_ || paused_) return;
    paused_ = true;
    loop_.change(frame_.listener(), {.level = true});
    loop_.after(dispatcher_.congested() ? pause_ns / 10 : pause_ns, [this] {
      paused_ = false;
      if (!accepting_) return;
      loop_.change(frame_.listener(), {.read = true, .level = true});
      if (draining_) accept_batch();  // perhaps nobody comes any more who would wake us
    });
  }

  void on_signal(int number) {
    if (number == SIGUSR1) {
      if (announced_) frame_.try_write_report();
      return;
    }
    if (number == SIGHUP) return frame_.start_successor();
    if (!announced_) {  // not yet started: nothing is served, so there is nothing to drain
      told_to_end_ = true;
      supervisor_.stop();
      supervisor_.stop();
      return;
    }
    drain();
  }

  /// First what has completed its handshake by now, then what is in the channels, then the workers. A
  /// second call hurries.
  void drain() {
    if (frame_.drains_already()) return;
    if (draining_) return give_up();
    draining_ = true;
    frame_.stop_upgrades();
    gate_.open();
    dispatcher_.flush();
    loop_.after(options_.worker.drain_timeout_ns, [this] { give_up(); });
    if (!accepting_) return stop_accepting();
    last_accept_ = counters().accepted.get() + accept_queue(frame_.listener()).length;
    accept_batch();
  }

  /// A successor is ready. What waits in the accept queues is its own.
  void retire(bool adopts) {
    draining_ = true;
    loop_.after(options_.worker.drain_timeout_ns, [this] {
      give_up();
      supervisor_.stop();  // and at once
    });
    if (accepting_) loop_.forget(frame_.listener(), Removal::still_open);
    accepting_ = false;
    if (facts_.kernel_dispatches) {
      return supervisor_.retire([this] {
        frame_.upgrade()->left();
        close_listeners();
      });
    }
    frame_.upgrade()->left();
    close_listeners();
    const bool moves = adopts && options_.retain;
    if (!moves) frame_.stop_adopting();
    if (moves) {
      OwnedFd pidfd = frame_.upgrade()->successor();
      dispatcher_.hand_on(frame_.upgrade()->take_channel(), std::move(pidfd));
    }
    gate_.open();
    dispatcher_.flush();
    dispatcher_.when_empty([this, moves] {
      if (!moves) return stop_workers();
      // All are in workers now, and each of those comes back that stands between requests.
      for (std::size_t slot = 0; slot < supervisor_.size(); ++slot) {
        if (WorkerProcess* worker = supervisor_.worker(slot)) dispatcher_.mark_retained(*worker);
      }
      supervisor_.retire([] {});
      dispatcher_.when_gone([this] { stop_workers(); });
    });
  }

  void stop_accepting() {
    if (accepting_) loop_.forget(frame_.listener(), Removal::still_open);
    accepting_ = false;
    // A connection that is taken apart on its way is nowhere for a moment: what its client sends then must
    // meet the listener, where it is dropped and sent again. A closed port would answer with a reset.
    if (!facts_.consumes_connection) close_listeners();
    dispatcher_.when_empty([this] {
      close_listeners();
      stop_workers();
    });
  }

  void close_listeners() {
    frame_.close_listener();
    options_.method.method->close_listeners();
  }

  void give_up() {
    if (accepting_) stop_accepting();
    dispatcher_.abandon();
    stop_workers();
  }

  void stop_workers() {
    // Nobody is left who would take over from one that dies now.
    dispatcher_.release_retained();
    supervisor_.stop();
  }

  ServerReport report() {
    dispatcher_.collect();
    ServerReport result;
    const DispatchCounts& dispatched = dispatcher_.counts();
    result.processes.reserve(1 + supervisor_.size());
    ProcessTotals& acceptor = result.processes.emplace_back();
    acceptor.role = "acceptor";
    acceptor.pid = ::getpid();
    acceptor.add(counters(), true);
    acceptor.active = 0;  // they are the workers', or in the hand-off
    acceptor.redelivered = dispatched.redelivered;
    acceptor.shed += dispatched.shed;
    for (const auto& [error, count] : dispatched.errors) acceptor.errors[error] += count;
    acceptor.lost = dispatched.abandoned + dispatched.lost;
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    acceptor.add(usage, counters().at_ready);
    acceptor.handed_on = dispatcher_.handed_on();
    result.in_hand_off = dispatcher_.waiting() + dispatcher_.on_their_way() + gate_.size();
    for (ProcessTotals& worker : supervisor_.totals()) {
      acceptor.handed += dispatched.handed[worker.slot];
      result.in_hand_off += dispatched.handed[worker.slot] - dispatched.taken_back[worker.slot] -
                            worker.received + worker.handed_back -
                            dispatched.handed_back[worker.slot];
      worker.lost -= std::min(worker.lost, dispatched.rescued[worker.slot]);
      result.processes.push_back(std::move(worker));
    }
    result.load_age = dispatched.load_age;
    result.load_error_max = dispatched.load_error_max;
    result.worker_deaths = supervisor_.deaths();
    result.not_retained = dispatched.not_retained;
    result.stuck_workers = supervisor_.stuck();
    result.degraded = supervisor_.degraded();
    return result;
  }

  ServerOptions& options_;
  const MethodFacts& facts_;
  EventLoop loop_;
  ServerFrame frame_;
  // Its own: no worker is to find it in shared memory.
  std::unique_ptr<ProcessCounters> counters_ = std::make_unique<ProcessCounters>();
  AcceptQueueReader reader_;
  Supervisor supervisor_;
  Dispatcher dispatcher_;
  FirstByteGate gate_;
  SignalWatch signals_;
  std::array<Received, receive_room> batch_;
  bool announced_ = false;
  bool told_to_end_ = false;  // before it was announced
  bool accepting_ = false;
  bool paused_ = false;
  bool passed_ = false;  // in this turn, something came through the gate
  bool draining_ = false;
  std::uint64_t last_accept_ = 0;  // draining: how many will have been accepted in all
};

}  // namespace

int run_pool_server(ServerOptions& options) {
  return PoolServer(options).run();
}

}  // namespace c10k
