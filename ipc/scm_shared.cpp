// scm-shared: SCM_RIGHTS over one unnamed AF_UNIX SOCK_SEQPACKET pair that all workers pull from.
// Who is free takes the next connection: nobody has to know the workers' loads.
//
// Mechanism    the acceptor sends a connection a message (batch=), and the kernel gives each message to
//              one of the workers that receive; EPOLLEXCLUSIVE wakes one of them, the other loops wake all
// Kernel       2.6.4 (SOCK_SEQPACKET); EPOLLEXCLUSIVE: 4.5, and only with --loop epoll
// Privilege    none; without CAP_SYS_RESOURCE no more in flight than RLIMIT_NOFILE (ETOOMANYREFS)
// System calls 2 / batch: sendmsg in the acceptor, recvmsg in a worker, and those of workers woken in
//              vain. A batch goes to one worker, so the default is 1
// Ownership    acceptor's copy; the message in flight holds the open file; a worker's copy
// Death        a message that the dead worker had not pulled is pulled by another. What it had pulled and
//              not counted, the acceptor finds out once the channel is empty, and hands over again
// Man pages    unix(7), cmsg(3), epoll_ctl(2)
#include <sys/socket.h>

#include "ipc/methods.hpp"
#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class SharedLink : public Link {
 public:
  SharedLink(int acceptors, int workers, std::size_t batch, bool exclusive)
      : acceptors_(duplicate(acceptors)),
        workers_(duplicate(workers)),
        batch_(batch),
        exclusive_(exclusive) {}

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    workers_.reset();
    return make_scm_sink(std::move(acceptors_), batch_, worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    acceptors_.reset();
    return make_scm_source(std::move(workers_), false, exclusive_, true);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {workers_.get()}; }

 private:
  OwnedFd acceptors_;
  OwnedFd workers_;
  std::size_t batch_;
  bool exclusive_;
};

class ScmShared : public HandoffMethod {
 public:
  explicit ScmShared(std::size_t batch) : batch_(batch) {}
  [[nodiscard]] Support probe() override { return probe_scm(SOCK_SEQPACKET); }
  std::unique_ptr<Link> open(const LinkRequest& request) override {
    // Both ends stay open here, for the links of successors.
    if (!ends_.first) ends_ = unix_pair(SOCK_SEQPACKET);
    return std::make_unique<SharedLink>(ends_.first.get(), ends_.second.get(), batch_,
                                        request.exclusive_possible);
  }

 private:
  std::size_t batch_;
  std::pair<OwnedFd, OwnedFd> ends_;
};

}  // namespace

MethodEntry scm_shared() {
  MethodFacts facts =
      scm_facts("scm-shared", "SCM_RIGHTS over one SOCK_SEQPACKET pair that all workers pull from");
  facts.options = "batch=1..253 (1)";
  facts.syscalls = "acceptor 1/batch (sendmsg), worker 1/batch (recvmsg) and those woken in vain";
  facts.isolation =
      "a worker can pull connections and drop them, or end the channel of all by a shutdown";
  facts.after_death = "nothing: what it had not pulled is pulled by others";
  facts.shared_channel = true;
  return {facts, [](MethodOptions& options) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<ScmShared>(static_cast<std::size_t>(
                options.integer("batch", 1, 1, static_cast<std::int64_t>(scm_max_descriptors))));
          }};
}

}  // namespace c10k
