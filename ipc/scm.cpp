#include "ipc/scm.hpp"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "ipc/process.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

Channel send_frame(int socket, std::span<const Handover> batch) {
  ScmFrame frame;
  frame.count = static_cast<std::uint32_t>(batch.size());
  std::array<int, scm_max_descriptors> fds;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    frame.set_tag(i, batch[i].tag);
    fds[i] = batch[i].fd;
  }
  iovec data{&frame, ScmFrame::bytes(batch.size())};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof fds)];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(batch.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(batch.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), fds.data(), batch.size() * sizeof(int));

  const ssize_t sent =
      retry_eintr([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); });
  if (sent >= 0) {
    // A frame is far below half the send buffer, so the kernel takes it as one buffer or not at all
    // (net/unix/af_unix.c, unix_stream_sendmsg).
    if (static_cast<std::size_t>(sent) != data.iov_len)
      throw std::runtime_error("sendmsg took half a frame");
    return Channel::more;
  }
  switch (errno) {
    case EAGAIN:
      return Channel::would_block;
    case ENOBUFS:
    case ENOMEM:
    case ETOOMANYREFS:  // in flight over RLIMIT_NOFILE (unix(7)); the socket stays writable
      return Channel::starved;
    case ECONNREFUSED:  // dgram: the peer is closed
    case ECONNRESET:
    case ENOTCONN:
    case EPIPE:
      return Channel::closed;
    default:
      throw_system_error(errno, "sendmsg {} descriptors to {}", batch.size(), socket);
  }
}

ReceiveResult receive_frame(int socket, std::span<Received> batch, bool datagram) {
  ScmFrame frame;
  iovec data{&frame, sizeof frame};
  // Room for one message's worth; the kernel never merges two (unix_stream_read_generic stops after
  // a buffer with descriptors).
  alignas(cmsghdr) std::byte control[CMSG_SPACE(scm_max_descriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;

  const ssize_t size =
      retry_eintr([&] { return ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT); });
  if (size < 0) {
    if (errno == EAGAIN) return {.state = Channel::would_block};
    if (errno == ECONNRESET) return {.state = Channel::closed};
    throw_system_error(errno, "recvmsg from {}", socket);
  }
  std::size_t descriptors = 0;
  take_descriptors(message, [&](OwnedFd descriptor) {
    if (descriptors < batch.size()) batch[descriptors].fd = std::move(descriptor);
    ++descriptors;
  });
  const auto drop_all = [&] {
    for (std::size_t i = 0; i < std::min(descriptors, batch.size()); ++i) batch[i].fd.reset();
  };
  if (size == 0 && descriptors == 0 && !datagram) return {.state = Channel::closed};
  const bool whole = static_cast<std::size_t>(size) >= ScmFrame::bytes(0) &&
                     frame.magic == ScmFrame::expected_magic && frame.count >= 1 &&
                     frame.count <= scm_max_descriptors &&
                     static_cast<std::size_t>(size) == ScmFrame::bytes(frame.count) &&
                     (message.msg_flags & MSG_TRUNC) == 0;
  if (!whole) {
    drop_all();
    throw std::runtime_error(fmt::format("recvmsg: {} bytes that are no hand-off frame", size));
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    // At this process's descriptor limit the kernel installs what it can and drops the rest
    // (net/core/scm.c, scm_detach_fds). Part of a frame is worth nothing: the acceptor has copies.
    drop_all();
    for (std::size_t i = 0; i < frame.count; ++i) batch[i].tag = frame.tag(i);
    return {.refused = frame.count, .error = EMFILE};
  }
  if (descriptors != frame.count) {
    drop_all();
    throw std::runtime_error(
        fmt::format("recvmsg: {} descriptors where the frame says {}", descriptors, frame.count));
  }
  for (std::size_t i = 0; i < descriptors; ++i) batch[i].tag = frame.tag(i);
  return {.received = descriptors};
}

namespace {

class ScmSink : public ConnectionSink {
 public:
  ScmSink(OwnedFd socket, std::size_t batch, int worker_pidfd)
      : socket_(std::move(socket)), batch_(batch), worker_pidfd_(worker_pidfd) {
    // Nothing is ever read here: a worker that sends, descriptors above all, is told EPIPE by the kernel.
    checked([&] { return ::shutdown(socket_.get(), SHUT_RD); }, "shutdown {} SHUT_RD",
            socket_.get());
  }

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    while (result.taken < batch.size()) {
      const auto part = batch.subspan(result.taken, std::min(batch_, batch.size() - result.taken));
      result.state = send_frame(socket_.get(), part);
      if (result.state != Channel::more) {
        result.error = result.state == Channel::starved ? errno : 0;
        break;
      }
      result.taken += part.size();
    }
    // A shared channel does not end with its worker.
    if (result.state == Channel::would_block && has_ended(worker_pidfd_))
      result.state = Channel::closed;
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return socket_.get(); }
  [[nodiscard]] bool drained() const override {
    int unread = 0;
    checked([&] { return ::ioctl(socket_.get(), SIOCOUTQ, &unread); }, "ioctl {} SIOCOUTQ",
            socket_.get());
    return unread == 0;
  }

 private:
  OwnedFd socket_;
  std::size_t batch_;
  int worker_pidfd_;
};

class ScmSource : public ConnectionSource {
 public:
  ScmSource(OwnedFd socket, bool datagram, bool exclusive, bool shared)
      : socket_(std::move(socket)), datagram_(datagram), exclusive_(exclusive), shared_(shared) {}

  [[nodiscard]] int fd() const override { return socket_.get(); }
  ReceiveResult receive(std::span<Received> batch) override {
    return receive_frame(socket_.get(), batch, datagram_);
  }
  [[nodiscard]] bool exclusive_wake_up() const override { return exclusive_; }
  [[nodiscard]] bool shared() const override { return shared_; }

 private:
  OwnedFd socket_;
  bool datagram_;
  bool exclusive_;
  bool shared_;
};

}  // namespace

std::unique_ptr<ConnectionSink> make_scm_sink(OwnedFd socket, std::size_t batch, int worker_pidfd) {
  return std::make_unique<ScmSink>(std::move(socket), batch, worker_pidfd);
}

std::unique_ptr<ConnectionSource> make_scm_source(OwnedFd socket, bool datagram, bool exclusive,
                                                  bool shared) {
  return std::make_unique<ScmSource>(std::move(socket), datagram, exclusive, shared);
}

namespace {

class ScmLink : public Link {
 public:
  ScmLink(int type, std::size_t batch)
      : ends_(unix_pair(type)), datagram_(type == SOCK_DGRAM), batch_(batch) {}

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    ends_.second.reset();
    return make_scm_sink(std::move(ends_.first), batch_, worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    ends_.first.reset();
    return make_scm_source(std::move(ends_.second), datagram_, false);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {ends_.second.get()};
  }

 private:
  std::pair<OwnedFd, OwnedFd> ends_;
  bool datagram_;
  std::size_t batch_;
};

class ScmMethod : public HandoffMethod {
 public:
  ScmMethod(int type, std::size_t batch) : type_(type), batch_(batch) {}
  [[nodiscard]] Support probe() override { return probe_scm(type_); }
  std::unique_ptr<Link> open(const LinkRequest&) override { return open_scm_link(type_, batch_); }

 private:
  int type_;
  std::size_t batch_;
};

}  // namespace

std::unique_ptr<Link> open_scm_link(int socket_type, std::size_t batch) {
  return std::make_unique<ScmLink>(socket_type, batch);
}

Support probe_scm(int socket_type) {
  try {
    const auto [left, right] = unix_pair(socket_type);
    const Handover self{left.get(), {}};
    std::vector<Received> arrived(scm_max_descriptors);
    if (send_frame(left.get(), {&self, 1}) != Channel::more ||
        receive_frame(right.get(), arrived, socket_type == SOCK_DGRAM).received != 1) {
      return {false, "a descriptor sent over a socketpair did not arrive"};
    }
    return {};
  } catch (const std::exception& error) {
    return {false, error.what()};
  }
}

MethodFacts scm_facts(std::string_view name, std::string_view summary) {
  return {.name = name,
          .summary = summary,
          .options = "batch=1..253 (64)",
          .kernel = "2.2",
          .privilege = "none",
          .syscalls = "acceptor 1/batch (sendmsg), worker 1/batch (recvmsg)",
          .isolation = "full: each side reaches only its own table",
          .after_death = "nothing: the kernel drops messages in flight, the acceptor has copies",
          .worker_calls = {CallGroup::descriptors}};
}

std::unique_ptr<HandoffMethod> make_scm_method(int socket_type, MethodOptions& options) {
  const auto batch =
      options.integer("batch", 64, 1, static_cast<std::int64_t>(scm_max_descriptors));
  return std::make_unique<ScmMethod>(socket_type, static_cast<std::size_t>(batch));
}

}  // namespace c10k
