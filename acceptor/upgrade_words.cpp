#include "acceptor/upgrade_words.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ipc/syscall.hpp"

namespace c10k {

bool say(int socket, Word word, std::uint64_t first, std::uint64_t second, std::string_view text) {
  Message message;
  message.word = word;
  message.first = first;
  message.second = second;
  std::memcpy(message.text, text.data(), std::min(text.size(), sizeof message.text - 1));
  return retry_eintr([&] {
           return ::send(socket, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
         }) == sizeof message;
}

std::optional<Message> hear(int socket, std::string_view who) {
  Message message;
  // With no room for control data the kernel drops descriptors that somebody sends along (MSG_CTRUNC).
  const auto receive = [&] {
    return retry_eintr(
        [&] { return ::recv(socket, &message, sizeof message, MSG_DONTWAIT | MSG_TRUNC); });
  };
  ssize_t size = receive();
  // A peer that closes with something unread leaves this error, which is reported once and before the
  // messages that it had sent (net/unix/af_unix.c, unix_release_sock; net/core/datagram.c).
  if (size < 0 && errno == ECONNRESET) size = receive();
  if (size < 0 && errno == EAGAIN) return std::nullopt;
  if (size < 0 && errno != ECONNRESET) throw_system_error(errno, "recv from {}", who);
  if (size <= 0) throw std::runtime_error(fmt::format("{} has ended", who));
  if (static_cast<std::size_t>(size) < offsetof(Message, word) ||
      message.magic != Message::expected_magic) {
    throw std::runtime_error(
        fmt::format("{} sent {} bytes that are no message of this protocol", who, size));
  }
  if (message.version != Message::current_version) {
    throw std::runtime_error(fmt::format(
        "{} speaks version {} of the take-over, and this program version {}; restart it "
        "instead",
        who, message.version, Message::current_version));
  }
  if (size != sizeof message || message.text[sizeof message.text - 1] != '\0')
    throw std::runtime_error(fmt::format("{} sent {} bytes that are no whole message", who, size));
  return message;
}

void wait_to_read(int socket, std::string_view who) {
  pollfd entry{socket, POLLIN, 0};
  const std::int64_t deadline = monotonic_ns() + word_deadline_ns;
  while (true) {
    const std::int64_t left_ms = (deadline - monotonic_ns()) / 1'000'000;
    if (left_ms <= 0 && ::poll(&entry, 1, 0) <= 0) {
      throw std::runtime_error(
          fmt::format("{} has not answered within {} s", who, word_deadline_ns / 1'000'000'000));
    }
    if (::poll(&entry, 1, static_cast<int>(std::max<std::int64_t>(0, left_ms))) > 0) return;
  }
}

Message wait_to_hear(int socket, std::string_view who) {
  while (true) {
    wait_to_read(socket, who);
    if (const auto message = hear(socket, who)) return *message;
  }
}

bool message_is_next(int socket) {
  std::uint32_t magic = 0;
  return retry_eintr([&] {
           return ::recv(socket, &magic, sizeof magic, MSG_PEEK | MSG_DONTWAIT);
         }) == sizeof magic &&
         magic == Message::expected_magic;
}

}  // namespace c10k
