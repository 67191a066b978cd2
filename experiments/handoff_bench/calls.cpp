#include "experiments/handoff_bench/calls.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <fstream>
#include <stdexcept>

#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// Those that a hand-off is likely to make; others are shown by number.
std::string name_of(std::uint64_t number) {
  struct Name {
    long number;
    const char* name;
  };
#define C10K_NAME(call) \
  Name {                \
    SYS_##call, #call   \
  }
  static constexpr std::array names{
      C10K_NAME(accept4),        C10K_NAME(bind),        C10K_NAME(clock_nanosleep),
      C10K_NAME(close),          C10K_NAME(connect),     C10K_NAME(dup),
      C10K_NAME(dup3),           C10K_NAME(epoll_ctl),   C10K_NAME(epoll_pwait),
      C10K_NAME(fcntl),          C10K_NAME(futex),       C10K_NAME(getpid),
      C10K_NAME(getrandom),      C10K_NAME(getsockname), C10K_NAME(getsockopt),
      C10K_NAME(io_uring_enter), C10K_NAME(ioctl),       C10K_NAME(mmap),
      C10K_NAME(munmap),         C10K_NAME(pidfd_getfd), C10K_NAME(ppoll),
      C10K_NAME(read),           C10K_NAME(recvfrom),    C10K_NAME(recvmsg),
      C10K_NAME(sched_yield),    C10K_NAME(sendmsg),     C10K_NAME(sendto),
      C10K_NAME(setsockopt),     C10K_NAME(shutdown),    C10K_NAME(socket),
      C10K_NAME(write),          C10K_NAME(writev),
#ifdef SYS_poll
      C10K_NAME(poll),           C10K_NAME(epoll_wait),  C10K_NAME(open),
#endif
  };
#undef C10K_NAME
  for (const Name& name : names) {
    if (static_cast<std::uint64_t>(name.number) == number) return name.name;
  }
  return fmt::format("syscall_{}", number);
}

/// The process of a thread.
pid_t process_of(pid_t thread) {
  std::ifstream file(fmt::format("/proc/{}/status", thread));
  std::string word;
  pid_t process = 0;
  while (file >> word) {
    if (word == "Tgid:" && file >> process) break;
  }
  return process;
}

/// A child that is killed and reaped whatever happens. (A ChildProcess reaps by itself, and here the
/// tracer's wait takes every end there is.)
class Tracee {
 public:
  explicit Tracee(pid_t pid) : pid_(pid) {}
  Tracee(const Tracee&) = delete;
  Tracee& operator=(const Tracee&) = delete;
  ~Tracee() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    int status = 0;
    // Its receiver dies of its parent's death, traced (by us) or not.
    while (retry_eintr([&] { return ::waitpid(-1, &status, __WALL); }) > 0) {
    }
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  void reaped() { pid_ = 0; }

 private:
  pid_t pid_;
};

/// Follows the process and all that come from it until it ends; returns its status.
int trace(Tracee& tracee, BenchState& state, CallCounts& counts) {
  std::map<pid_t, bool> is_sender;
  int result = 0;
  while (true) {
    int status = 0;
    const pid_t thread = retry_eintr([&] { return ::waitpid(-1, &status, __WALL); });
    if (thread < 0) {
      tracee.reaped();
      return result;  // ECHILD: all have ended
    }
    if (!WIFSTOPPED(status)) {
      if (thread == tracee.pid()) result = status;
      continue;
    }
    int deliver = 0;
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info{};
      const auto size = ::ptrace(PTRACE_GET_SYSCALL_INFO, thread,
                                 reinterpret_cast<void*>(sizeof info), &info);  // NOLINT
      if (size > 0 && info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        const auto [known, fresh] = is_sender.try_emplace(thread);
        if (fresh) known->second = process_of(thread) == tracee.pid();
        const std::atomic<bool>& counting =
            known->second ? state.sender_counts : state.receiver_counts;
        if (counting.load())
          ++(known->second ? counts.sender : counts.receiver)[name_of(info.entry.nr)];
      }
    } else if (status >> 16 == 0) {
      deliver = WSTOPSIG(status);
    }
    // It may have been killed meanwhile; then its end comes next.
    (void)::ptrace(PTRACE_SYSCALL, thread, nullptr, deliver);
  }
}

}  // namespace

CallCounts count_calls(RigSetup setup, std::uint64_t descriptors) {
  const SharedBenchState state = setup.state;  // which the tracer reads and the rig writes
  const SharedArray<std::atomic<std::uint64_t>> sent(1);
  auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
  const std::array keep{theirs.get()};
  Tracee tracee(fork_process(
      [&] {
        pollfd go{theirs.get(), POLLIN, 0};
        checked([&] { return ::poll(&go, 1, -1); }, "poll");
        Rig rig(std::move(setup));
        // What a method does once, at its first connections, is not what each one costs.
        rig.run(descriptors);
        sent[0].store(rig.fill(descriptors, true).sent);
        rig.finish();
        return 0;
      },
      keep, SIGKILL));
  constexpr auto options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                           PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL;
  checked([&] { return ::ptrace(PTRACE_SEIZE, tracee.pid(), nullptr, options); },
          "ptrace PTRACE_SEIZE {}", tracee.pid());
  checked([&] { return ::ptrace(PTRACE_INTERRUPT, tracee.pid(), nullptr, nullptr); },
          "ptrace PTRACE_INTERRUPT");
  checked([&] { return ::send(ours.get(), "g", 1, MSG_NOSIGNAL); }, "send to the traced process");
  theirs.reset();
  CallCounts counts;
  const int status = trace(tracee, (*state)[0], counts);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw std::runtime_error("the traced run failed");
  counts.descriptors = sent[0].load();
  return counts;
}

}  // namespace c10k
