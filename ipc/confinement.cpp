#include "ipc/confinement.hpp"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sockios.h>
#include <pwd.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>

#include "ipc/process.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

/// A call that is allowed: always, or when one of its arguments is as stated.
struct Call {
  const char* name;
  scmp_compare compare = _SCMP_CMP_MIN;  // _SCMP_CMP_MIN: always
  unsigned argument = 0;
  std::uint64_t value = 0;
  std::uint64_t masked = 0;
};

constexpr Call when(const char* name, unsigned argument, std::uint64_t value) {
  return {name, SCMP_CMP_EQ, argument, value};
}
/// When none of these bits is set.
constexpr Call without(const char* name, unsigned argument, std::uint64_t bits) {
  return {name, SCMP_CMP_MASKED_EQ, argument, bits, 0};
}
constexpr Call with(const char* name, unsigned argument, std::uint64_t bits) {
  return {name, SCMP_CMP_MASKED_EQ, argument, bits, bits};
}

// linux/io_uring.h; liburing is not this file's.
constexpr std::uint64_t unregister_ring_fds = 21;
constexpr std::uint64_t unregister_buffer_ring = 23;

// ---- the list ------------------------------------------------------------------------------------
// What is missing is the point of it: no open(2), no socket(2) but where a method says so, no execve(2),
// ptrace(2), kill(2) (but for --strategy fork) or process_vm_...(2), no memory that is code, no mount, no key, no BPF.

/// A client's bytes, and what the C library does by itself: memory, its locks, an end by abort() or exit.
constexpr std::array serve_calls{
    Call{"read"},
    Call{"write"},
    Call{"recvfrom"},
    Call{"sendto"},
    Call{"close"},
    Call{"shutdown"},
    Call{"getsockopt"},  // TCP_INFO
    when("ioctl", 1, SIOCINQ),
    when("ioctl", 1, SIOCOUTQ),
    Call{"brk"},
    without("mmap", 2, PROT_EXEC),
    without("mprotect", 2, PROT_EXEC),
    Call{"mremap"},
    Call{"munmap"},
    Call{"madvise"},
    Call{"futex"},
    Call{"getrandom"},  // malloc of newer libraries
    Call{"sched_yield"},
    Call{"rt_sigaction"},
    Call{"rt_sigprocmask"},
    Call{"rt_sigreturn"},
    Call{"sigaltstack"},      // sanitizers
    Call{"restart_syscall"},  // a wait goes on after SIGCONT
    Call{"clock_gettime"},    // where the machine has it not in the vDSO
    Call{"getpid"},
    Call{"gettid"},
    Call{"getppid"},
    Call{"getrusage"},
    Call{"exit"},
    Call{"exit_group"},
};
constexpr std::array wait_select_calls{Call{"select"}, Call{"_newselect"}, Call{"pselect6"}};
constexpr std::array wait_poll_calls{Call{"poll"}, Call{"ppoll"}};
constexpr std::array wait_epoll_calls{Call{"epoll_ctl"}, Call{"epoll_wait"}, Call{"epoll_pwait"},
                                      Call{"epoll_pwait2"}};
/// Entries of a ring are no system calls, and no filter sees them: who makes a ring also restricts it
/// (Uring::restrict_to()). What is registered with a ring stays as it is, until it goes at the end.
constexpr std::array uring_calls{Call{"io_uring_enter"},
                                 when("io_uring_register", 1, unregister_ring_fds),
                                 when("io_uring_register", 1, unregister_buffer_ring)};
/// The reserve for the descriptor limit is an eventfd.
constexpr std::array accept_calls{Call{"accept4"}, Call{"eventfd2"}};
constexpr std::array descriptors_calls{Call{"recvmsg"}};
/// CPython's way to fetch a descriptor: a new AF_UNIX connection for each. Where it leads to is not the
/// filter's to see (a pointer); of the machine's named sockets it can reach what its user can.
constexpr std::array rendezvous_calls{
    when("socket", 0, AF_UNIX),
    Call{"connect"},
    Call{"recvmsg"},
    Call{"getsockname"},
    Call{"poll"},
    Call{"ppoll"},
    when("ioctl", 1, FIONBIO),
    when("fcntl", 1, F_GETFL),
    when("fcntl", 1, F_SETFL),
    when("fcntl", 1, F_DUPFD_CLOEXEC),
};
constexpr std::array local_pair_calls{when("socketpair", 0, AF_UNIX), Call{"epoll_ctl"},
                                      Call{"epoll_wait"}, Call{"epoll_pwait"}};
constexpr std::array file_lock_calls{when("fcntl", 1, F_SETLK)};
constexpr std::array report_calls{Call{"lseek"}, Call{"ftruncate"}, Call{"pread64"}, Call{"fstat"},
                                  with("newfstatat", 3, AT_EMPTY_PATH)};
/// Its children wait for signals and for their connection. It signals them, and as they are confined by the
/// same filter they can signal each other, and whatever else runs as their user: give it one of its own.
constexpr std::array fork_calls{
    without("clone", 0, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET),
    Call{"set_robust_list"},
    Call{"rseq"},
    Call{"wait4"},
    Call{"kill"},
    when("prctl", 0, PR_SET_PDEATHSIG),
    Call{"close_range"},
    Call{"signalfd4"},
    Call{"poll"},
    Call{"ppoll"},
};

std::span<const Call> calls_of(CallGroup group) {
  switch (group) {
    case CallGroup::serve:
      return serve_calls;
    case CallGroup::wait_select:
      return wait_select_calls;
    case CallGroup::wait_poll:
      return wait_poll_calls;
    case CallGroup::wait_epoll:
      return wait_epoll_calls;
    case CallGroup::uring:
      return uring_calls;
    case CallGroup::accept:
      return accept_calls;
    case CallGroup::descriptors:
      return descriptors_calls;
    case CallGroup::rendezvous:
      return rendezvous_calls;
    case CallGroup::local_pair:
      return local_pair_calls;
    case CallGroup::file_lock:
      return file_lock_calls;
    case CallGroup::report:
      return report_calls;
    case CallGroup::fork:
      return fork_calls;
  }
  return {};
}

// ---- the filter ----------------------------------------------------------------------------------

int check_seccomp(int result, const char* call, const char* name) {
  if (result < 0) throw_system_error(-result, "{} {}", call, name);
  return result;
}

void allow(scmp_filter_ctx filter, const Call& call) {
  const int number = ::seccomp_syscall_resolve_name(call.name);
  if (number == __NR_SCMP_ERROR) return;  // newer than the library, so nobody calls it here
  int result = 0;
  if (call.compare == _SCMP_CMP_MIN) {
    result = ::seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
  } else {
    const scmp_arg_cmp condition{call.argument, call.compare, call.value, call.masked};
    result = ::seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, 1, &condition);
  }
  // Two groups may name the same call.
  if (result != -EEXIST) check_seccomp(result, "seccomp_rule_add", call.name);
}

/// Whether this process may set any user and any group.
bool may_become_anybody() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  checked([&] { return ::syscall(SYS_capget, &header, data.data()); }, "capget");
  const std::uint32_t needed = (1U << CAP_SETUID) | (1U << CAP_SETGID);
  return (data[0].effective & needed) == needed;
}

}  // namespace

UserIdentity parse_user(std::string_view what, std::string_view text) {
  UserIdentity user{.name = std::string(text)};
  uid_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool is_number = error == std::errc{} && end == text.data() + text.size();
  // uid 4294967295 means "unchanged" to setresuid(2).
  const bool is_possible = is_number && number != static_cast<uid_t>(-1);
  const passwd* entry = ::getpwnam(user.name.c_str());
  if (entry == nullptr && is_possible) entry = ::getpwuid(number);
  if (entry != nullptr) {
    user.uid = entry->pw_uid;
    user.gid = entry->pw_gid;
  } else if (is_possible) {
    user.uid = number;
    user.gid = number;
  } else {
    throw UsageError(fmt::format(
        "{}: there is no user '{}'; give a name that getent passwd shows, or a uid", what, text));
  }
  const bool is_self = user.uid == ::getuid() && user.uid == ::geteuid();
  if (!is_self && !may_become_anybody()) {
    throw UsageError(
        fmt::format("{}: uid {} may not become {} (uid {}); start it as root (CAP_SETUID and "
                    "CAP_SETGID), or give {} {}",
                    what, ::geteuid(), user.name, user.uid, what, ::geteuid()));
  }
  return user;
}

void become(const UserIdentity& user) {
  if (user.uid != ::getuid() || user.uid != ::geteuid()) {
    checked([] { return ::setgroups(0, nullptr); }, "setgroups to none");
    checked([&] { return ::setresgid(user.gid, user.gid, user.gid); }, "setresgid {}", user.gid);
    checked([&] { return ::setresuid(user.uid, user.uid, user.uid); }, "setresuid {}", user.uid);
    uid_t real = 0, effective = 0, saved = 0;
    checked([&] { return ::getresuid(&real, &effective, &saved); }, "getresuid");
    const bool is_whole = real == user.uid && effective == user.uid && saved == user.uid;
    // With the user go the capabilities, unless somebody has kept them (capabilities(7), SECBIT_...).
    const bool has_way_back = user.uid != 0 && (may_become_anybody() || ::setuid(0) == 0 ||
                                                (user.gid != 0 && ::setgid(0) == 0));
    if (!is_whole || has_way_back)
      throw std::runtime_error(
          fmt::format("--user: became uid {}, and could come back from it", user.uid));
  }
  checked([] { return ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }, "prctl PR_SET_DUMPABLE");
  checked([] { return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }, "prctl PR_SET_NO_NEW_PRIVS");
}

void forbid_other_calls(std::span<const CallGroup> groups) {
  const std::unique_ptr<void, void (*)(scmp_filter_ctx)> filter(
      ::seccomp_init(SCMP_ACT_KILL_PROCESS), ::seccomp_release);
  if (!filter) throw_system_error(ENOMEM, "seccomp_init");
  // A search by halves, for kernels that do not remember which calls are always allowed (before 5.11).
  check_seccomp(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "seccomp_attr_set",
                "CTL_OPTIMIZE");
  // Spectre mitigations for filtered processes (before 5.16) would slow every call down.
  check_seccomp(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_SSB, 1), "seccomp_attr_set",
                "CTL_SSB");
  for (const CallGroup group : groups) {
    for (const Call& call : calls_of(group)) allow(filter.get(), call);
  }
  // abort() signals the process itself; its siblings, who are the same user, are none of its business.
  allow(filter.get(), when("tgkill", 0, static_cast<std::uint64_t>(::getpid())));
  check_seccomp(::seccomp_load(filter.get()), "seccomp_load", "of the filter");
}

std::string why_no_filter() {
  const auto attempt = [] {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
    try {
      forbid_other_calls(std::array{CallGroup::serve});
      return 0;
    } catch (const SystemError& error) {
      return error.code().value();
    }
  };
  const ChildExit exit = ChildProcess::fork(attempt, {}, SIGKILL).wait();
  if (exit.clean()) return {};
  if (!WIFEXITED(exit.status)) return "seccomp: a try was " + exit.text();
  return fmt::format("seccomp: {}; it needs CONFIG_SECCOMP_FILTER",
                     ::strerror(WEXITSTATUS(exit.status)));
}

}  // namespace c10k
