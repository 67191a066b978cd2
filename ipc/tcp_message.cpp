#include "ipc/tcp_message.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <cstring>
#include <stdexcept>

#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::uint32_t expected_magic = 0x52504354;
constexpr std::size_t most_inline = std::size_t{16} * 1024;

enum class Kind : std::uint32_t { snapshot, snapshot_in_memfd, descriptor };

struct Header {
  std::uint32_t magic = expected_magic;
  Kind kind = Kind::snapshot;
  ConnectionTag tag;
  TcpState state;
};
static_assert(std::is_trivially_copyable_v<Header>);

OwnedFd memfd_with(std::span<const std::byte> bytes) {
  OwnedFd file(static_cast<int>(checked([] { return ::memfd_create("tcp-queues", MFD_CLOEXEC); },
                                        "memfd_create tcp-queues")));
  while (!bytes.empty()) {
    const ssize_t written =
        checked([&] { return ::write(file.get(), bytes.data(), bytes.size()); }, "write memfd");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return file;
}

std::vector<std::byte> bytes_of(int memfd, std::size_t size) {
  // Before there is memory for what it says, and before anything is read that is no file.
  struct stat file {};
  checked([&] { return ::fstat(memfd, &file); }, "fstat memfd");
  if (!S_ISREG(file.st_mode) || static_cast<std::size_t>(file.st_size) < size)
    throw std::runtime_error("a snapshot shorter than it says");
  std::vector<std::byte> bytes(size);
  std::size_t got = 0;
  while (got < size) {
    const ssize_t n = checked(
        [&] { return ::pread(memfd, bytes.data() + got, size - got, static_cast<off_t>(got)); },
        "pread memfd");
    if (n == 0) throw std::runtime_error("pread: a snapshot shorter than it says");
    got += static_cast<std::size_t>(n);
  }
  return bytes;
}

Channel send_message(int socket, const Header& header, std::span<const std::byte> inline_bytes,
                     int descriptor) {
  std::array<iovec, 2> parts{{{const_cast<Header*>(&header), sizeof header},
                              {const_cast<std::byte*>(inline_bytes.data()), inline_bytes.size()}}};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
  }
  if (retry_eintr([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); }) >= 0)
    return Channel::more;
  switch (errno) {
    case EAGAIN:
      return Channel::would_block;
    case ENOBUFS:
    case ENOMEM:
    case ETOOMANYREFS:  // in flight over RLIMIT_NOFILE (unix(7))
      return Channel::starved;
    case ECONNRESET:
    case ENOTCONN:
    case EPIPE:
      return Channel::closed;
    default:
      throw_system_error(errno, "sendmsg a connection to {}", socket);
  }
}

}  // namespace

Channel send_snapshot(int socket, const ConnectionTag& tag, const TcpSnapshot& snapshot) {
  Header header{.tag = tag, .state = snapshot.state};
  if (snapshot.queues.size() <= most_inline)
    return send_message(socket, header, snapshot.queues, -1);
  header.kind = Kind::snapshot_in_memfd;
  OwnedFd queues;
  try {
    queues = memfd_with(snapshot.queues);
  } catch (const SystemError& error) {
    errno = error.code().value();
    return Channel::starved;
  }
  return send_message(socket, header, {}, queues.get());
}

Channel send_descriptor(int socket, const ConnectionTag& tag, int descriptor) {
  return send_message(socket, {.kind = Kind::descriptor, .tag = tag, .state = {}}, {}, descriptor);
}

Channel receive_message(int socket, TcpMessage& result) {
  Header header;
  std::array<std::byte, most_inline> inline_bytes;
  std::array<iovec, 2> parts{{{&header, sizeof header}, {inline_bytes.data(), most_inline}}};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got =
      retry_eintr([&] { return ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT); });
  if (got < 0) {
    if (errno == EAGAIN) return Channel::would_block;
    if (errno == ECONNRESET) return Channel::closed;
    throw_system_error(errno, "recvmsg from {}", socket);
  }
  OwnedFd beside;
  std::size_t descriptors = 0;
  take_descriptors(message, [&](OwnedFd descriptor) {
    beside = std::move(descriptor);
    ++descriptors;
  });
  if (got == 0) return Channel::closed;
  const auto size = static_cast<std::size_t>(got);
  const std::size_t inline_size =
      size >= sizeof header && header.kind == Kind::snapshot ? header.state.queue_bytes() : 0;
  // At this process's descriptor limit the one that was sent is gone.
  const bool cut = (message.msg_flags & MSG_CTRUNC) != 0;
  if (size != sizeof header + inline_size || header.magic != expected_magic ||
      header.kind > Kind::descriptor || (message.msg_flags & MSG_TRUNC) != 0 ||
      (!cut && descriptors != (header.kind == Kind::snapshot ? 0 : 1)))
    throw std::runtime_error(fmt::format("recvmsg: {} bytes that are no connection", size));

  if (cut) beside.reset();
  result.tag = header.tag;
  result.snapshot.reset();
  result.descriptor.reset();
  if (header.kind == Kind::snapshot) {
    result.snapshot = {header.state, {inline_bytes.begin(), inline_bytes.begin() + inline_size}};
  } else if (header.kind == Kind::descriptor) {
    result.descriptor = std::move(beside);
  } else if (beside) {
    result.snapshot = {header.state, bytes_of(beside.get(), header.state.queue_bytes())};
  }
  return Channel::more;
}

}  // namespace c10k
