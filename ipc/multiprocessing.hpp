// What CPython's multiprocessing does on a connection, in C++: framed messages, the mutual
// challenge, and a descriptor sent with one byte (Lib/multiprocessing/connection.py and
// reduction.py, 3.11). The queue methods are made of it, call by call.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "ipc/owned_fd.hpp"

namespace c10k::multiprocessing {

/// The authentication key that all processes of a program share.
using Key = std::array<unsigned char, 32>;
[[nodiscard]] Key random_key();

/// The other side has closed, or speaks another protocol.
struct PeerGone : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A frame in front of zeroes up to the size of the pickle that it stands for.
template <typename Frame, std::size_t size>
struct Padded {
  static_assert(sizeof(Frame) <= size && std::is_trivially_copyable_v<Frame>);
  std::array<char, size> bytes{};
  Padded() = default;
  explicit Padded(const Frame& frame) { std::memcpy(bytes.data(), &frame, sizeof frame); }
  [[nodiscard]] Frame frame() const {
    Frame result;
    std::memcpy(&result, bytes.data(), sizeof result);
    return result;
  }
};

/// Stands for the pickle of (key, pid), by which a worker names the ticket that it fetches.
struct TicketRequest {
  std::uint64_t key = 0;
  std::int32_t pid = 0;
  std::int32_t reserved = 0;
};
/// Its size as counted on CPython 3.11.2. A pickle's size depends on the numbers in it, so other
/// runs differ by some bytes.
using RequestMessage = Padded<TicketRequest, 19>;

// All of these block, and throw PeerGone when the other side closes or sends something else.
// SIGPIPE must be ignored or blocked.

/// Connection._send_bytes: a length of four bytes and the message, in one write. At most 256 bytes.
void send_message(int fd, const void* bytes, std::size_t size);
/// Connection._recv_bytes: the length, then the message; two reads. The length must be `size`.
void receive_message(int fd, void* bytes, std::size_t size);

/// Makes the other side prove that it knows the key (HMAC-MD5 of 20 random bytes).
void deliver_challenge(int fd, const Key& key);
/// Proves to the other side that this one knows the key.
void answer_challenge(int fd, const Key& key);

// What a Python socket object costs when it is made.

/// socket.setblocking(True): ioctl FIONBIO.
void set_blocking(int fd);
/// socket.socket(fileno=fd): getsockname.
void look_up_family(int fd);

/// reduction.send_handle: duplicates the connection, sends a byte with `handle`, closes the
/// duplicate.
void send_handle(int connection, int handle);
/// reduction.recv_handle: the other side of it. Close-on-exec. Empty when this process has no
/// descriptor free.
[[nodiscard]] OwnedFd receive_handle(int connection);

}  // namespace c10k::multiprocessing
