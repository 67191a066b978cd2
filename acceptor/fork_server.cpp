// --strategy fork: a process per connection, the oldest shape of all.
#include <signal.h>
#include <sys/wait.h>

#include <charconv>
#include <deque>
#include <fstream>
#include <set>

#include "acceptor/server_run.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/process.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"
#include "workers/readiness_echo.hpp"

namespace c10k {
namespace {

constexpr std::int64_t pause_ns = 10'000'000;
/// What a child that serves one connection costs in memory, kernel and user together (measured
/// here: about 0.5 MB), with room to spare.
constexpr std::uint64_t bytes_per_child = 1'000'000;
/// Processes left to everybody else.
constexpr std::uint64_t spared_processes = 1024;

/// The number in the first line of a file that begins with `prefix`; nothing when there is none
/// ("max", no such file).
std::optional<std::uint64_t> number_in(const std::string& path, std::string_view prefix = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(prefix)) continue;
    std::uint64_t value = 0;
    const std::string_view rest =
        std::string_view(line).substr(std::min(line.find_first_of("0123456789"), line.size()));
    if (std::from_chars(rest.data(), rest.data() + rest.size(), value).ec == std::errc{})
      return value;
  }
  return std::nullopt;
}

struct Cap {
  std::size_t processes = 0;
  std::string because;
};

/// How many children this machine lets us have.
Cap process_cap() {
  Cap cap{1'000'000, "its own limit"};
  const auto bound = [&](std::optional<std::uint64_t> limit, std::string_view name) {
    if (!limit) return;
    const std::uint64_t usable =
        *limit > 2 * spared_processes ? *limit - spared_processes : *limit / 2;
    if (usable < cap.processes) cap = {usable, fmt::format("{} = {}", name, *limit)};
  };
  rlimit processes{};
  if (::getrlimit(RLIMIT_NPROC, &processes) == 0 && processes.rlim_cur != RLIM_INFINITY) {
    bound(processes.rlim_cur, "RLIMIT_NPROC");
  }
  bound(number_in("/proc/sys/kernel/pid_max"), "kernel.pid_max");
  bound(number_in("/proc/sys/kernel/threads-max"), "kernel.threads-max");
  bound(number_in("/sys/fs/cgroup/pids.max"), "pids.max of the cgroup");
  if (const auto available_kb = number_in("/proc/meminfo", "MemAvailable:")) {
    const std::uint64_t fit = *available_kb * 1024 / bytes_per_child;
    if (fit < cap.processes)
      cap = {fit, fmt::format("memory: {} MB available", *available_kb / 1024)};
  }
  return cap;
}

/// One connection, to its end.
int run_child(Received connection, const WorkerOptions& options, ProcessCounters& shared) {
  EventLoop loop(poll_poller());
  const auto own = std::make_unique<ProcessCounters>();
  ReadinessEcho service(loop, options.echo, *own);
  service.on_closed([&] { loop.stop(); });
  const auto end = [&] {
    own->closed_draining.add(service.active());
    service.close_all();
  };
  const SignalWatch signals(loop, {SIGTERM, SIGQUIT}, [&](int number) {
    if (number == SIGQUIT) return end();
    loop.after(options.drain_timeout_ns, end);
  });
  service.serve(std::move(connection), 0);
  if (service.active() != 0) loop.run();
  // The children share these, so they add as several writers must.
  shared.echoes.add_shared(own->echoes.get());
  shared.bytes.add_shared(own->bytes.get());
  shared.closed_idle.add_shared(own->closed_idle.get());
  shared.closed_silent.add_shared(own->closed_silent.get());
  shared.closed_stalled.add_shared(own->closed_stalled.get());
  shared.closed_draining.add_shared(own->closed_draining.get());
  for (std::size_t error = 0; error < ErrorTally::limit; ++error) {
    if (const auto count = own->errors[error].get(); count != 0)
      shared.errors[error].add_shared(count);
  }
  return 0;
}

class ForkServer : public EventHandler {
 public:
  explicit ForkServer(ServerOptions& options)
      : options_(options),
        cap_(process_cap()),
        loop_(epoll_poller()),
        frame_(options),
        counters_(2),
        reader_(frame_.listener(), options.accept_drain, 1),
        signals_(loop_, {SIGTERM, SIGINT, SIGUSR1, SIGHUP, SIGCHLD},
                 [this](int number) { on_signal(number); }) {
    if (const std::size_t asked = options.worker.max_connections; asked != 0) {
      if (asked > cap_.processes) {
        throw UsageError(
            fmt::format("--max-connections: {} processes do not fit ({}); give at most {}", asked,
                        cap_.because, cap_.processes));
      }
      cap_ = {asked, "--max-connections"};
    }
    options.worker.max_connections = cap_.processes;  // as resolved, for the report
  }

  ~ForkServer() override {
    for (const pid_t pid : children_) ::kill(pid, SIGKILL);
    for (const pid_t pid : children_) (void)retry_eintr([&] { return ::waitpid(pid, nullptr, 0); });
  }

  int run() {
    loop_.watch(frame_.listener(), {.read = true, .level = true}, *this);
    // Before the first child, which inherits it and asks for its parent's death signal afterwards.
    if (options_.user) become(*options_.user);
    ::getrusage(RUSAGE_SELF, &acceptor().at_ready);
    frame_.announce(loop_, {.report = [this] { return report(); },
                            .retire = [this](bool) { retire(); },
                            .look_again = [] {}});
    if (options_.user) forbid_other_calls(options_.worker.allowed_calls);
    frame_.run([this] { loop_.run(); },
               [this] { children_.clear(); });  // they see the end of this process, and drain
    return 0;
  }

  void on_ready(Readiness) override {
    if (children_.size() >= cap_.processes) {
      if (!std::exchange(said_full_, true)) {
        fmt::print(stderr,
                   "c10k-server: {} processes are the cap ({}); further connections wait in the "
                   "accept queue\n",
                   cap_.processes, cap_.because);
      }
      return pause();
    }
    const std::size_t room = std::min(batch_.size(), cap_.processes - children_.size());
    const ReceiveResult result = reader_.accept({batch_.data(), room});
    if (result.error != 0) acceptor().errors.add(result.error);
    if (result.queue_length > acceptor().queue_peak.get())
      acceptor().queue_peak.set(result.queue_length);
    acceptor().accepted.add(result.received + result.shed);
    acceptor().shed.add(result.shed);
    for (std::size_t i = 0; i < result.received; ++i) held_.push_back(std::move(batch_[i]));
    start_held();
    if (result.state == Channel::starved) pause();
  }

 private:
  [[nodiscard]] ProcessCounters& acceptor() { return counters_[0]; }
  [[nodiscard]] ProcessCounters& of_children() { return counters_[1]; }

  /// A child for each connection that waits for one. What the kernel refuses is tried again later.
  void start_held() {
    while (!held_.empty()) {
      Received& next = held_.front();
      const int fd = next.fd.get();
      try {
        const pid_t pid =
            fork_process([&] { return run_child(std::move(next), options_.worker, of_children()); },
                         {&fd, 1}, SIGTERM);
        children_.insert(pid);
        if (draining_) ::kill(pid, SIGTERM);
      } catch (const SystemError& error) {
        acceptor().errors.add(error.code().value());
        return pause();
      }
      of_children().received.add();
      held_.pop_front();
    }
  }

  void pause() {
    if (paused_) return;
    paused_ = true;
    if (!draining_) loop_.change(frame_.listener(), {.level = true});
    loop_.after(pause_ns, [this] {
      paused_ = false;
      start_held();
      if (!draining_ && !paused_) loop_.change(frame_.listener(), {.read = true, .level = true});
    });
  }

  void on_signal(int number) {
    if (number == SIGUSR1) return frame_.try_write_report();
    if (number == SIGCHLD) return reap();
    if (number == SIGHUP) return frame_.start_successor();
    if (frame_.drains_already()) return;
    frame_.stop_upgrades();
    const bool again = draining_;
    if (!draining_) {
      // What has completed its handshake by now is still served.
      const std::uint64_t last = acceptor().accepted.get() + accept_queue(frame_.listener()).length;
      std::uint64_t before = 0;
      do {
        before = acceptor().accepted.get();
        on_ready({});
      } while (acceptor().accepted.get() != before && before < last);
      stop_accepting();
    }
    // Not reaped, so the numbers are theirs.
    for (const pid_t pid : children_) ::kill(pid, again ? SIGQUIT : SIGTERM);
    if (again) return give_up_held();
    stop_if_done();
  }

  /// Those for whom the kernel refuses a process, as it may for ever.
  void give_up_held() {
    abandoned_ += held_.size();
    held_.clear();
    stop_if_done();
  }

  /// A successor accepts by now.
  void retire() {
    stop_accepting();
    frame_.upgrade()->left();
    for (const pid_t pid : children_) ::kill(pid, SIGTERM);
    stop_if_done();
  }

  void stop_accepting() {
    draining_ = true;
    loop_.after(options_.worker.drain_timeout_ns, [this] { give_up_held(); });
    // The successor may hold the open file: closing would not end its events.
    loop_.forget(frame_.listener(), Removal::still_open);
    frame_.close_listener();
  }

  void reap() {
    while (true) {
      const auto [pid, exit] = reap_any_child();
      if (pid == 0) break;
      if (children_.erase(pid) == 0) {
        if (frame_.upgrade() != nullptr) (void)frame_.upgrade()->reaped(pid, exit);
        continue;
      }
      usage_.add(exit.usage, rusage{});
      if (exit.clean()) {
        of_children().finished.add();
      } else {
        ++lost_;
        fmt::print(stderr, "c10k-server: child {} ended: {}\n", pid, exit.text());
      }
    }
    stop_if_done();
  }

  void stop_if_done() {
    // What has been accepted and has no process yet gets one first.
    if (draining_ && held_.empty() && children_.empty()) loop_.stop();
  }

  ServerReport report() {
    ServerReport result;
    ProcessTotals& own = result.processes.emplace_back();
    own.role = "acceptor";
    own.pid = ::getpid();
    own.add(acceptor(), true);
    own.active = 0;  // they are the children's
    own.handed = of_children().received.get();
    own.lost = abandoned_;
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    own.add(usage, acceptor().at_ready);

    ProcessTotals& children = result.processes.emplace_back(usage_);
    children.role = "children";
    children.add(of_children(), true);
    children.active = children_.size();
    children.lost = lost_;
    result.in_hand_off = held_.size();
    result.worker_deaths = lost_;
    return result;
  }

  ServerOptions& options_;
  Cap cap_;
  EventLoop loop_;
  ServerFrame frame_;
  SharedArray<ProcessCounters> counters_;
  AcceptQueueReader reader_;
  SignalWatch signals_;
  std::array<Received, receive_room> batch_;
  std::deque<Received> held_;  // accepted, and no process yet
  std::set<pid_t> children_;
  ProcessTotals usage_;  // of the children that have ended
  std::uint64_t lost_ = 0;       // of children that have died
  std::uint64_t abandoned_ = 0;  // for whom there was no process
  bool said_full_ = false;
  bool paused_ = false;
  bool draining_ = false;
};

}  // namespace

int run_fork_server(ServerOptions& options) {
  return ForkServer(options).run();
}

}  // namespace c10k
