// Sockets: addresses, listeners, and what the kernel says about a listener's queue.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// An IPv4 or IPv6 address with its port.
class SocketAddress {
 public:
  SocketAddress() = default;
  SocketAddress(const sockaddr* address, socklen_t size);

  /// Reads HOST:PORT or [HOST]:PORT; HOST may be a name. Throws UsageError naming `what` when the
  /// text is malformed, the port is out of range or the host does not resolve.
  static SocketAddress parse(std::string_view what, std::string_view text);
  /// The address that `fd` is bound to.
  static SocketAddress local(int fd);
  /// 127.0.0.`host` (host counted from 1), port 0: a client's own address.
  static SocketAddress loopback_source(std::uint32_t host);

  [[nodiscard]] const sockaddr* data() const {
    return reinterpret_cast<const sockaddr*>(&storage_);
  }
  [[nodiscard]] socklen_t size() const { return size_; }
  [[nodiscard]] int family() const { return storage_.ss_family; }
  [[nodiscard]] std::uint16_t port() const;
  /// Whether a listener at this address is what was asked for: the same, where port 0 is any.
  [[nodiscard]] bool fits(const SocketAddress& asked) const;
  /// True for 127.0.0.0/8, where every address is this machine's own.
  [[nodiscard]] bool is_loopback_v4() const;
  /// HOST:PORT in numbers, [HOST]:PORT for IPv6.
  [[nodiscard]] std::string text() const;

 private:
  sockaddr_storage storage_{};
  socklen_t size_ = 0;
};

struct ListenOptions {
  int backlog = 4096;       ///< Asked for; the kernel cuts it to net.core.somaxconn.
  bool reuse_port = false;  ///< SO_REUSEPORT: several listeners share the address.
};

/// Opens a non-blocking, close-on-exec TCP listener. Throws SystemError: EADDRINUSE, EACCES, ...
[[nodiscard]] OwnedFd listen_tcp(const SocketAddress& address, const ListenOptions& options);

/// An option of SOL_SOCKET that is a number; -1 when `fd` is no socket, or has none such.
[[nodiscard]] int socket_option(int fd, int option);
/// Whether a descriptor, of which nothing is known, is a TCP socket; and whether one that listens.
[[nodiscard]] bool is_tcp_socket(int fd);
[[nodiscard]] bool is_tcp_listener(int fd);

/// The accept queue of a listener, from TCP_INFO: for a listening socket tcpi_unacked is the number
/// of connections waiting in it and tcpi_sacked its limit (net/ipv4/tcp.c, tcp_get_info).
struct AcceptQueue {
  std::uint32_t length = 0;
  std::uint32_t limit = 0;
};
[[nodiscard]] AcceptQueue accept_queue(int listener);

/// How far a connection that this end accepted has got, whichever process has read and written.
struct StreamProgress {
  std::uint64_t read = 0;         ///< Bytes taken out of the receive queue.
  std::uint64_t written = 0;      ///< Bytes put into the send queue, acknowledged or not.
  bool open_for_writing = false;  ///< Established, or only the client has ended its stream.
};
/// By TCP_INFO, SIOCINQ and SIOCOUTQ (tcp(7)). A connection that has failed is not open.
[[nodiscard]] StreamProgress stream_progress(int connection);

/// Connections refused a place in any accept queue of this network namespace.
struct ListenDrops {
  std::uint64_t overflows = 0;  ///< ListenOverflows: the queue was full.
  std::uint64_t drops = 0;      ///< ListenDrops: overflows and every other reason.
};

/// Reads TcpExt of /proc/net/netstat. Holds it open, so that it can also be read by a process that has
/// run out of descriptors.
class ListenDropCounters {
 public:
  ListenDropCounters();
  /// What has been dropped since this was made; nothing where the file cannot be read.
  [[nodiscard]] ListenDrops since_start() const;

 private:
  [[nodiscard]] ListenDrops read() const;

  OwnedFd file_;
  ListenDrops at_start_;
};

/// An unnamed pair of AF_UNIX sockets of `type` (SOCK_STREAM, SOCK_SEQPACKET or SOCK_DGRAM),
/// non-blocking and close-on-exec.
[[nodiscard]] std::pair<OwnedFd, OwnedFd> unix_pair(int type);

}  // namespace c10k
