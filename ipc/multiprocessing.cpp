#include "ipc/multiprocessing.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <string_view>

#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"

namespace c10k::multiprocessing {
namespace {

constexpr std::size_t nonce_bytes = 20;
constexpr std::size_t digest_bytes = 16;
constexpr std::string_view challenge_prefix = "#CHALLENGE#";
constexpr std::string_view welcome = "#WELCOME#";

using Challenge = std::array<unsigned char, challenge_prefix.size() + nonce_bytes>;
using Digest = std::array<unsigned char, digest_bytes>;

void read_exactly(int fd, void* bytes, std::size_t size) {
  const ssize_t got = retry_eintr([&] { return ::read(fd, bytes, size); });
  if (got != static_cast<ssize_t>(size))
    throw PeerGone("read: the other side of the rendezvous is gone");
}

Digest digest_of(Auth auth, const Key& key, const unsigned char* nonce) {
  Digest digest{};
  if (auth == Auth::no_hmac) {
    std::memcpy(digest.data(), nonce, digest.size());
    return digest;
  }
  unsigned size = 0;
  if (::HMAC(EVP_md5(), key.data(), static_cast<int>(key.size()), nonce, nonce_bytes, digest.data(),
             &size) == nullptr ||
      size != digest_bytes) {
    throw std::runtime_error("HMAC-MD5 is not available in this libcrypto");
  }
  return digest;
}

/// The message of one byte and at most one descriptor that reduction.sendfds and recvfds exchange.
struct OneDescriptorMessage {
  OneDescriptorMessage() {
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
  OneDescriptorMessage(const OneDescriptorMessage&) = delete;
  OneDescriptorMessage& operator=(const OneDescriptorMessage&) = delete;

  char byte = 1;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
};

void look_up_family(int fd) {
  sockaddr_storage address;
  socklen_t size = sizeof address;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
}

/// A duplicate in place of `fd`, which is closed. Where CPython fails for want of a number, the first
/// one serves.
OwnedFd duplicate_instead(OwnedFd fd) {
  OwnedFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  return copy ? std::move(copy) : std::move(fd);
}

/// socket.fromfd for a single call; empty when the dialect has none or there is no number free.
OwnedFd duplicate_to_pass(int connection, const Dialect& dialect) {
  if (!dialect.duplicates_to_pass) return {};
  OwnedFd copy(::fcntl(connection, F_DUPFD_CLOEXEC, 0));
  if (copy && dialect.looks_up_family) look_up_family(copy.get());
  return copy;
}

void deliver_challenge(int fd, Auth auth, const Key& key) {
  Challenge message;
  std::memcpy(message.data(), challenge_prefix.data(), challenge_prefix.size());
  unsigned char* nonce = message.data() + challenge_prefix.size();
  checked([&] { return ::getrandom(nonce, nonce_bytes, 0); }, "getrandom {} bytes", nonce_bytes);
  send_message(fd, message.data(), message.size());
  const auto expected = digest_of(auth, key, nonce);
  Digest answer;
  receive_message(fd, answer.data(), answer.size());
  if (answer != expected) throw PeerGone("the other side does not know the authentication key");
  send_message(fd, welcome.data(), welcome.size());
}

void answer_challenge(int fd, Auth auth, const Key& key) {
  Challenge message;
  receive_message(fd, message.data(), message.size());
  if (std::memcmp(message.data(), challenge_prefix.data(), challenge_prefix.size()) != 0) {
    throw PeerGone("no challenge where one was due");
  }
  const auto digest = digest_of(auth, key, message.data() + challenge_prefix.size());
  send_message(fd, digest.data(), digest.size());
  std::array<char, welcome.size()> answer;
  receive_message(fd, answer.data(), answer.size());
  if (std::memcmp(answer.data(), welcome.data(), welcome.size()) != 0)
    throw PeerGone("refused by the other side");
}

}  // namespace

Key random_key() {
  Key key;
  checked([&] { return ::getrandom(key.data(), key.size(), 0); }, "getrandom {} bytes", key.size());
  return key;
}

void send_message(int fd, const void* bytes, std::size_t size) {
  std::array<char, 4 + 256> buffer;
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(size));
  std::memcpy(buffer.data(), &length, 4);
  std::memcpy(buffer.data() + 4, bytes, size);
  const ssize_t written = retry_eintr([&] { return ::write(fd, buffer.data(), 4 + size); });
  if (written != static_cast<ssize_t>(4 + size))
    throw PeerGone("write: the other side of the rendezvous is gone");
}

void receive_message(int fd, void* bytes, std::size_t size) {
  std::uint32_t length = 0;
  read_exactly(fd, &length, 4);
  if (ntohl(length) != size) throw PeerGone("read: a message of unexpected length");
  read_exactly(fd, bytes, size);
}

void authenticate_client(int fd, Auth auth, const Key& key) {
  if (auth == Auth::off) return;
  deliver_challenge(fd, auth, key);
  answer_challenge(fd, auth, key);
}

void authenticate_to_listener(int fd, Auth auth, const Key& key) {
  if (auth == Auth::off) return;
  answer_challenge(fd, auth, key);
  deliver_challenge(fd, auth, key);
}

void prepare_authentication() {
  const std::array<unsigned char, nonce_bytes> nonce{};
  (void)digest_of(Auth::on, Key{}, nonce.data());
}

OwnedFd accepted_connection(OwnedFd socket, const Dialect& dialect) {
  if (!socket) return socket;
  if (dialect.looks_up_family) look_up_family(socket.get());
  dialect.set_blocking(socket.get());
  return dialect.duplicates_connection ? duplicate_instead(std::move(socket)) : std::move(socket);
}

OwnedFd connect_to_listener(const sockaddr_un& address, const Dialect& dialect, int queue) {
  constexpr int pause_ms = 10;
  for (int waited_ms = 0;; waited_ms += pause_ms) {
    OwnedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) return socket;
    dialect.set_blocking(socket.get());
    // A full backlog does not refuse: a blocking connect waits for room (net/unix/af_unix.c,
    // unix_wait_for_peer). Refused means that nobody listens.
    if (retry_eintr([&] {
          return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address),
                           sizeof address);
        }) == 0) {
      return dialect.duplicates_connection ? duplicate_instead(std::move(socket))
                                           : std::move(socket);
    }
    const int error = errno;
    socket.reset();
    // CPython sleeps; this pause ends at once when the acceptor is gone.
    pollfd end{queue, 0, 0};
    if (error != ECONNREFUSED || waited_ms >= dialect.refused_patience_ms ||
        retry_eintr([&] { return ::poll(&end, 1, pause_ms); }) != 0) {
      throw ListenerGone("connect: the sharer is gone");
    }
  }
}

void set_blocking_by_ioctl(int fd) {
  int off = 0;
  (void)retry_eintr([&] { return ::ioctl(fd, FIONBIO, &off); });
}

void set_blocking_by_fcntl(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  (void)::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

void send_handle(int connection, int handle, const Dialect& dialect) {
  const OwnedFd copy = duplicate_to_pass(connection, dialect);
  OneDescriptorMessage message;
  cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &handle, sizeof handle);
  const int to = copy ? copy.get() : connection;
  const auto send = [&] {
    return retry_eintr([&] { return ::sendmsg(to, &message.header, MSG_NOSIGNAL | MSG_DONTWAIT); });
  };
  ssize_t sent = send();
  if (sent < 0 && (errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM)) {
    message.header.msg_control = nullptr;
    message.header.msg_controllen = 0;
    sent = send();
  }
  if (sent != 1) throw PeerGone("sendmsg: the other side of the rendezvous is gone");
}

OwnedFd receive_handle(int connection, const Dialect& dialect, int& error) {
  const OwnedFd copy = duplicate_to_pass(connection, dialect);
  OneDescriptorMessage message;
  const int from = copy ? copy.get() : connection;
  const ssize_t size =
      retry_eintr([&] { return ::recvmsg(from, &message.header, MSG_CMSG_CLOEXEC); });
  OwnedFd handle;
  std::size_t handles = 0;
  if (size >= 0) {
    take_descriptors(message.header, [&](OwnedFd descriptor) {
      handle = std::move(descriptor);
      ++handles;
    });
  }
  if (size != 1) throw PeerGone("recvmsg: the other side of the rendezvous is gone");
  error = EMFILE;
  if ((message.header.msg_flags & MSG_CTRUNC) != 0) return {};
  error = ETOOMANYREFS;
  if (CMSG_FIRSTHDR(&message.header) == nullptr) return {};
  if (handles != 1) throw PeerGone("recvmsg: no single descriptor where one was due");
  return handle;
}

OwnedFd rebuilt(OwnedFd handle, const Dialect& dialect) {
  if (dialect.duplicates_result) handle = duplicate_instead(std::move(handle));
  if (dialect.looks_up_family) look_up_family(handle.get());
  return handle;
}

}  // namespace c10k::multiprocessing
