// inherited-listener with a lock: what the others do while a worker holds it, and when that one dies.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>

#include "tests/support.hpp"

namespace c10k::testing {
namespace {

int announce_on = -1;

/// From now on this process stops for ever within accept4, and says so first: the filter turns the call
/// into a signal, which is handled where the call was made.
void stop_in_accept(int control) {
  announce_on = control;
  struct sigaction action {};
  action.sa_handler = [](int) {
    say(announce_on, 'h');
    while (true) ::pause();
  };
  checked([&] { return ::sigaction(SIGSYS, &action, nullptr); }, "sigaction SIGSYS");
  std::array<sock_filter, 4> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_accept4},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_TRAP},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  const sock_fprog filter{static_cast<unsigned short>(code.size()), code.data()};
  checked([] { return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }, "prctl PR_SET_NO_NEW_PRIVS");
  checked([&] { return ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter); }, "prctl SECCOMP");
}

class AcceptLocks : public ::testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Waits, AcceptLocks, ::testing::Values("fcntl_lock", "mutex"),
                         [](const auto& wait) { return wait.param; });

TEST_P(AcceptLocks, ExcludesTheOthersAndEndsWithItsHolder) {
  const std::size_t before = open_descriptors();
  {
    std::string wait = GetParam();
    std::replace(wait.begin(), wait.end(), '_', '-');
    const ConfiguredMethod method = configure_handoff_method("inherited-listener:wait=" + wait);
    const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 8});
    LinkRequest request;
    request.listener = listener.get();
    LinkedWorker holder(method, request, [](ConnectionSource& source, int control) {
      if (hear(control) != 'g') return 1;
      stop_in_accept(control);
      Slots slots;
      (void)source.receive(slots);
      return 2;  // it cannot come back
    });
    request.worker = 1;
    LinkedWorker other(method, request, [](ConnectionSource& source, int control) {
      Slots slots;
      while (hear(control) == 'g') {
        const ReceiveResult result = source.receive(slots);
        // 'p': told to pause although a connection waits; 'r': received.
        say(control, result.received == 1                                             ? 'r'
                     : result.state == Channel::starved && wait_readable(source.fd()) ? 'p'
                                                                                      : '?');
      }
      return 0;
    });
    const OwnedFd client = connect_to(SocketAddress::local(listener.get()));
    holder.tell('g');
    ASSERT_EQ(holder.hear(), 'h');
    for (int i = 0; i < 3; ++i) {
      other.tell('g');
      EXPECT_EQ(other.hear(), 'p') << "two accept at once, or one waits for the lock";
    }
    holder.child().signal(SIGKILL);
    ASSERT_EQ(holder.exit_code(), 128 + SIGKILL);
    other.tell('g');
    EXPECT_EQ(other.hear(), 'r') << "the dead holder still has the lock";
    // And it is a lock as before: released after each accept, and to be had again.
    const OwnedFd second = connect_to(SocketAddress::local(listener.get()));
    other.tell('g');
    EXPECT_EQ(other.hear(), 'r');
  }
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace c10k::testing
