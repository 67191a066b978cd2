// Child processes: forked, known by a pidfd, holding only the descriptors they were given.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// The exit code by which a worker says: do not restart me, my successor would fail in the same way. (That
/// of nginx's workers, "exited with fatal code 2 and cannot be respawned".) Any other end is replaced.
inline constexpr int exit_do_not_restart = 2;

/// How a child ended, and what it used up (wait4(2)).
struct ChildExit {
  int status = 0;  ///< As waitpid(2) gives it.
  rusage usage{};

  [[nodiscard]] bool clean() const;
  /// It has left by exit_do_not_restart.
  [[nodiscard]] bool asks_not_to_be_restarted() const;
  /// "exit code 3" or "killed by signal 9 (Killed)"; for SIGSYS also what that means.
  [[nodiscard]] std::string text() const;
};

/// Whether a child has a descriptor table of its own, or the parent's (clone(2), CLONE_FILES): then
/// what either opens or closes is open or closed for both, `keep` has no meaning, and the caller must
/// have no other thread.
enum class Table : std::uint8_t { own, shared };

/// Forks. The child keeps descriptors 0 to 2 and those in `keep`, closes every other one, runs
/// `body`, and leaves by _exit with what it returned: no destructor, no atexit handler and no
/// buffer of the parent runs in it. An exception in `body` is printed as one line and gives exit
/// code 1. When the forking thread dies, the kernel sends `parent_death_signal` to the child (0:
/// none; prctl(2), PR_SET_PDEATHSIG). The caller reaps the child. Throws SystemError when the
/// kernel refuses the process (EAGAIN: RLIMIT_NPROC or pids cgroup).
[[nodiscard]] pid_t fork_process(const std::function<int()>& body, std::span<const int> keep,
                                 int parent_death_signal, Table table = Table::own);

/// Reaps one child that has ended, whichever; does not wait. The pid is 0 when there is none.
[[nodiscard]] std::pair<pid_t, ChildExit> reap_any_child();

/// A forked child known by its pidfd. Destroying it while the child still runs kills and reaps it,
/// so that no process is ever left behind by an exception.
class ChildProcess {
 public:
  ChildProcess() = default;
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  /// As fork_process().
  static ChildProcess fork(const std::function<int()>& body, std::span<const int> keep,
                           int parent_death_signal, Table table = Table::own);

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Readable once the child has ended, and open until this object goes. Owned here; -1 when there was
  /// no child.
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  [[nodiscard]] bool running() const { return pid_ > 0; }

  /// Sends a signal through the pidfd, so never to a process that only reuses the number.
  void signal(int number) const noexcept;
  /// Waits for the child's end and reaps it.
  ChildExit wait();
  /// Lets it live on without this object, or it has been reaped elsewhere.
  void detach() noexcept;
  /// Lets it live on when this object goes; the pidfd stays open until then.
  void spare() noexcept { pid_ = 0; }

 private:
  ChildProcess(pid_t pid, OwnedFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  void kill_and_reap() noexcept;

  pid_t pid_ = 0;
  OwnedFd pidfd_;
};

/// True once the process that a pidfd stands for has ended.
[[nodiscard]] bool has_ended(int pidfd);

/// A pidfd of a process; empty when it has ended and been reaped.
[[nodiscard]] OwnedFd open_pidfd(pid_t pid);

/// Closes every descriptor from 3 up but those in `keep` (close_range(2)).
void close_other_descriptors(std::span<const int> keep);

/// The file that this process runs (/proc/self/exe), by its name at this moment.
[[nodiscard]] std::string path_of_this_program();

/// Raises the soft RLIMIT_NOFILE to the hard limit and returns it.
std::size_t raise_descriptor_limit();

}  // namespace c10k
