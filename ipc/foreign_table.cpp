#include "ipc/foreign_table.hpp"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "ipc/process.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

ForeignTable::ForeignTable(pid_t owner) : owner_(owner), pidfd_(open_pidfd(owner)) {}

bool ForeignTable::take(const NumberedConnection& next, std::span<Received> batch,
                        ReceiveResult& result) const {
  Received& connection = batch[result.received];
  connection.tag = next.tag;
  const int fd = static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd_.get(), next.number, 0));
  if (fd >= 0) {
    connection.fd.reset(fd);
    ++result.received;
    return true;
  }
  result.error = errno;
  if (errno == ESRCH || !pidfd_) {
    result.state = Channel::closed;
    return false;
  }
  if (errno != EMFILE && errno != ENFILE)
    throw_system_error(errno, "pidfd_getfd {} of process {}", next.number, owner_);
  result.refused = 1;
  return false;
}

Support ForeignTable::probe() {
  try {
    const pid_t parent = ::getpid();
    const auto attempt = [&] {
      const int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, parent, 0));
      if (pidfd < 0) return errno;
      return ::syscall(SYS_pidfd_getfd, pidfd, STDERR_FILENO, 0) < 0 ? errno : 0;
    };
    const ChildExit exit = ChildProcess::fork(attempt, {}, SIGKILL).wait();
    if (exit.clean()) return {};
    if (!WIFEXITED(exit.status)) return {false, "pidfd_getfd: its process was " + exit.text()};
    const int error = WEXITSTATUS(exit.status);
    const char* remedy =
        error == ENOSYS  ? "it needs Linux 5.6"
        : error == EPERM ? "it needs the rights of ptrace: run as root, or allow it (ptrace_scope)"
                         : "no descriptor can be taken from the acceptor";
    return {false, fmt::format("pidfd_getfd: {}; {}", ::strerror(error), remedy)};
  } catch (const std::exception& error) {
    return {false, error.what()};
  }
}

}  // namespace c10k
