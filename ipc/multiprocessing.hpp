// What CPython's multiprocessing does on a connection, in C++: framed messages, the mutual
// challenge, and a descriptor sent with one byte (Lib/multiprocessing/connection.py and
// reduction.py of 2.7 and 3.11). The queue methods are made of it, call by call.
#pragma once

#include <sys/types.h>
#include <sys/un.h>

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

/// There is nobody (any more) to connect to.
struct ListenerGone : PeerGone {
  using PeerGone::PeerGone;
};

/// Where two versions of CPython differ; all the rest is the same for both.
struct Dialect {
  std::size_t ticket_bytes;      ///< The queue's message: what the pickle of a socket has.
  std::size_t request_bytes;     ///< The message (ticket, pid), by which a worker names a ticket.
  int backlog;                   ///< Of the listener.
  int refused_patience_ms;       ///< How long a refused connect is tried again.
  bool ticket_before_put;        ///< The program makes the ticket, not the queue's feeder thread.
  bool number_is_ticket;         ///< The duplicate's number serves as the ticket.
  void (*set_blocking)(int fd);  ///< socket.setblocking(True)
  bool looks_up_family;          ///< A socket object asks what it is made from: getsockname.
  // socket.fromfd and os.dup; with `duplicates=off` none of them.
  bool duplicates_connection;  ///< Both sides, when connected; the first number is closed.
  bool duplicates_to_pass;     ///< Both sides, for the one sendmsg or recvmsg.
  bool duplicates_result;      ///< The worker, what has arrived.
};

/// The mutual challenge: as it is, its messages without the HMAC, or nothing.
enum class Auth : std::uint8_t { on, no_hmac, off };

/// A dialect, and what is taken away from it.
struct Settings {
  Dialect dialect;
  Auth auth = Auth::on;
  bool keep_connection = false;  ///< One connection a worker instead of one a descriptor.
  bool duplicates = true;        ///< Off: the acceptor's own descriptor is sent.
  bool feeder = true;            ///< Off: the ticket is written by who puts it.
  bool locks = true;             ///< Off: the queue has one reader and one writer and no lock.
};

/// Stands for the pickle of (ticket, pid), in front of zeroes up to that one's size.
struct TicketRequest {
  std::uint32_t ticket = 0;
  std::int32_t pid = 0;
};

// All of these block, and throw PeerGone when the other side closes or sends something else.
// SIGPIPE must be ignored or blocked.

/// Connection._send_bytes: a length of four bytes and the message, in one write. At most 256 bytes.
void send_message(int fd, const void* bytes, std::size_t size);
/// Connection._recv_bytes: the length, then the message; two reads. The length must be `size`.
void receive_message(int fd, void* bytes, std::size_t size);

/// A frame that stands for a pickle of `size` bytes.
template <typename Frame>
void send_padded(int fd, const Frame& frame, std::size_t size) {
  static_assert(std::is_trivially_copyable_v<Frame>);
  std::array<char, 256> bytes{};
  std::memcpy(bytes.data(), &frame, sizeof frame);
  send_message(fd, bytes.data(), size);
}
template <typename Frame>
[[nodiscard]] Frame receive_padded(int fd, std::size_t size) {
  std::array<char, 256> bytes{};
  receive_message(fd, bytes.data(), size);
  Frame frame;
  std::memcpy(&frame, bytes.data(), sizeof frame);
  return frame;
}

/// The listener's side of the mutual challenge, and the client's: each proves to the other that it
/// knows the key (HMAC-MD5 of 20 random bytes).
void authenticate_client(int fd, Auth auth, const Key& key);
void authenticate_to_listener(int fd, Auth auth, const Key& key);
/// Uses libcrypto once, so that later uses need none of the locks that a thread could hold at a fork.
void prepare_authentication();

/// What Listener.accept does with a socket that it has accepted.
[[nodiscard]] OwnedFd accepted_connection(OwnedFd socket, const Dialect& dialect);
/// SocketClient. Empty when this process has no descriptor free; throws ListenerGone when refused.
/// `queue` is the end of a pipe whose other end goes when there is nobody left to connect to.
[[nodiscard]] OwnedFd connect_to_listener(const sockaddr_un& address, const Dialect& dialect,
                                          int queue);

/// socket.setblocking(True) of 3.11: ioctl FIONBIO.
void set_blocking_by_ioctl(int fd);
/// The same of 2.7: fcntl F_GETFL and F_SETFL.
void set_blocking_by_fcntl(int fd);

/// reduction.send_handle: sends a byte with `handle`; without it when the kernel takes no more descriptors in
/// flight (ETOOMANYREFS, memory), which CPython answers with an exception and silence. Alone of these it
/// does not block: a peer that reads its answers has room for one.
void send_handle(int connection, int handle, const Dialect& dialect);
/// reduction.recv_handle: the other side of it. Close-on-exec. Empty when this process has no
/// descriptor free (`error` is EMFILE) or the sender could send none (ETOOMANYREFS); the connection is good
/// for the next one all the same.
[[nodiscard]] OwnedFd receive_handle(int connection, const Dialect& dialect, int& error);
/// What the worker makes its socket object of.
[[nodiscard]] OwnedFd rebuilt(OwnedFd handle, const Dialect& dialect);

}  // namespace c10k::multiprocessing
