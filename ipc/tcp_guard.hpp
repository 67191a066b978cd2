// Keeps segments away from connections that are between two sockets.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"

namespace c10k {

/// Who a segment is from and to, as the filter reads it: IPv6 (or mapped IPv4) and ports, all in network
/// order.
using TcpTuple = std::array<std::byte, 36>;
[[nodiscard]] TcpTuple tcp_tuple(const SocketAddress& from, const SocketAddress& to);

/// A set of connections in the kernel, and a filter that drops what comes for any of them: the peer's
/// TCP then sends it again, where it would otherwise be given to a socket that is just being dumped, or
/// be answered with a reset by the listener that stands behind.
///
/// An eBPF socket filter runs before a segment has any effect on its socket (net/ipv4/tcp_ipv4.c,
/// tcp_v4_rcv), a listener's also before the reset. Copies after a fork share the set.
class TcpGuard {
 public:
  /// Throws SystemError when bpf(2) is refused.
  TcpGuard();

  /// Lets the filter see a socket's segments (instead of whatever filter it has). Sockets that a listener
  /// accepts from now on inherit it.
  void attach(int socket) const;
  static void detach(int socket);

  /// False when the set is full.
  [[nodiscard]] bool insert(const TcpTuple& tuple) const;
  /// True when something has been dropped since it was inserted.
  bool remove(const TcpTuple& tuple) const;

  /// For a process that gets this by fork.
  [[nodiscard]] std::vector<int> descriptors() const { return {map_.get(), program_.get()}; }

 private:
  OwnedFd map_;
  OwnedFd program_;
};

}  // namespace c10k
