#include "acceptor/supervisor.hpp"

#include <signal.h>
#include <sys/socket.h>

#include <algorithm>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::int64_t first_back_off_ns = 10'000'000;
constexpr std::int64_t longest_back_off_ns = 2'000'000'000;
/// A worker that lived so long was well; the next death starts the back-off anew.
constexpr std::int64_t healthy_after_ns = 5'000'000'000;
/// Between a worker's own drain deadline and its SIGKILL.
constexpr std::int64_t kill_grace_ns = 2'000'000'000;
/// One that is ready to run but gets no CPU, or burns it for one request, is given so much longer.
constexpr int running_patience = 20;
constexpr int looks_per_deadline = 2;

/// By a signal or a debugger.
bool is_stopped(char state) {
  return state == 'T' || state == 't';
}

}  // namespace

/// A pidfd becomes readable when its process has ended.
class Supervisor::ExitWatch : public EventHandler {
 public:
  ExitWatch(Supervisor& supervisor, std::size_t slot, int pidfd)
      : supervisor_(supervisor), slot_(slot), pidfd_(pidfd) {
    supervisor_.loop_.watch(pidfd_, {.read = true, .level = true}, *this);
  }
  ~ExitWatch() override { supervisor_.loop_.forget(pidfd_, Removal::still_open); }
  void on_ready(Readiness) override { supervisor_.on_ended(slot_); }

 private:
  Supervisor& supervisor_;
  std::size_t slot_;
  int pidfd_;
};

/// What the worker says: that it is ready, and that it has left. (Its end the pidfd tells.)
class Supervisor::ControlWatch : public EventHandler {
 public:
  ControlWatch(Supervisor& supervisor, std::size_t slot, int control)
      : supervisor_(supervisor), slot_(slot), control_(control) {
    supervisor_.loop_.watch(control_, {.read = true, .level = true}, *this);
  }
  ~ControlWatch() override { unwatch(); }
  void on_ready(Readiness) override {
    char byte = 0;
    const ssize_t got = ::recv(control_, &byte, 1, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got != 1) return unwatch();
    if (byte == control::ready) supervisor_.on_ready(slot_);
    if (byte == control::left) supervisor_.on_left(slot_);
  }

 private:
  void unwatch() {
    if (watching_) supervisor_.loop_.forget(control_, Removal::still_open);
    watching_ = false;
  }

  Supervisor& supervisor_;
  std::size_t slot_;
  int control_;
  bool watching_ = true;
};

Supervisor::Supervisor(EventLoop& loop, const ServerOptions& options, int listener, Hooks hooks)
    : loop_(loop),
      options_(options),
      listener_(listener),
      hooks_(std::move(hooks)),
      active_(options.workers),
      slots_(options.workers),
      wait_to_accept_(!options.take_over.empty()) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].past.role = "worker";
    slots_[i].past.slot = i;
  }
}

Supervisor::~Supervisor() = default;

void Supervisor::start() {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) spawn(slot);
  loop_.after(options_.start_deadline_ns, [this] { check_start(); });
  look_after_workers();
}

/// A worker that is stuck is ended: what it has not taken goes to others, and what it has is closed,
/// which its clients can see. Proof of life is an echo or a turn of its loop. One that may have work and
/// has shown neither since the last look is poked, and has the deadline to turn. Looks are counted, not
/// time: when this process is stopped together with its workers, nobody's deadline passes.
void Supervisor::look_after_workers() {
  if (options_.worker_deadline_ns == 0) return;
  loop_.after(options_.worker_deadline_ns / looks_per_deadline, [this] {
    const bool one_is_stopped = std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
      return slot.worker && slot.looks_in_debt != 0 &&
             is_stopped(state_of(slot.worker->stat.get()));
    });
    const std::int64_t now = monotonic_ns();
    for (Slot& slot : slots_) {
      if (!slot.worker) continue;
      if (slot.worker->ready) {
        look_after(slot, one_is_stopped);
      } else if (slot.ever_ready && !slot.killed &&
                 now - slot.worker->started_ns > options_.start_deadline_ns) {
        slot.killed = true;
        fmt::print(stderr, "c10k-server: worker {} (process {}) was not ready after {} s: killed\n",
                   slot.worker->slot, slot.worker->child.pid(), start_deadline_s());
        slot.worker->child.signal(SIGKILL);
      }
    }
    look_after_workers();
  });
}

void Supervisor::look_after(Slot& slot, bool one_is_stopped) {
  const WorkerProcess& worker = *slot.worker;
  // Its state first: one that has worked meanwhile and sleeps again has progressed by the next line.
  const char state = slot.looks_in_debt == 0 ? '?' : state_of(worker.stat.get());
  const std::uint64_t progress = worker.counters().turns.get() + worker.counters().echoes.get();
  if (progress != slot.progress) {
    slot.progress = progress;
    slot.looks_in_debt = 0;
    return;
  }
  if (slot.looks_in_debt == 0) {
    if (!hooks_.may_have_work(worker)) return;
    tell(slot, control::poke);
  }
  // It may wait for the one that is stopped: the sharer of a queue serves one worker at a time.
  if (slot.looks_in_debt != 0 && one_is_stopped && !is_stopped(state)) return;
  const int patience = looks_per_deadline * (state == 'R' || state == 'D' ? running_patience : 1);
  if (slot.looks_in_debt++ < patience || slot.killed) return;
  slot.killed = true;
  ++stuck_;
  fmt::print(stderr,
             "c10k-server: worker {} (process {}, state {}) made no progress for {} ms: killed\n",
             worker.slot, worker.child.pid(), state,
             options_.worker_deadline_ns / looks_per_deadline * patience / 1'000'000);
  worker.child.signal(SIGKILL);
}

void Supervisor::check_start() {
  for (const Slot& slot : slots_) {
    if (!slot.ever_ready) {
      throw std::runtime_error(
          fmt::format("a worker was not ready after {} s", start_deadline_s()));
    }
  }
}

double Supervisor::start_deadline_s() const {
  return static_cast<double>(options_.start_deadline_ns) / 1e9;
}

bool Supervisor::all_ready() const {
  return std::all_of(slots_.begin(), slots_.end(),
                     [](const Slot& slot) { return slot.worker && slot.worker->ready; });
}

void Supervisor::spawn(std::size_t index) {
  Slot& slot = slots_[index];
  const MethodFacts& facts = *options_.method.entry;
  auto worker = std::make_unique<WorkerProcess>();
  worker->slot = index;
  worker->started_ns = monotonic_ns();
  worker->shared = std::make_unique<SharedArray<ProcessCounters>>(1, SharedWith::one_child);

  LinkRequest request;
  request.worker = index;
  request.workers = slots_.size();
  request.listener = listener_;
  request.listen_options = options_.listener;
  request.accept_drain = options_.accept_drain;
  request.write_timeout_ns = options_.worker.echo.write_timeout_ns;
  request.exclusive_possible = options_.loop->exclusive;
  const std::unique_ptr<Link> link = options_.method.method->open(request);

  auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
  std::vector<int> keep = link->worker_descriptors();
  keep.push_back(theirs.get());
  const pid_t acceptor = ::getpid();
  WorkerOptions worker_options = options_.worker;
  worker_options.wait_to_accept = wait_to_accept_;
  worker->child = ChildProcess::fork(
      [&, &theirs = theirs] {  // Clang before 16 does not capture a structured binding by itself
        if (options_.user) become(*options_.user);
        return run_worker_process(*options_.loop, link->worker_end(), facts.kernel_dispatches,
                                  worker_options, worker->counters(), active_.all(), index,
                                  std::move(theirs), acceptor);
      },
      keep, 0, facts.shared_table ? Table::shared : Table::own);
  worker->stat = open_stat(worker->child.pid());
  withhold_from_later_children();  // its counters, and what its link shares
  link->leave_to_worker(std::move(theirs));
  worker->control = std::move(ours);
  worker->sink = link->acceptor_end(worker->child.pidfd());

  slot.worker = std::move(worker);
  slot.progress = 0;
  slot.looks_in_debt = 0;
  slot.killed = false;
  slot.leaving = false;
  slot.exit_watch = std::make_unique<ExitWatch>(*this, index, slot.worker->child.pidfd());
  slot.control_watch = std::make_unique<ControlWatch>(*this, index, slot.worker->control.get());
  hooks_.started(*slot.worker);
}

void Supervisor::tell(const Slot& slot, char byte) const {
  // It fails for one that has ended, of which the pidfd tells.
  if (slot.worker) (void)::send(slot.worker->control.get(), &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void Supervisor::look_again() {
  wait_to_accept_ = false;
  for (const Slot& slot : slots_) tell(slot, control::look_again);
}

void Supervisor::retire(std::function<void()> left) {
  const bool drains = options_.method.entry->kernel_dispatches;
  bool any = false;
  for (Slot& slot : slots_) {
    tell(slot, control::retire);
    slot.leaving = drains && slot.worker;
    any = any || slot.worker;
  }
  if (!drains) return left();
  stopping_ = true;
  if (!any) {
    left();
    return hooks_.all_ended();
  }
  all_left_ = std::move(left);
  end_workers_after(options_.worker.drain_timeout_ns + kill_grace_ns);
}

void Supervisor::on_left(std::size_t index) {
  slots_[index].leaving = false;
  const bool all =
      std::none_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.leaving; });
  if (all && all_left_) std::exchange(all_left_, nullptr)();
}

void Supervisor::on_ready(std::size_t index) {
  Slot& slot = slots_[index];
  if (slot.worker->ready) return;
  slot.worker->ready = true;
  slot.ever_ready = true;
  hooks_.ready(*slot.worker);
}

void Supervisor::on_ended(std::size_t index) {
  Slot& slot = slots_[index];
  // The watches go before the descriptors they watch. The exit watch is whose call this is; it is
  // not touched again.
  slot.exit_watch.reset();
  slot.control_watch.reset();
  const std::unique_ptr<WorkerProcess> worker = std::move(slot.worker);
  const pid_t pid = worker->child.pid();
  const ChildExit exit = worker->child.wait();  // it has ended: this does not block
  if (!slot.ever_ready && !stopping_) {
    throw std::runtime_error(
        fmt::format("worker {} ended before it was ready: {}", index, exit.text()));
  }
  options_.method.method->worker_ended(index);
  hooks_.ended(*worker);
  on_left(index);
  slot.past.add(worker->counters(), false);
  slot.past.add(exit.usage, worker->counters().at_ready);
  active_[index].set(0);

  if (!stopping_ || !exit.clean()) {
    ++deaths_;
    fmt::print(stderr, "c10k-server: worker {} (process {}) ended: {}\n", index, pid, exit.text());
  }
  if (stopping_) {
    const bool all = std::none_of(slots_.begin(), slots_.end(),
                                  [](const Slot& other) { return other.worker != nullptr; });
    if (all) hooks_.all_ended();
    return;
  }
  if (exit.asks_not_to_be_restarted()) return abandon(index);
  const bool was_healthy = monotonic_ns() - worker->started_ns >= healthy_after_ns;
  slot.failures_in_row = was_healthy ? 0 : slot.failures_in_row + 1;
  replace(index);
}

void Supervisor::abandon(std::size_t index) {
  slots_[index].abandoned = true;
  options_.method.method->worker_abandoned(index);
  if (std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.abandoned; }))
    return;
  stopping_ = true;
  failure_ = "no worker is left, and all have asked not to be restarted; see what they said";
  hooks_.all_ended();
}

void Supervisor::replace(std::size_t index) {
  Slot& slot = slots_[index];
  const std::int64_t delay = slot.failures_in_row == 0
                                 ? 0
                                 : std::min(longest_back_off_ns, first_back_off_ns << std::min(
                                                                     slot.failures_in_row - 1, 20));
  loop_.after(delay, [this, index, &slot] {
    if (stopping_) return;
    try {
      spawn(index);
      ++slot.past.restarts;
    } catch (const std::exception& error) {
      fmt::print(stderr, "c10k-server: worker {} cannot be replaced yet: {}\n", index,
                 error.what());
      ++slot.failures_in_row;
      replace(index);
    }
  });
}

void Supervisor::stop() {
  const bool first = !stopping_;
  stopping_ = true;
  bool any = false;
  for (const Slot& slot : slots_) {
    if (!slot.worker) continue;
    slot.worker->child.signal(first ? SIGTERM : SIGQUIT);
    any = true;
  }
  if (!first) return;
  if (!any) return hooks_.all_ended();
  end_workers_after(options_.worker.drain_timeout_ns + kill_grace_ns);
}

void Supervisor::end_workers_after(std::int64_t delay_ns) {
  loop_.after(delay_ns, [this] {
    for (const Slot& slot : slots_) {
      if (slot.worker) slot.worker->child.signal(SIGKILL);
    }
  });
}

void Supervisor::spare_workers() {
  for (const Slot& slot : slots_) {
    if (slot.worker) slot.worker->child.spare();
  }
}

std::string Supervisor::degraded() const {
  std::string text;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if ((slot.worker && slot.worker->ready) || (stopping_ && !slot.abandoned)) continue;
    text += fmt::format("{}worker {} {}", text.empty() ? "" : ", ", i,
                        slot.abandoned ? "asked not to be restarted"
                        : slot.worker  ? "is not ready yet"
                                       : "waits to be replaced");
  }
  return text;
}

std::vector<ProcessTotals> Supervisor::totals() const {
  std::vector<ProcessTotals> rows;
  for (const Slot& slot : slots_) {
    ProcessTotals& row = rows.emplace_back(slot.past);
    if (!slot.worker) continue;
    row.pid = slot.worker->child.pid();
    row.add(slot.worker->counters(), true);
    if (!slot.worker->ready) continue;
    row.add(usage_of(row.pid, slot.worker->stat.get()), slot.worker->counters().at_ready);
  }
  return rows;
}

}  // namespace c10k
