#include "ipc/listener_source.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// Looking at the queue costs a system call, so not at every wake-up.
constexpr std::int64_t look_every_ns = 1'000'000;

enum class AcceptError { empty, next, no_descriptor, no_memory, fatal };

/// What each errno of accept(2) means to us. Linux also reports errors that were pending on the new
/// connection: it is gone, and the next one may be well.
AcceptError sort_accept_error(int error) {
  switch (error) {
    case EAGAIN:
      return AcceptError::empty;
    case ECONNABORTED:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPERM:  // a firewall's rule
    case EPROTO:
    case ETIMEDOUT:
      return AcceptError::next;
    case EMFILE:
    case ENFILE:
      return AcceptError::no_descriptor;
    case ENOBUFS:
    case ENOMEM:
    case ENOSR:
      return AcceptError::no_memory;
    default:  // EBADF, EFAULT, EINVAL, ENOTSOCK: not a listener (any more)
      return AcceptError::fatal;
  }
}

/// An eventfd needs no path: a confined process may open none.
OwnedFd open_reserve() {
  return OwnedFd(::eventfd(0, EFD_CLOEXEC));
}

int accept_one(int listener) {
  return retry_eintr(
      [&] { return ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); });
}

}  // namespace

AcceptQueueReader::AcceptQueueReader(int listener, bool drain, std::uint64_t first_id)
    : listener_(listener), drain_(drain), next_id_(first_id), reserve_(open_reserve()) {}

ReceiveResult AcceptQueueReader::accept(std::span<Received> batch) {
  const ReceiveResult result = accept_within_limit(batch);
  return result.state == Channel::at_limit ? shed_one(result.error) : result;
}

ReceiveResult AcceptQueueReader::accept_within_limit(std::span<Received> batch) {
  const std::int64_t now = monotonic_ns();
  const std::size_t room = drain_ ? batch.size() : std::min<std::size_t>(1, batch.size());
  ReceiveResult result;
  if (now - looked_at_ns_ >= look_every_ns) {
    looked_at_ns_ = now;
    result.queue_length = accept_queue(listener_).length;
  }
  while (result.received < room) {
    const int fd = accept_one(listener_);
    if (fd >= 0) {
      batch[result.received++] = {OwnedFd(fd), {.id = next_id_++, .accepted_ns = now}};
      continue;
    }
    switch (sort_accept_error(errno)) {
      case AcceptError::empty:
        result.state = Channel::would_block;
        return result;
      case AcceptError::next:
        result.error = errno;
        return result;
      case AcceptError::no_descriptor:
        if (result.received > 0) return result;  // serve these first; that may free some
        result.error = errno;
        result.state = Channel::at_limit;
        return result;
      case AcceptError::no_memory:
        result.error = errno;
        result.state = Channel::starved;
        return result;
      case AcceptError::fatal:
        throw ListenerError(errno, std::generic_category(),
                            fmt::format("accept4 on listener {}", listener_));
    }
  }
  return result;
}

ReceiveResult AcceptQueueReader::shed_one(int error) {
  ReceiveResult result;
  result.error = error;
  result.state = Channel::starved;
  if (!reserve_) reserve_ = open_reserve();
  if (!reserve_) return result;
  reserve_.reset();
  OwnedFd victim(accept_one(listener_));
  const int accept_error = errno;
  const bool shed = static_cast<bool>(victim);
  victim.reset();
  // At once, or another accept takes the number and there is no reserve any more.
  reserve_ = open_reserve();
  if (shed) {
    result.shed = 1;
    result.state = Channel::more;
  } else if (accept_error == EAGAIN) {
    // Nothing waits: the limit was met for its own sake, and there is nobody to refuse.
    result.error = 0;
    result.state = Channel::would_block;
  }
  return result;
}

ListenerSource::ListenerSource(OwnedFd listener, const LinkRequest& request, Sharing sharing)
    : ListenerSource(std::move(listener), request.accept_drain, first_id_of_worker(request.worker),
                     sharing) {}

namespace {

class ListenerLink : public Link {
 public:
  ListenerLink(OwnedFd listener, MakeSource make_source, std::vector<int> shared)
      : listener_(std::move(listener)),
        make_source_(std::move(make_source)),
        shared_(std::move(shared)) {}

  std::unique_ptr<ConnectionSink> acceptor_end(int /*worker_pidfd*/) override {
    listener_.reset();
    return nullptr;
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return make_source_(std::move(listener_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    std::vector<int> all = shared_;
    all.push_back(listener_.get());
    return all;
  }

 private:
  OwnedFd listener_;
  MakeSource make_source_;
  std::vector<int> shared_;
};

}  // namespace

std::unique_ptr<Link> open_listener_link(OwnedFd listener, MakeSource make_source,
                                         std::vector<int> shared) {
  return std::make_unique<ListenerLink>(std::move(listener), std::move(make_source),
                                        std::move(shared));
}

}  // namespace c10k
