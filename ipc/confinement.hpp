// What a process gives up before it touches a client's bytes: its user, and the system calls it has no
// use for. Whoever takes it over through those bytes has no more than what is left.
//
// A process is trusted until it says that it is ready: up to there it runs only what its parent ran, on
// nothing that comes from outside. So it opens what it needs first, as the new user, and is confined
// last; the list of calls then has none that opens a file, makes a process or maps code.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace c10k {

struct UserIdentity {
  std::string name;  ///< As it was given.
  uid_t uid = 0;
  gid_t gid = 0;  ///< The user's own group; no supplementary ones are kept.
};

/// Reads a user's name or number. Throws UsageError naming `what` when there is no such user, or when
/// this process may not become it.
[[nodiscard]] UserIdentity parse_user(std::string_view what, std::string_view text);

/// Becomes the user for good: groups, group, user (real, effective and saved), and makes sure that there
/// is no way back. The memory is closed to the user's other processes (PR_SET_DUMPABLE), and no program
/// that this one starts can have more rights (PR_SET_NO_NEW_PRIVS). Where the process is that user
/// already, only the last two. The kernel clears PR_SET_PDEATHSIG here: set it afterwards, and look
/// then whether the parent is still there. Throws SystemError.
void become(const UserIdentity& user);

/// Calls that belong together. Which they are, and why, is in confinement.cpp.
enum class CallGroup : std::uint8_t {
  serve,        ///< What every process needs that echoes.
  wait_select,  ///< A loop over select(2).
  wait_poll,    ///< A loop over poll(2).
  wait_epoll,   ///< A loop over epoll(7).
  uring,        ///< An io_uring that is there already.
  accept,       ///< A listener.
  descriptors,  ///< Messages that bring descriptors.
  rendezvous,   ///< Connects to a socket of the acceptor's for each connection.
  local_pair,   ///< Makes socketpairs.
  file_lock,    ///< Locks a file that is open already.
  report,       ///< Writes to files that are open already, and reads statistics from such.
  fork,         ///< Makes and reaps children, who are confined as it is.
};
using CallGroups = std::vector<CallGroup>;

/// From now on, this process and its children are killed by SIGSYS for any call outside of `groups`
/// (seccomp(2)). become() must have been called. Throws SystemError when the kernel takes no filter.
void forbid_other_calls(std::span<const CallGroup> groups);

/// Whether the kernel takes such a filter: by a child that tries it. The reason why not, or "".
[[nodiscard]] std::string why_no_filter();

}  // namespace c10k
