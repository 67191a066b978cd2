// seccomp-addfd: the worker calls accept4 on a listener that does not exist; a seccomp filter traps the
// call, and the acceptor answers it with the connection.
//
// Mechanism    the acceptor puts tags into a ring in shared memory and rings a bell; the worker calls
//              accept4 once for each. The filter turns exactly these calls into user notifications,
//              whose listener the acceptor has; SECCOMP_IOCTL_NOTIF_ADDFD with SECCOMP_ADDFD_FLAG_SEND
//              installs the descriptor and makes its number the result of the call in one step
// Kernel       5.14 (SECCOMP_ADDFD_FLAG_SEND); from 6.6 on the acceptor is woken on the worker's CPU
//              (SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP), where it would idle otherwise
// Privilege    none: the worker sets no_new_privs, and may then filter itself
// System calls 1 in the worker (accept4), 3 in the acceptor (poll, RECV, ADDFD) and a wake-up of each:
//              a round trip per connection, in which the worker serves nobody. A filter also takes every
//              other system call of the worker off the kernel's short path (getppid here: 169 ns
//              without it, 215 ns with it)
// Ownership    the descriptor is lent by number; the copy in the worker's table is made by the worker
//              itself, inside its accept4, or not at all
// Death        of the worker: nothing, ADDFD says ENOENT or ESRCH and the acceptor has its copy. Of the
//              acceptor: its listener closes and the call that waits returns ENOSYS
// Limits       a process has one notification listener in its stack of filters (EBUSY); ADDFD waits
//              until the worker has run, so a worker that gets no CPU holds the acceptor up
// Man pages    seccomp(2), seccomp_unotify(2), accept4(2)
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "ipc/methods.hpp"
#include "ipc/number_ring.hpp"
#include "ipc/process.hpp"
#include "ipc/scm.hpp"

// Newer than the headers of Debian 12.
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

namespace c10k {
namespace {

#if defined(__x86_64__)
constexpr std::uint32_t this_architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t this_architecture = AUDIT_ARCH_AARCH64;
#else
constexpr std::uint32_t this_architecture = 0;  // nothing is trapped, and probe() says so
#endif

/// What the worker calls accept4 on. No descriptor has such a number: where the filter is missing, the
/// call is EBADF, and no other call of the worker can be meant.
constexpr std::int32_t the_acceptor = -0x0c10000;

/// Asks the acceptor for the connection at `position`, by which both know that they mean the same one.
int accept_from_acceptor(std::uint64_t position) {
  return static_cast<int>(retry_eintr([&] {
    return ::syscall(SYS_accept4, the_acceptor, position, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  }));
}

/// Traps these calls of this process from now on. Returns the descriptor at which they arrive; empty
/// with errno set when the kernel refuses.
OwnedFd trap_accept() {
  const auto argument_at = [](std::size_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
  };
  // Architecture and number first: then the kernel sees that all other calls are always allowed, and
  // remembers it in a bitmap instead of running this (kernel/seccomp.c, seccomp_is_const_allow).
  const std::array code{
      argument_at(offsetof(seccomp_data, arch)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, this_architecture, 0, 5),
      argument_at(offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_accept4, 0, 3),
      argument_at(
          offsetof(seccomp_data, args[0])),  // its lower half: both machines are little-endian
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(the_acceptor), 0,
                           1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<std::uint16_t>(code.size()),
                           const_cast<sock_filter*>(code.data())};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return OwnedFd();
  // Spectre mitigations for filtered processes (before 5.16) would slow this worker down and no other.
  return OwnedFd(static_cast<int>(
      ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program)));
}

class SeccompSink : public ConnectionSink {
 public:
  SeccompSink(NumberRing ring, Bell bell, OwnedFd introduction, int worker_pidfd)
      : ring_(std::move(ring)),
        bell_(std::move(bell)),
        introduction_(std::move(introduction)),
        worker_pidfd_(worker_pidfd) {}
  ~SeccompSink() override {
    ring_.close();
    bell_.ring_anyway();
  }

  SendResult send(std::span<const Handover> batch) override {
    // Also by this side's own count: what a worker writes into the ring cannot make room in `lent_`.
    const std::size_t room = NumberRing::slots - (offered_ - answered_);
    const std::size_t taken = std::min({batch.size(), room, ring_.room()});
    for (std::size_t i = 0; i < taken; ++i) {
      lent_[offered_++ % lent_.size()] = batch[i].fd;
      ring_.put(i, batch[i].fd, batch[i].tag);
    }
    ring_.publish(taken);
    bell_.ring();
    if (taken == batch.size()) return {taken, Channel::more};
    return {taken, has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

  /// Mostly none is left: the worker counts what it has been given.
  void released(const Handover& handover) override {
    for (std::uint64_t position = answered_; position != offered_; ++position) {
      int& lent = lent_[position % lent_.size()];
      if (lent == handover.fd) lent = -1;
    }
  }

  /// Readable when a call waits. Until the worker has sent it: where it will come.
  [[nodiscard]] int attention_fd() override {
    if (introduction_) meet_worker();
    return listener_ ? listener_.get() : introduction_.get();
  }

  /// A worker has one thread, so at most one call waits.
  void attend() override {
    if (introduction_) meet_worker();
    // RECV would wait, whatever O_NONBLOCK says, where the call has been interrupted since the loop saw
    // it. When there is one now it does not: what is interrupted later still counts (it is ENOENT).
    pollfd entry{listener_.get(), POLLIN, 0};
    if (!listener_ || ::poll(&entry, 1, 0) != 1 || (entry.revents & POLLIN) == 0) return;
    seccomp_notif call{};
    if (request(SECCOMP_IOCTL_NOTIF_RECV, &call) >= 0)
      answer(call);
    else if (errno != ENOENT)
      throw_system_error(errno, "ioctl SECCOMP_IOCTL_NOTIF_RECV");
  }

 private:
  int request(unsigned long what, void* argument) const {
    return retry_eintr([&] { return ::ioctl(listener_.get(), what, argument); });
  }

  /// Takes the listener. The one descriptor that the acceptor accepts from a worker, so it must be that.
  void meet_worker() {
    pollfd entry{introduction_.get(), POLLIN, 0};
    if (::poll(&entry, 1, 0) != 1) return;
    std::array<Received, receive_room> arrived;
    try {
      const ReceiveResult result = receive_frame(introduction_.get(), arrived, false);
      if (result.state != Channel::more) return;  // it has ended
      if (result.received != 1)
        throw BrokenProtocol("it introduced itself with several descriptors");
    } catch (const std::runtime_error& error) {
      throw BrokenProtocol(error.what());
    }
    listener_ = std::move(arrived[0].fd);
    introduction_.reset();
    std::uint64_t no_call = 0;
    if (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_ID_VALID, &no_call) == 0 || errno != ENOENT) {
      listener_.reset();
      throw BrokenProtocol("it sent a descriptor that is no notification listener");
    }
    // The worker sleeps until it is answered, so the acceptor may as well run where it ran. It is not
    // there before 6.6, and only speed.
    (void)::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                  SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
  }

  void answer(const seccomp_notif& call) {
    if (answered_ == offered_ || call.data.args[1] != answered_) {
      (void)refuse(call.id, EPROTO);
      throw BrokenProtocol("it asked for a connection that is not the next");
    }
    // It said that it had it before it asked: the number may be another file's by now.
    if (lent_[answered_ % lent_.size()] < 0) {
      (void)refuse(call.id, EPROTO);
      throw BrokenProtocol("it counted a connection before it asked for it");
    }
    seccomp_notif_addfd install{};
    install.id = call.id;
    install.flags = SECCOMP_ADDFD_FLAG_SEND;
    install.srcfd = static_cast<std::uint32_t>(lent_[answered_ % lent_.size()]);
    install.newfd_flags = O_CLOEXEC;
    if (request(SECCOMP_IOCTL_NOTIF_ADDFD, &install) >= 0) {
      ++answered_;
      return;
    }
    switch (errno) {
      case ENOENT:       // the worker has died, or a signal took it out of the call: it calls again
      case ESRCH:        // the same while it was installing
      case EINPROGRESS:  // a signal (SIGSTOP) took this process out of ADDFD, and the call returns 0
        return;
      case EMFILE:  // the worker's limit, not this process's
      case ENFILE:
      case ENOMEM:
        if (refuse(call.id, errno)) ++answered_;
        return;
      default:
        throw_system_error(errno, "ioctl SECCOMP_IOCTL_NOTIF_ADDFD {}", install.srcfd);
    }
  }

  /// Makes the call fail. False when nobody waits for the answer any more.
  [[nodiscard]] bool refuse(std::uint64_t id, int error) const {
    seccomp_notif_resp response{};
    response.id = id;
    response.error = -error;
    return request(SECCOMP_IOCTL_NOTIF_SEND, &response) == 0;
  }

  NumberRing ring_;
  Bell bell_;
  OwnedFd introduction_;  // from which the listener comes
  OwnedFd listener_;
  int worker_pidfd_;
  std::array<int, NumberRing::slots> lent_{};  // by position
  std::uint64_t offered_ = 0;                  // positions of all time
  std::uint64_t answered_ = 0;
};

class SeccompSource : public ConnectionSource {
 public:
  SeccompSource(NumberRing ring, Bell bell, const OwnedFd& introduction)
      : ring_(std::move(ring)), bell_(std::move(bell)) {
    const OwnedFd listener = trap_accept();
    if (!listener) throw_system_error(errno, "seccomp SECCOMP_FILTER_FLAG_NEW_LISTENER");
    const Handover self{listener.get(), {}};
    if (send_frame(introduction.get(), {&self, 1}) != Channel::more)
      throw_system_error(errno, "sendmsg of the notification listener");
    // This process's copy goes: else no end of the acceptor would end a call that waits for it.
  }

  [[nodiscard]] int fd() const override { return bell_.fd(); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    const std::size_t there = std::min(ring_.waiting(), batch.size());
    while (result.received < there && result.refused == 0) {
      Received& next = batch[result.received];
      next.tag = ring_.peek(result.received).tag;
      const int fd = accept_from_acceptor(consumed_ + result.received);
      if (fd > 0) {
        next.fd = OwnedFd(fd);
        ++result.received;
      } else if (fd == 0) {
        // No descriptor (0 is taken): a signal took the acceptor out of ADDFD after it had marked the
        // call as answered (seccomp_notify_addfd). It knows; ask again.
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
        result.error = errno;
        result.refused = 1;
      } else if (errno == ENOSYS) {  // nobody has the listener any more
        result.state = Channel::closed;
        break;
      } else {
        throw_system_error(errno, "accept4 from the acceptor");
      }
    }
    consumed_ += result.received + result.refused;
    ring_.advance(result.received + result.refused);
    if (result.state != Channel::closed) result.state = sleep_on(ring_, bell_);
    return result;
  }

 private:
  NumberRing ring_;
  Bell bell_;
  std::uint64_t consumed_ = 0;
};

class SeccompLink : public Link {
 public:
  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    introduction_.second.reset();
    return std::make_unique<SeccompSink>(ring_, std::move(bell_), std::move(introduction_.first),
                                         worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    const OwnedFd introduction = std::move(introduction_.second);
    return std::make_unique<SeccompSource>(ring_, std::move(bell_), introduction);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {bell_.fd(), introduction_.second.get()};
  }

 private:
  NumberRing ring_;
  Bell bell_;
  std::pair<OwnedFd, OwnedFd> introduction_ = unix_pair(SOCK_SEQPACKET);
};

class SeccompAddfd : public HandoffMethod {
 public:
  /// A child filters itself and gets a descriptor from this process, as a worker would.
  [[nodiscard]] Support probe() override {
    try {
      SeccompLink link;
      const auto receive_one = [&]() -> int {
        try {
          const auto source = link.worker_end();
          std::array<Received, receive_room> batch;
          pollfd bell{source->fd(), POLLIN, 0};
          (void)retry_eintr([&] { return ::poll(&bell, 1, -1); });
          const ReceiveResult result = source->receive(batch);
          if (result.received == 1) return 0;
          return result.error != 0 ? result.error : EIO;
        } catch (const SystemError& error) {
          return error.code().value();
        }
      };
      ChildProcess child = ChildProcess::fork(receive_one, link.worker_descriptors(), SIGKILL);
      const auto sink = link.acceptor_end(child.pidfd());
      const Handover self{STDERR_FILENO, {}};
      (void)sink->send({&self, 1});
      while (!has_ended(child.pidfd())) {
        std::array<pollfd, 2> entries{
            {{child.pidfd(), POLLIN, 0}, {sink->attention_fd(), POLLIN, 0}}};
        (void)::poll(entries.data(), entries.size(), -1);
        sink->attend();
      }
      const ChildExit exit = child.wait();
      if (exit.clean()) return {};
      if (!WIFEXITED(exit.status)) return {false, "seccomp_unotify: a try was " + exit.text()};
      const int error = WEXITSTATUS(exit.status);
      return {false, fmt::format("seccomp_unotify: {}; {}", ::strerror(error), remedy(error))};
    } catch (const SystemError& error) {
      return {false, fmt::format("{}; {}", error.what(), remedy(error.code().value()))};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest&) override {
    return std::make_unique<SeccompLink>();
  }

 private:
  static const char* remedy(int error) {
    switch (error) {
      case EBADF:
        return "the filter does not know this architecture";
      case EBUSY:
        return "whoever started it has a notification listener already: run it without";
      case EPERM:
      case EACCES:
        return "something outside forbids filters: allow seccomp(2) in its profile";
      default:
        return "it needs Linux 5.14 with CONFIG_SECCOMP_FILTER";
    }
  }
};

}  // namespace

MethodEntry seccomp_addfd() {
  return {
      {.name = "seccomp-addfd",
       .summary = "the worker's accept4 is trapped; the acceptor answers it with the descriptor",
       .options = "",
       .kernel = "5.14",
       .privilege = "none",
       .syscalls = "acceptor 3 (poll, RECV, ADDFD), worker 1 (accept4), both woken each time; "
                   "the filter slows every other call of the worker",
       .isolation = "full as to tables; each side waits for the other in every hand-off",
       .after_death = "nothing: the call is gone (ENOENT), and the acceptor has its copy",
       .worker_calls = {CallGroup::accept}},
      [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
        return std::make_unique<SeccompAddfd>();
      }};
}

}  // namespace c10k
