#include "ipc/multiprocessing.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <string_view>

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

Digest digest_of(const Key& key, const unsigned char* nonce) {
  Digest digest{};
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

void deliver_challenge(int fd, const Key& key) {
  Challenge message;
  std::memcpy(message.data(), challenge_prefix.data(), challenge_prefix.size());
  unsigned char* nonce = message.data() + challenge_prefix.size();
  checked([&] { return ::getrandom(nonce, nonce_bytes, 0); }, "getrandom {} bytes", nonce_bytes);
  send_message(fd, message.data(), message.size());
  const auto expected = digest_of(key, nonce);
  Digest answer;
  receive_message(fd, answer.data(), answer.size());
  if (answer != expected) throw PeerGone("the other side does not know the authentication key");
  send_message(fd, welcome.data(), welcome.size());
}

void answer_challenge(int fd, const Key& key) {
  Challenge message;
  receive_message(fd, message.data(), message.size());
  if (std::memcmp(message.data(), challenge_prefix.data(), challenge_prefix.size()) != 0) {
    throw PeerGone("no challenge where one was due");
  }
  const auto digest = digest_of(key, message.data() + challenge_prefix.size());
  send_message(fd, digest.data(), digest.size());
  std::array<char, welcome.size()> answer;
  receive_message(fd, answer.data(), answer.size());
  if (std::memcmp(answer.data(), welcome.data(), welcome.size()) != 0)
    throw PeerGone("refused by the other side");
}

void set_blocking(int fd) {
  int off = 0;
  (void)retry_eintr([&] { return ::ioctl(fd, FIONBIO, &off); });
}

void look_up_family(int fd) {
  sockaddr_storage address;
  socklen_t size = sizeof address;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
}

void send_handle(int connection, int handle) {
  const OwnedFd copy = duplicate(connection);  // socket.fromfd
  look_up_family(copy.get());
  OneDescriptorMessage message;
  cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &handle, sizeof handle);
  if (retry_eintr([&] { return ::sendmsg(copy.get(), &message.header, MSG_NOSIGNAL); }) != 1) {
    throw PeerGone("sendmsg: the other side of the rendezvous is gone");
  }
}

OwnedFd receive_handle(int connection) {
  const OwnedFd copy(::fcntl(connection, F_DUPFD_CLOEXEC, 0));  // socket.fromfd
  if (!copy) return {};
  look_up_family(copy.get());
  OneDescriptorMessage message;
  const ssize_t size =
      retry_eintr([&] { return ::recvmsg(copy.get(), &message.header, MSG_CMSG_CLOEXEC); });
  if (size != 1) throw PeerGone("recvmsg: the other side of the rendezvous is gone");
  // With room for one, the kernel installs one or none (net/core/scm.c, scm_detach_fds).
  if ((message.header.msg_flags & MSG_CTRUNC) != 0) return {};
  const cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    throw PeerGone("recvmsg: no descriptor where one was due");
  }
  int handle = -1;
  std::memcpy(&handle, CMSG_DATA(header), sizeof handle);
  return OwnedFd(handle);
}

}  // namespace c10k::multiprocessing
