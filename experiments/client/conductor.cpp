#include "experiments/client/conductor.hpp"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <stdexcept>

#include "experiments/client/progress.hpp"
#include "experiments/client/run.hpp"
#include "ipc/process.hpp"
#include "ipc/syscall.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {
namespace {

int run_client_process(const SharedRun& shared, const Engine& engine, std::size_t index) {
  // A start that is due is late by the timer's slack (50 us by default, prctl(2)).
  if (shared.options.rate > 0)
    checked([] { return ::prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }, "prctl PR_SET_TIMERSLACK");
  Run run(shared, index);
  engine.run(run);
  return 0;
}

class Conductor : public EventHandler {
 public:
  Conductor(const SharedRun& run, const Engine& engine)
      : run_(run),
        state_(run.state()),
        // Before any process is forked: they inherit the blocked signals, as a terminal sends SIGINT
        // to all of them, and the conductor says when to stop.
        signals_(loop_, {SIGINT, SIGTERM, SIGCHLD}, [this](int number) { on_signal(number); }),
        progress_(loop_, run) {
    loop_.watch(run_.arrived.get(), {.read = true, .level = true}, *this);
    const std::array keep{run_.arrived.get(), run_.go[0].get(), run_.go[1].get()};
    try {
      for (std::size_t i = 0; i < run_.options.processes; ++i) {
        pids_.push_back(
            fork_process([&, i] { return run_client_process(run_, engine, i); }, keep, SIGKILL));
      }
    } catch (const std::exception& error) {
      const std::size_t made = pids_.size();
      kill_all();
      throw std::runtime_error(
          fmt::format("{}; {} client processes could be made: give fewer", error.what(), made));
    }
    running_ = pids_.size();
  }
  ~Conductor() override {
    kill_all();
    loop_.forget(run_.arrived.get(), Removal::closing);
  }

  void work() {
    loop_.run();
    if (!failure_.empty()) throw std::runtime_error(failure_);
  }

  void on_ready(Readiness) override {
    eventfd_t count = 0;
    checked([&] { return ::eventfd_read(run_.arrived.get(), &count); }, "read eventfd");
    arrived_ += count;
    if (arrived_ == pids_.size()) phase_done();
  }

 private:
  [[nodiscard]] std::size_t begun() const { return state_.progress.phases_begun; }

  /// All processes are through with the phase; but the phase may last longer than what it has to do:
  /// an idle one has nothing, and the rate of a paced one is that of its whole duration.
  void phase_done() {
    if (begun() == 0) return begin_next();
    const Phase& phase = run_.phases[begun() - 1];
    const bool used_up = run_.options.requests && state_.taken >= *run_.options.requests;
    const std::int64_t left = state_.progress.deadline_ns - monotonic_ns();
    if ((phase.paced || !phase.repeats) && phase.duration_ns != 0 && left > 0 && !used_up &&
        !state_.stopped) {
      waiting_ = loop_.after(left, [this] {
        waiting_ = 0;
        end_phase();
      });
      return;
    }
    end_phase();
  }

  void end_phase() {
    state_.progress.times[begun() - 1].end_ns = monotonic_ns();
    begin_next();
  }

  void begin_next() {
    arrived_ = 0;
    if (state_.stopped || begun() == run_.phases.size()) {
      state_.progress.over = true;
    } else {
      const Phase& phase = run_.phases[begun()];
      const std::int64_t now = monotonic_ns();
      state_.progress.times[begun()] = {now, now};
      state_.progress.deadline_ns = now + phase.duration_ns;
      state_.silent = false;
      if (phase.paced) {
        // A fixed seed: two runs have the same gaps.
        state_.schedule.begin(now, run_.options.rate, run_.options.poisson, begun() + 1);
      }
      ++state_.progress.phases_begun;
      if (run_.options.announce_phases) {
        fmt::print(stderr, "phase {}\n", phase.name);
        std::fflush(stderr);
      }
    }
    const OwnedFd& go = run_.go[begins_++ % 2];
    checked([&] { return ::eventfd_write(go.get(), pids_.size()); }, "write eventfd");
  }

  void on_signal(int number) {
    if (number == SIGCHLD) return reap();
    if (state_.stopped) {
      if (begun() != 0) state_.progress.times[begun() - 1].end_ns = monotonic_ns();
      kill_all();
      return loop_.stop();
    }
    run_.stop(End::interrupted);
    // A phase that only waits for its time ends now.
    if (waiting_ != 0) {
      loop_.cancel(waiting_);
      waiting_ = 0;
      end_phase();
    }
  }

  void reap() {
    while (true) {
      const auto [pid, ended] = reap_any_child();
      if (pid == 0) break;
      const auto found = std::find(pids_.begin(), pids_.end(), pid);
      if (found == pids_.end()) continue;
      *found = 0;
      --running_;
      if (!state_.progress.over || !ended.clean()) {
        failure_ =
            fmt::format("a client process (pid {}) ended before the run: {}", pid, ended.text());
        kill_all();
        return loop_.stop();
      }
    }
    if (running_ == 0) loop_.stop();
  }

  void kill_all() noexcept {
    for (const pid_t pid : pids_) {
      if (pid != 0) ::kill(pid, SIGKILL);  // not reaped yet: the number is still its own
    }
    for (pid_t& pid : pids_) {
      if (pid != 0) (void)retry_eintr([&] { return ::waitpid(pid, nullptr, 0); });
      pid = 0;
    }
  }

  const SharedRun& run_;
  SharedRun::State& state_;
  EventLoop loop_{epoll_poller()};
  SignalWatch signals_;
  Progress progress_;
  std::vector<pid_t> pids_;  // 0: reaped
  std::size_t running_ = 0;
  std::uint64_t arrived_ = 0;
  std::size_t begins_ = 0;     // of phases, the end too
  std::uint64_t waiting_ = 0;  // the timer of a phase that only waits
  std::string failure_;
};

}  // namespace

void conduct(const SharedRun& run, const Engine& engine) {
  Conductor(run, engine).work();
}

}  // namespace c10k
