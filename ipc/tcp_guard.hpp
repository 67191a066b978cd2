// Keeps segments away from connections that are between two sockets.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"

namespace c10k {

/// Who a segment is from and to, as the filter reads it: IPv6 (or mapped IPv4) and ports, all in network
/// order.
using TcpTuple = std::array<std::byte, 36>;
[[nodiscard]] TcpTuple tcp_tuple(const SocketAddress& from, const SocketAddress& to);

/// Written by the filter, so the order of its members matters.
struct DroppedSegments {
  std::uint64_t count = 0;
  std::uint32_t sequence = 0;  ///< Of the first one's first byte; network order.
  std::uint32_t size = 0;      ///< Of its bytes; 0 when it has none or has not been kept.
  std::array<std::byte, 56> bytes{};
};

/// A set of connections in the kernel, and a filter that drops what comes for any of them: the peer's
/// TCP then sends it again, where it would otherwise be given to a socket that is just being dumped, or
/// be answered with a reset by the listener that stands behind.
///
/// An eBPF socket filter runs before a segment has any effect on its socket (net/ipv4/tcp_ipv4.c,
/// tcp_v4_rcv), a listener's also before the reset. Copies after a fork share the set.
///
/// But it runs after the socket has been looked up (there: __inet_lookup_skb, then tcp_filter), and an
/// interrupt may come between the two. A segment that has found the listener stays with it, also when
/// its connection has been rebuilt meanwhile and has left the set. So a second map has the connections
/// that were rebuilt a moment ago, and what comes for one of them and is seen by the filter (the rebuilt
/// socket has none) is dropped too. A SYN passes and ends that: the same address and port begin anew.
///
/// Until it is sent again 200 ms pass (the least retransmission timeout), so the filter keeps the first
/// dropped one if it is plain data in at most 76 bytes with its header: the kernel has verified the
/// checksum of such a one already, and that of a longer one perhaps not (CHECKSUM_BREAK).
class TcpGuard {
 public:
  /// Throws SystemError when bpf(2) is refused.
  TcpGuard();
  /// The same set and filter as another process's: its descriptors().
  TcpGuard(OwnedFd gap, OwnedFd recent, OwnedFd program)
      : gap_(std::move(gap)), recent_(std::move(recent)), program_(std::move(program)) {}

  /// Lets the filter see a socket's segments (instead of whatever filter it has). Sockets that a listener
  /// accepts from now on inherit it.
  void attach(int socket) const;
  static void detach(int socket);

  /// False when the set is full.
  [[nodiscard]] bool insert(const TcpTuple& tuple) const;
  /// What has been dropped since the tuple was inserted.
  [[nodiscard]] DroppedSegments dropped(const TcpTuple& tuple) const;
  /// For the next 100 ms the listener is to answer nothing but a SYN. Needs no clean-up: what is overdue
  /// means nothing, and the kernel evicts the oldest.
  void rebuilt(const TcpTuple& tuple) const;
  /// Lets segments pass again. Returns how many have been dropped.
  std::uint64_t remove(const TcpTuple& tuple) const;

  /// For a process that gets this by fork, or from its predecessor.
  [[nodiscard]] std::vector<int> descriptors() const {
    return {gap_.get(), recent_.get(), program_.get()};
  }

 private:
  bool on_tuple(int command, const TcpTuple& tuple, const DroppedSegments* value) const;

  OwnedFd gap_;
  OwnedFd recent_;  ///< The value: until when (CLOCK_MONOTONIC, nanoseconds; 64 bits).
  OwnedFd program_;
};

}  // namespace c10k
