#include "ipc/process.hpp"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <vector>

#include "ipc/syscall.hpp"

namespace c10k {

bool ChildExit::clean() const {
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool ChildExit::asks_not_to_be_restarted() const {
  return WIFEXITED(status) && WEXITSTATUS(status) == exit_do_not_restart;
}

std::string ChildExit::text() const {
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    return fmt::format("killed by signal {} ({}){}", number, ::strsignal(number),
                       number == SIGSYS ? ": it made a system call that its filter forbids" : "");
  }
  return fmt::format("exit code {}", WEXITSTATUS(status));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), pidfd_(std::move(other.pidfd_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    kill_and_reap();
    pid_ = std::exchange(other.pid_, 0);
    pidfd_ = std::move(other.pidfd_);
  }
  return *this;
}

ChildProcess::~ChildProcess() {
  kill_and_reap();
}

void ChildProcess::kill_and_reap() noexcept {
  if (!running()) return;
  signal(SIGKILL);
  siginfo_t ignored;
  (void)retry_eintr([&] { return ::waitid(P_PID, static_cast<id_t>(pid_), &ignored, WEXITED); });
  pid_ = 0;
}

namespace {

[[noreturn]] void run_child(const std::function<int()>& body, std::span<const int> keep,
                            int parent_death_signal, pid_t parent, Table table) {
  int code = 1;
  try {
    if (parent_death_signal != 0) {
      checked([&] { return ::prctl(PR_SET_PDEATHSIG, parent_death_signal); },
              "prctl PR_SET_PDEATHSIG");
      // The parent may have died before the request was in place; then no signal would come.
      if (::getppid() != parent) ::_exit(1);
    }
    if (table == Table::own) close_other_descriptors(keep);
    code = body();
  } catch (const std::exception& error) {
    fmt::print(stderr, "process {}: {}\n", ::getpid(), error.what());
  }
  std::fflush(stdout);
  std::fflush(stderr);
  ::_exit(code);
}

}  // namespace

pid_t fork_process(const std::function<int()>& body, std::span<const int> keep,
                   int parent_death_signal, Table table) {
  // What stands in stdio's buffers would otherwise be written twice.
  std::fflush(stdout);
  std::fflush(stderr);
  const pid_t parent = ::getpid();
  // As fork(), with no stack of its own and no shared memory; glibc has no call for the flag alone.
  const auto clone_with_table = [] {
    return static_cast<pid_t>(::syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
  };
  const pid_t pid = checked([&] { return table == Table::own ? ::fork() : clone_with_table(); },
                            "fork (limits: RLIMIT_NPROC, kernel.pid_max, pids cgroup)");
  if (pid == 0) run_child(body, keep, parent_death_signal, parent, table);
  return pid;
}

std::pair<pid_t, ChildExit> reap_any_child() {
  ChildExit exit;
  const pid_t pid = retry_eintr([&] { return ::wait4(-1, &exit.status, WNOHANG, &exit.usage); });
  if (pid < 0 && errno != ECHILD) throw_system_error(errno, "wait4 any child");
  return {std::max(pid, 0), exit};
}

ChildProcess ChildProcess::fork(const std::function<int()>& body, std::span<const int> keep,
                                int parent_death_signal, Table table) {
  const pid_t pid = fork_process(body, keep, parent_death_signal, table);
  ChildProcess child(pid, OwnedFd());
  // Not reaped yet, so the number cannot have been reused.
  child.pidfd_ = open_pidfd(pid);
  return child;
}

void ChildProcess::signal(int number) const noexcept {
  if (!running()) return;
  if (pidfd_) {
    ::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0);
  } else {
    ::kill(pid_, number);
  }
}

ChildExit ChildProcess::wait() {
  ChildExit exit;
  checked([&] { return ::wait4(pid_, &exit.status, 0, &exit.usage); }, "wait4 {}", pid_);
  pid_ = 0;
  return exit;
}

void ChildProcess::detach() noexcept {
  pid_ = 0;
  pidfd_.reset();
}

bool has_ended(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

OwnedFd open_pidfd(pid_t pid) {
  const auto fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0 && errno != ESRCH) throw_system_error(errno, "pidfd_open {}", pid);
  return OwnedFd(fd);
}

void close_other_descriptors(std::span<const int> keep) {
  std::vector<int> kept(keep.begin(), keep.end());
  std::sort(kept.begin(), kept.end());
  unsigned first = 3;
  const auto close_up_to = [&](unsigned last) {
    if (first > last) return;
    checked([&] { return ::syscall(SYS_close_range, first, last, 0); }, "close_range {} {}", first,
            last);
  };
  for (const int fd : kept) {
    if (fd < 3) continue;
    const auto number = static_cast<unsigned>(fd);
    if (number > first) close_up_to(number - 1);
    first = std::max(first, number + 1);
  }
  close_up_to(~0U);
}

std::string path_of_this_program() {
  std::string path(PATH_MAX, '\0');
  const auto size = checked([&] { return ::readlink("/proc/self/exe", path.data(), path.size()); },
                            "readlink /proc/self/exe");
  path.resize(static_cast<std::size_t>(size));
  return path;
}

std::size_t raise_descriptor_limit() {
  rlimit limit{};
  checked([&] { return ::getrlimit(RLIMIT_NOFILE, &limit); }, "getrlimit RLIMIT_NOFILE");
  limit.rlim_cur = limit.rlim_max;
  checked([&] { return ::setrlimit(RLIMIT_NOFILE, &limit); }, "setrlimit RLIMIT_NOFILE {}",
          limit.rlim_max);
  return static_cast<std::size_t>(limit.rlim_cur);
}

}  // namespace c10k
